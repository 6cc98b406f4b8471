"""Co-activation, the kernel's side: the pairs' counts, their chance, their tokens, and an order that shows groups."""

from __future__ import annotations

import base64
from itertools import pairwise

import pytest
import torch
from records import large, make, payload

from labkit.core.metrics import coactivation_lift
from labkit.core.routing import Routing
from labkit.show.widgets.base import VIEW_MIME
from labkit.show.widgets.coactivation import HOLE, LEVELS, STEPS, coactivation_map, diverging
from labkit.show.widgets.pairs import Pairs, chance_range
from labkit.show.widgets.seriation import cluster_order

IDS = [[0, 1], [0, 1], [0, 1], [2, 3], [0, 2], [1, 3]]


def record(ids: list[list[int]] = IDS, E: int = 4, **named) -> Routing:
    return Routing.of(torch.zeros(len(ids), E), torch.tensor(ids), torch.ones(len(ids), len(ids[0])), **named)


def test_starts_on_the_pair_with_most_tokens_and_finds_them():
    w = coactivation_map(record(tokens=tuple("abcdef"), domains=("x", "x", "y", "y", "y", "y")))
    assert w.pair == [0, 1]
    assert [(e["position"], e["token"]) for e in w.examples] == [(0, "a"), (1, "b"), (2, "c")]
    assert [(s["domain"], s["count"]) for s in w.shares] == [("x", 2), ("y", 1)]
    assert [s["share"] for s in w.shares] == pytest.approx([2 / 3, 1 / 3])
    assert [s["baseline"] for s in w.shares] == pytest.approx([1 / 3, 2 / 3])
    assert "experts 0 and 1: together for 3 of 6 tokens, 50 %" in w.says
    w.pair = [3, 2]
    assert [e["token"] for e in w.examples] == ["d"]
    w.pair = [0, 3]
    assert (w.examples, w.shares) == ([], [])
    assert "together for 0 of 6 tokens" in w.says


@pytest.mark.parametrize("seed", range(3))
def test_counts_and_tokens_equal_a_plain_loop(seed):
    r = make(T=200, E=6, K=3, L=1, seed=seed)[0]
    pairs = Pairs.of(r)
    chosen = [set(row) for row in r.topk_ids_TK.tolist()]
    for i in range(6):
        for j in range(6):
            positions = [t for t, row in enumerate(chosen) if {i, j} <= row]
            assert int(pairs.count_EE[i, j]) == len(positions)
            assert pairs.tokens_of(i, j).tolist() == positions


def test_a_random_router_is_at_the_derived_baselines():
    T, E, K = 200_000, 8, 3
    ids = torch.rand(T, E, generator=torch.Generator().manual_seed(0)).topk(K).indices
    pairs = Pairs.of(Routing.of(torch.zeros(T, E), ids, torch.ones(T, K)))
    apart = pairs.apart_EE
    p_E = pairs.count_EE.diagonal() / T
    ratio_EE = pairs.share_EE / (p_E * p_E[:, None])
    assert pairs.random_ratio == pytest.approx((K - 1) / K * E / (E - 1))
    assert ratio_EE[apart].mean() == pytest.approx(pairs.random_ratio, rel=0.01)
    assert pairs.share_EE[apart].mean() == pytest.approx(pairs.random_share, rel=1e-6)
    assert pairs.lift_EE[apart].mean() == pytest.approx(1, rel=0.01)
    low, high = chance_range(T * pairs.random_share, T)
    inside = ((pairs.lift_EE > low) & (pairs.lift_EE < high))[apart].double().mean()
    assert inside > 0.8


def level(w, i: int, j: int) -> str:
    return w.view["levels"][i][j]


def test_lift_has_a_logarithmic_scale_with_one_in_the_middle():
    r = make(T=600, E=8, K=2, L=1, spread=2)[0]
    w = coactivation_map(r)
    lift = coactivation_lift(r)
    far = Pairs.of(r).farthest()
    assert len(w.diverging) == 2 * STEPS + 1 == len(LEVELS)
    for i in range(8):
        assert level(w, i, i) == HOLE
        for j in set(range(8)) - {i}:
            place = (torch.log2(lift[i, j].clamp(2**-far, 2**far)) / far).item()
            assert abs(int(level(w, i, j), 36) - STEPS * (1 + place)) <= 0.51
    assert w.view["marks"][1] == [0.5, "1: loads alone", True]
    even = coactivation_map(record([[0, 1], [0, 2], [1, 2]], E=3))
    assert {c for row in even.view["levels"] for c in row} == {HOLE, LEVELS[STEPS]}


def test_raw_marks_the_random_routers_share():
    w = coactivation_map(record())
    w.mode = "raw"
    top = float(w.view["marks"][-1][1].removesuffix(" %"))
    assert top == 50
    assert w.view["marks"][1] == [pytest.approx(2 / 12 / 0.5), "16.7 %: random", True]
    assert int(level(w, 0, 1), 36) == len(w.ramp) - 1
    assert int(level(w, 0, 3), 36) == 0
    assert level(w, 2, 2) == HOLE


def test_words_tell_the_expected_count_and_the_derived_ratio():
    r = make(T=2000, E=8, K=2, L=1)[0]
    w = coactivation_map(r)
    i, j = w.pair
    lift = float(coactivation_lift(r)[i, j])
    count = len(Pairs.of(r).tokens_of(i, j))
    assert f"The loads alone explain {count / lift:,.1f}: lift {lift:.2f}" in w.says
    assert "(K − 1)/K · E/(E − 1) = 0.571" in w.view["baseline"]


def test_one_expert_a_token_has_no_pairs_and_says_so():
    w = coactivation_map(record([[0], [1], [1]], E=3, domains=("a", "b", "b")))
    assert "K = 1" in w.says
    assert {c for row in w.view["levels"] for c in row} == {HOLE}
    assert w.examples == []
    w.order_by, w.mode = "cluster", "raw"
    assert sorted(w.order) == [0, 1, 2]
    w.pair = [1, 1]
    assert "expert 1 alone: chosen by 2 of 3 tokens" in w.says


def test_an_expert_that_nobody_chose_is_a_hole():
    w = coactivation_map(record([[0, 1], [1, 2], [0, 2]], E=4))
    assert [level(w, e, 3) for e in range(4)] == [HOLE] * 4
    w.pair = [3, 0]
    assert "Nobody chose expert 3" in w.says


def test_examples_are_spread_evenly_and_stay_in_their_sequence():
    T = 120
    r = record([[0, 1]] * T, E=2, tokens=tuple(f"w{t} " for t in range(T)), sequence_T=torch.arange(T) // 4)
    w = coactivation_map(r)
    assert w.sampled == "12 of the pair's 120 tokens shown, evenly spaced."
    positions = [e["position"] for e in w.examples]
    assert (positions[0], positions[-1], len(positions)) == (0, 119, 12)
    assert {b - a for a, b in pairwise(positions)} <= {10, 11}
    first = w.examples[0]
    assert (first["before"], first["token"], first["after"]) == ("", "w0␣", "w1␣w2␣w3␣")
    assert w.examples[-1]["after"] == ""


def test_a_record_without_texts_or_domains_shows_positions():
    w = coactivation_map(record())
    assert [e["token"] for e in w.examples] == ["#0", "#1", "#2"]
    assert w.shares == []


def test_layers_have_their_own_pairs():
    w = coactivation_map(make(T=300, E=8, L=3), layer=2)
    before = (w.view["levels"], w.pair)
    w.layer = 0
    assert w.view["levels"] != before[0]
    assert w.pair == before[1]
    assert w.says.startswith("Layer 0")


def blocks(order: list[int], group) -> int:
    names = [group(e) for e in order]
    return 1 + sum(a != b for a, b in pairwise(names))


def test_clusters_come_out_as_blocks_every_time():
    draw = torch.Generator().manual_seed(0)
    camp = torch.randint(3, (3000,), generator=draw)
    ids = torch.rand(3000, 4, generator=draw).topk(2).indices * 3 + camp[:, None]  # expert e belongs to camp e % 3
    w = coactivation_map(record(ids.tolist(), E=12))
    assert blocks(w.order, lambda e: e % 3) == 12
    w.order_by = "cluster"
    assert sorted(w.order) == list(range(12))
    assert blocks(w.order, lambda e: e % 3) == 3
    assert coactivation_map(w._records[0]).order == list(range(12))
    again = coactivation_map(w._records[0])
    again.order_by = "cluster"
    assert again.order == w.order


def test_cluster_order_puts_the_most_alike_ends_together():
    far = torch.tensor([[0.0, 9, 1, 5], [9, 0, 2, 1], [1, 2, 0, 8], [5, 1, 8, 0]])
    assert cluster_order(far) == [1, 0, 3, 2]
    on_average = torch.tensor([[0.0, 20, 10, -20], [20, 0, 0, 4.5], [10, 0, 0, 4], [-20, 4.5, 4, 0]])
    assert cluster_order(on_average) == [2, 0, 1, 3]
    assert cluster_order(torch.zeros(4, 4)) == [0, 1, 2, 3]
    assert cluster_order(torch.zeros(1, 1)) == [0]


def test_payload_is_small():
    w = coactivation_map(large())
    for mode in ("raw", "lift"):
        w.mode = mode
        assert payload(w) < 50_000


@pytest.mark.parametrize("mode", ["raw", "lift"])
@pytest.mark.parametrize(
    "shape", [{"T": 1, "E": 2, "K": 1, "domains": None}, {"T": 400, "E": 64, "K": 8}, {"E": 1, "K": 1}]
)
def test_picture(mode, shape):
    w = coactivation_map(make(L=1, **shape))
    w.mode, w.order_by = mode, "cluster"
    data, meta = w._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data[VIEW_MIME]["model_id"] == w.model_id
    alt = meta["image/png"]["alt"]
    assert f"Co-activation of {shape['E']} experts" in alt
    assert w.says in alt


def test_colours_run_from_blue_through_white_to_vermilion():
    colors = diverging()
    assert (colors[0], colors[-1]) == ("#0072b2", "#d55e00")
    assert colors[STEPS] == "#f4f4f4"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: coactivation_map("record"), "coactivation_map got str"),
        (lambda: coactivation_map(record(), layer=1), "layer is 1; give 0 to 0"),
        (lambda: coactivation_map(make(T=1, L=1)[0].keep(torch.zeros(1))), "at least one token"),
        (lambda: setattr(coactivation_map(record()), "pair", [0, 4]), "pair is 4; give 0 to 3"),
        (lambda: setattr(coactivation_map(record()), "pair", [0]), "give two experts"),
        (lambda: setattr(coactivation_map(record()), "mode", "count"), "choose of raw, lift"),
        (lambda: setattr(coactivation_map(record()), "order_by", "load"), "choose of number, cluster"),
        (lambda: cluster_order(torch.zeros(2, 3)), "square matrix"),
        (lambda: cluster_order(torch.full((2, 2), torch.inf)), "not finite"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
