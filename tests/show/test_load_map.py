"""The load map, the kernel's side: loads beside 1/E, orders, and the words about a cell."""

from __future__ import annotations

import base64

import pytest
import torch
from matplotlib.colors import to_hex
from records import large, make, payload

from labkit.core.metrics import max_violation
from labkit.core.routing import Routing
from labkit.show.style import expert_color
from labkit.show.widgets.base import VIEW_MIME
from labkit.show.widgets.load_map import load_map


def record(experts: list[int], E: int = 4, layer: int | None = None) -> Routing:
    ids = torch.tensor(experts)[:, None]
    return Routing.of(torch.zeros(len(ids), E), ids, torch.ones(len(ids), 1), layer=layer)


TWO = (record([0, 1, 1, 1, 2, 2, 2, 2], layer=3), record([3, 3, 3, 3, 3, 3, 0, 1], layer=7))


def test_cells_are_loads_over_the_even_share():
    w = load_map(TWO)
    assert w.layers == ["layer 3", "layer 7"]
    assert w.relative == [[0.5, 1.5, 2.0, 0.0], [0.5, 0.5, 0.0, 3.0]]
    assert w.top == 3.0
    assert w.loads == [0.125, 0.375, 0.5, 0.0]
    assert (w.layer, w.expert) == (0, 2)
    big = make(T=500, E=16, K=4, L=3)
    for layer, r in enumerate(big):
        counts = torch.bincount(r.topk_ids_TK.flatten(), minlength=16)
        assert load_map(big).relative[layer] == pytest.approx((counts * 16 / (500 * 4)).tolist(), abs=1e-3)


def test_sorts_by_number_by_layer_and_overall():
    w = load_map(TWO)
    assert w.order == [0, 1, 2, 3]
    w.sort = "layer"
    assert w.order == [2, 1, 0, 3]
    w.layer = 1
    assert w.order == w.ranking == [3, 0, 1, 2]
    w.sort = "overall"
    assert w.order == [3, 1, 2, 0]
    assert w.ranking == [3, 0, 1, 2]
    assert "only the number in common" in w.says
    w.sort = "number"
    assert w.order == [0, 1, 2, 3]


def test_words_name_share_rank_and_the_layers_balance():
    w = load_map(TWO)
    w.layer, w.expert = 1, 0
    assert "Layer 7, expert 0: 12.50 % of the choices, 0.50 × the even share 1/4 = 25.00 %; number 2 of 4" in w.says
    assert f"MaxVio {max_violation(TWO[1]):.2f}" in w.says
    assert "experts with nothing to do: 1 of 4" in w.says


def test_an_even_load_is_not_stretched_into_colour():
    even = load_map(record([0, 1, 2, 3]))
    assert even.top == 2.0
    assert load_map(record(list(range(64)), E=64)).ranking == list(range(64))
    assert "nothing to do" not in even.says


def test_payload_is_small_and_says_that_everything_was_counted():
    w = load_map(large())
    assert payload(w) < 50_000
    assert w.sampled == "Counted over every token of the record, 100,000 in all."


@pytest.mark.parametrize("shape", [{"T": 1, "E": 2, "K": 1, "L": 1}, {"T": 300, "E": 64, "K": 8, "L": 16}])
def test_picture(shape):
    w = load_map(make(**shape))
    w.sort = "layer"
    data, meta = w._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data[VIEW_MIME]["model_id"] == w.model_id
    alt = meta["image/png"]["alt"]
    assert f"by {shape['E']} experts" in alt
    assert w.says in alt
    bars = w.picture().axes[1].patches
    heights = [bar.get_height() for bar in bars]
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == [
        expert_color(e, shape["E"], w.expert) for e in w.ranking
    ]
    assert heights == sorted(heights, reverse=True)
    assert sum(heights) == pytest.approx(100)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: load_map("record"), "load_map got str"),
        (lambda: load_map(()), "load_map got nothing"),
        (lambda: load_map((record([0]), record([0, 1]))), "layers of one batch"),
        (lambda: load_map(make(T=1, L=1)[0].keep(torch.zeros(1))), "at least one token"),
        (lambda: setattr(load_map(TWO), "layer", 2), "LoadMap.layer is 2; give 0 to 1"),
        (lambda: setattr(load_map(TWO), "expert", -1), "LoadMap.expert is -1; give 0 to 3"),
        (lambda: setattr(load_map(TWO), "sort", "size"), "choose of number, layer, overall"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
