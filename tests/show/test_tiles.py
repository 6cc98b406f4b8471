"""The tiles' kernel side: every number that is sent is `core.tiling`'s, and the words say the same."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch
from records import make, payload

from labkit import show
from labkit.core.tiling import BLOCKS_M, tiling
from labkit.show.widgets.tiles import BLOCKS_N, Tiles, tiles, totals

ROWS = [45, 0, 300, 128, 7, 1]


def many(E: int, most: int = 90) -> list[int]:
    draw = random.Random(E)
    return [draw.randint(0, most) for _ in range(E)]


def test_everything_sent_is_what_core_counts():
    w = tiles(ROWS, block_m=64, block_n=128, width=1000, multiprocessors=40)
    for i, block_m in enumerate(BLOCKS_M):
        t = tiling(ROWS, block_m, 128, width=1000, multiprocessors=40)
        assert w.tilings[block_m] == t
        assert w.tiles_ME[i] == list(t.tiles_E)
        sent = {name: w.view[name][i] for name in w.view}
        assert sent == {
            "waste": t.waste, "busiest_waste": t.busiest_waste, "waves": t.waves, "read": 1000 / t.intensity,
            "read_wanted": 1000 * t.read_per_flop, "totals": totals(t),
        }  # fmt: skip
    assert w.tiling is w.tilings[64]


def test_totals_are_readable():
    shown = dict(totals(tiling([1200, 0, 300], 128, 256, width=2048, multiprocessors=132)))
    assert shown == {
        "tiles": "13", "rows multiplied": "1,664", "of them padding": "164 (9.86 %)", "programs": "104 = 13 × 8",
        "waves": "1", "last wave": "78.8 % full", "FLOP per byte read": "85.3", "wanted FLOP per byte": "76.9",
    }  # fmt: skip


def test_hands_change_the_numbers():
    w = tiles(ROWS)
    assert (w.expert, w.block_m, w.block_n, w.multiprocessors) == (2, 128, 256, 132)
    w.block_m = 16
    assert "tiles of 16 rows: 512 rows multiplied, 6.05 % of them padding" in w.note
    before = w.view
    w.block_n = 64
    assert w.view["read"] == [1000 / tiling(ROWS, m, 64).intensity for m in BLOCKS_M] != before["read"]
    w.multiprocessors = 7
    assert w.view["waves"] == [tiling(ROWS, m, 64, multiprocessors=7).waves for m in BLOCKS_M]
    assert [7, "7"] in w.machines
    assert [132, "132, H100 SXM, H200"] in w.machines
    assert w.machines == sorted(w.machines)


def test_an_expert_in_hand_is_put_into_words():
    w = tiles(ROWS, block_m=64)
    said = {
        0: "Expert 0: 45 rows, 1 tile of 64, 19 rows of padding, 29.7 % of what is multiplied for it.",
        1: "Expert 1: no rows, no tile, no padding.",
        3: "Expert 3: 128 rows, 2 tiles of 64, 0 rows of padding, 0 % of what is multiplied for it.",
        5: "Expert 5: 1 row, 1 tile of 64, 63 rows of padding, 98.4 % of what is multiplied for it.",
    }
    for expert, words in said.items():
        w.expert = expert
        assert w.detail == words


def test_words_name_idle_experts_an_odd_width_and_a_tile_too_large():
    assert "Experts without a row, and so without a tile: 1." in tiles(ROWS).note
    assert "23.4 % of whose columns lie beyond the matrix" in tiles(ROWS, width=196).note
    assert "beyond" not in tiles(ROWS, width=512).note
    assert "take 50 % of a multiprocessor's registers" in tiles(ROWS).note
    assert tiles(ROWS, block_m=256).note.endswith("it cannot run.")


def test_it_takes_records_and_tensors():
    (r,) = make(T=300, E=8, K=2, L=1)
    assert tiles(r).rows_E == tiles(r.tokens_per_expert_E).rows_E == r.tokens_per_expert_E.tolist()
    assert show.tiles is tiles


@pytest.mark.parametrize("rows_E", [[0], [0, 0, 0], [1], [10**7, 1], many(64), many(512)])
def test_every_size_is_sent_and_has_a_picture(rows_E):
    w = tiles(rows_E, block_m=16)
    json.dumps([w.view, w.tiles_ME, w.rows_E], allow_nan=False)
    data, meta = w._repr_mimebundle_()
    assert "image/png" in data
    alt = meta["image/png"]["alt"]
    assert w.note in alt
    assert w.detail in alt
    assert f"16: {100 * w.tiling.waste:.3g}" in alt


def test_no_rows_are_said_to_be_none():
    w = tiles([0, 0])
    assert w.note.startswith("No expert has a row: nothing to multiply")
    assert dict(totals(w.tiling))["last wave"] == "–"
    assert w.view["read_wanted"] == [None] * len(BLOCKS_M)


def test_the_largest_sends_little():
    assert payload(tiles(many(512, 9000))) < 30_000


def test_one_message_says_what_several_say():
    change = {"block_m": 32, "block_n": 64, "multiprocessors": 108, "expert": 4}

    def sent(widget: Tiles) -> dict:
        state = widget.get_state()
        return {name: value for name, value in state.items() if not name.startswith("_") and name != "layout"}

    one_by_one = tiles(ROWS)
    for trait, value in change.items():
        one_by_one.set_state({trait: value})
    for order in itertools.permutations(change):
        together = tiles(ROWS)
        together.set_state({trait: change[trait] for trait in order})
        assert sent(together) == sent(one_by_one), order


def test_a_value_out_of_range_from_the_browser_changes_nothing():
    w = tiles(ROWS)
    before = w.get_state()
    for wrong in ({"block_m": 48}, {"block_n": 0}, {"multiprocessors": 0}, {"expert": 6}, {"expert": -1}):
        with pytest.raises(ValueError, match=r"give |choose "):
            w.set_state(wrong)
    assert w.get_state() == before


def test_script_asks_nothing_of_the_network():
    source = str(Tiles._esm)
    assert "export default { render }" in source
    assert "http" not in source.replace("http://www.w3.org/2000/svg", "")
    assert "import " not in source


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: tiles([]), "tiles got no experts; give the tokens of each"),
        (lambda: tiles([3, -1]), "tiles: expert 1 has -1 tokens; give a whole number"),
        (lambda: tiles(torch.rand(4)), "tiles: expert 0 has 0.* tokens; give a whole number"),
        (lambda: tiles(8), "tiles got int; give"),
        (lambda: tiles([1] * 513), "513 experts; give at most 512"),
        (lambda: tiles(ROWS, block_m=100), "block_m is 100; choose one of 8, 16, 32, 64, 128, 256"),
        (lambda: tiles(ROWS, block_m=128.0), "block_m is 128.0; give a whole number"),
        (lambda: tiles(ROWS, block_n=512), f"block_n is 512; choose one of {', '.join(map(str, BLOCKS_N))}"),
        (lambda: tiles(ROWS, width=0), "width is 0; give"),
        (lambda: tiles(ROWS, multiprocessors=5000), "multiprocessors is 5000; give 1 to 4096"),
        (lambda: setattr(tiles(ROWS), "expert", 6), "expert is 6; give 0 to 5"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
