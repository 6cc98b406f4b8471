"""Changes between two records of one text: saturation over checkpoints, and what an expert was worth."""

import math
from dataclasses import replace

import pytest
import torch

from labkit.core import metrics
from labkit.core.routing import Routing


def chosen(ids: list[list[int]], E: int = 6, **labels) -> Routing:
    """These choices, with even logits."""
    ids_TK = torch.tensor(ids)
    return Routing.of(torch.zeros(len(ids), E), ids_TK, torch.ones(ids_TK.shape), **labels)


def losses(values: list[float], **labels) -> Routing:
    """A record with these losses."""
    return chosen([[0]] * len(values), loss_T=torch.tensor(values, dtype=torch.float64), **labels)


def test_saturation_by_hand() -> None:
    early, late = chosen([[0, 1], [2, 3], [4, 5]]), chosen([[1, 0], [3, 4], [0, 1]])
    assert metrics.saturation(early, late) == pytest.approx((2 + 1 + 0) / 6)
    assert metrics.saturation(early, late, top_k=1) == 0
    assert metrics.saturation(early, early) == metrics.saturation(late, late, top_k=1) == 1


def test_effect_by_hand() -> None:
    domains, nan = ("b", "b", "a", "a", "a"), math.nan
    before = losses([1.0, nan, 2.0, 2.0, nan], domains=domains)
    after = losses([1.5, nan, 2.0, 4.0, nan], domains=domains)
    effect = metrics.ablation_effect(before, after)
    assert (effect.domains, effect.unit) == (("a", "b"), "token")
    assert effect.change_G.tolist() == pytest.approx([1.0, 0.5])
    assert effect.change == pytest.approx(2.5 / 3)
    assert effect.low_G[0] < 1.0 < effect.high_G[0]
    assert effect.low_G[1].isnan()  # one token says nothing about spread
    assert effect.high_G[1].isnan()
    assert metrics.ablation_effect(after, before).change == pytest.approx(-effect.change)


def test_no_change_and_an_even_one() -> None:
    r = losses(torch.rand(40, generator=torch.Generator().manual_seed(0)).tolist(), domains=("a", "b") * 20)
    none = metrics.ablation_effect(r, r)
    assert (none.change, none.low, none.high) == (0, 0, 0)
    even = metrics.ablation_effect(r, replace(r, loss_T=r.loss_T + 0.25))
    assert torch.cat([even.change_G, even.low_G, even.high_G]).tolist() == pytest.approx([0.25] * 6)


def test_long_sequences_count_more() -> None:
    sequence_T = torch.tensor([0] * 3 + [1])
    before = losses([0.0] * 4, sequence_T=sequence_T)
    effect = metrics.ablation_effect(before, replace(before, loss_T=torch.tensor([1.0, 1.0, 1.0, 5.0])))
    assert effect.change == 2.0
    assert (effect.low, effect.high) == (1.0, 5.0)  # twice the one, or twice the other


def test_effect_takes_a_trace_and_depends_on_its_seed() -> None:
    draw = torch.Generator().manual_seed(0)
    before, after = (losses(torch.rand(30, generator=draw).tolist()) for _ in range(2))
    one, many = metrics.ablation_effect(before, after), metrics.ablation_effect((before, before), [after, after])
    assert (one.domains, one.low, one.high) == (("all",), many.low, many.high)
    assert metrics.ablation_effect(before, after, seed=1).low != one.low
    narrow, wide = (metrics.ablation_effect(before, after, coverage=c) for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_domain_without_a_loss_is_named() -> None:
    half = losses([math.nan, 1.0], domains=("a", "b"))
    with pytest.raises(ValueError, match="no loss is known in domain 'a'"):
        metrics.ablation_effect(half, half)
