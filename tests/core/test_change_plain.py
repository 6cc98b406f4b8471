"""Saturation and effects against plain Python, and an interval that means what it says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from labkit.core import metrics
from labkit.core.routing import Routing

NAN = float("nan")


def routing(T: int, E: int, K: int, seed: int = 0, **labels) -> Routing:
    logits_TE = torch.randn(T, E, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
    scores_TK, ids_TK = logits_TE.softmax(-1).topk(K)
    return Routing.of(logits_TE, ids_TK, scores_TK, **labels)


@pytest.mark.parametrize(("T", "E", "K"), [(7, 5, 1), (20, 6, 3), (33, 11, 4), (9, 4, 4)])
def test_saturation_against_plain_python(T, E, K):
    for seed in range(3):
        early, late = routing(T, E, K, seed), routing(T, E, K, seed + 50)
        for k in range(1, K + 1):
            shared = [
                len(set(a[:k]) & set(b[:k])) / k
                for a, b in zip(early.topk_ids_TK.tolist(), late.topk_ids_TK.tolist(), strict=True)
            ]
            assert metrics.saturation(early, late, top_k=k) == pytest.approx(sum(shared) / T)
        assert metrics.saturation(early, late) == metrics.saturation(late, early) == pytest.approx(sum(shared) / T)
        assert metrics.saturation(early, early) == 1


def test_saturation_of_strangers_is_k_of_e_and_order_does_not_count():
    assert metrics.saturation(routing(20_000, 8, 3, 0), routing(20_000, 8, 3, 1)) == pytest.approx(3 / 8, abs=0.01)
    r = routing(9, 5, 3)
    turned = Routing.of(r.logits_TE, r.topk_ids_TK.flip(1), r.topk_scores_TK.flip(1))
    assert metrics.saturation(r, turned) == 1


R = routing(6, 5, 2, layer=1, tokens=tuple("abcdef"), domains=("x",) * 6)


@pytest.mark.parametrize(
    ("late", "options", "says"),
    [
        (routing(5, 5, 2, layer=1), {}, "6 and 5 tokens"),
        (routing(6, 5, 2, layer=2), {}, "compare one layer"),
        (routing(6, 6, 2, layer=1), {}, "compare one layer"),
        (routing(6, 5, 3, layer=1), {}, "compare one layer"),
        (replace(R, tokens=tuple("abcdeX")), {}, "records' tokens differ"),
        (replace(R, domains=("y",) * 6), {}, "records' domains differ"),
        (R, {"top_k": 3}, "top_k is 3"),
        (R, {"top_k": 0}, "top_k is 0"),
        (torch.zeros(2), {}, "takes a Routing"),
    ],
)
def test_saturation_refuses(late, options, says):
    with pytest.raises(ValueError, match=says):
        metrics.saturation(R, late, **options)


def pair(change_SL: torch.Tensor, domains: tuple[str, ...] | None, dtype=torch.float64) -> tuple[Routing, Routing]:
    """Records of sequences whose loss changes by this much at each place; nothing follows the last one."""
    S, L = change_SL.shape
    labels = None if domains is None else tuple(d for d in domains for _ in range(L))
    base = routing(S * L, 4, 2, domains=labels, sequence_T=torch.arange(S).repeat_interleave(L))
    loss_SL = 2 + torch.rand(S, L, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    loss_SL[:, -1] = NAN
    return tuple(replace(base, loss_T=x.flatten().to(dtype)) for x in (loss_SL, loss_SL + change_SL))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_effect_against_plain_python(dtype):
    change_SL = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    domains = ("b", "a", "b", "c", "a", "c", "b")
    before, after = pair(change_SL, domains, dtype)
    effect = metrics.ablation_effect(before, after, rounds=50)
    assert (effect.domains, effect.unit) == (("a", "b", "c"), "sequence")
    rows = change_SL[:, :-1].tolist()
    assert effect.change == pytest.approx(sum(map(sum, rows)) / 28, abs=1e-5)
    for g, domain in enumerate(effect.domains):
        here = [x for row, d in zip(rows, domains, strict=True) if d == domain for x in row]
        assert effect.change_G[g].item() == pytest.approx(sum(here) / len(here), abs=1e-5)
    assert {effect.change_G.dtype, effect.low_G.dtype, effect.high_G.dtype} == {torch.float64}
    assert (effect.low_G <= effect.change_G).all()
    assert (effect.change_G <= effect.high_G).all()


def test_the_mean_is_over_tokens_not_over_sequences():
    base = routing(5, 4, 2, sequence_T=torch.tensor([0, 0, 0, 0, 1]))
    before, after = (replace(base, loss_T=torch.tensor(x)) for x in ([1.0] * 5, [1.0, 1.0, 1.0, 1.0, 2.0]))
    effect = metrics.ablation_effect(before, after, rounds=400)
    assert effect.change == pytest.approx(0.2)
    assert (effect.low, effect.high) == (0, 1)  # either sequence drawn twice
    assert effect.domains == ("all",)


def coverage(unit: str, runs: int = 150) -> float:
    """How often the 95% interval holds the true change, where sequences differ and their tokens are alike."""
    inside = 0
    for seed in range(runs):
        draw = torch.Generator().manual_seed(seed)
        change_SL = 0.3 + torch.randn(30, 1, generator=draw) + 0.2 * torch.randn(30, 8, generator=draw)
        before, after = pair(change_SL, None)
        if unit == "token":
            before, after = (replace(r, sequence_T=None) for r in (before, after))
        effect = metrics.ablation_effect(before, after, rounds=150, seed=seed)
        assert effect.unit == unit
        inside += effect.low <= 0.3 <= effect.high
    return inside / runs


def test_the_interval_of_sequences_holds_the_truth_and_that_of_tokens_does_not():
    assert coverage("sequence") >= 0.88
    assert coverage("token", 60) <= 0.7


def test_a_planted_effect_is_found_where_it_is():
    noise_SL = 0.3 * torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    noise_SL[::2] += 0.5
    effect = metrics.ablation_effect(*pair(noise_SL, ("code", "text") * 20))
    assert effect.low_G[0] > 0.3
    assert effect.low_G[1] < 0 < effect.high_G[1]


def test_a_single_sequence_has_no_known_spread():
    effect = metrics.ablation_effect(*pair(torch.ones(3, 4), ("a", "b", "b")))
    assert math.isnan(effect.low_G[0])
    assert math.isnan(effect.high_G[0])
    assert effect.low_G[1].item() == pytest.approx(1)
    assert effect.change_G[0].item() == pytest.approx(1)


BEFORE, AFTER = pair(torch.ones(3, 4), ("a", "b", "b"))


@pytest.mark.parametrize(
    ("before", "after", "options", "says"),
    [
        (replace(BEFORE, loss_T=None), AFTER, {}, "needs loss_T in both"),
        (BEFORE, replace(AFTER, loss_T=None), {}, "needs loss_T in both"),
        (BEFORE, AFTER.keep(torch.arange(12) < 8), {}, "12 and 8 tokens"),
        (BEFORE, replace(AFTER, domains=("z",) * 12), {}, "domains differ"),
        (BEFORE, replace(AFTER, loss_T=torch.ones(12)), {}, "known at different tokens"),
        (*(replace(r, loss_T=torch.full((12,), NAN)) for r in (BEFORE, AFTER)), {}, "no loss is known"),
        (*(r.keep(torch.arange(12) > 2) for r in (BEFORE, AFTER)), {}, "no loss is known in domain 'a'"),
        (BEFORE, AFTER, {"rounds": 19}, "rounds is 19"),
        (BEFORE, AFTER, {"rounds": True}, "rounds is True"),
        (BEFORE, AFTER, {"coverage": 1.0}, "coverage is 1"),
        (BEFORE, torch.zeros(3), {}, "takes a Routing"),
        ([], AFTER, {}, "takes a Routing"),
    ],
)
def test_the_effect_refuses(before, after, options, says):
    with pytest.raises(ValueError, match=says):
        metrics.ablation_effect(before, after, **options)
