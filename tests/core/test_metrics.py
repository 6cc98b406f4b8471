"""Metrics of routings whose answer is known, what must always hold, and bad input."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core import metrics
from labkit.core.capacity import kept
from labkit.core.routing import Routing


def routing(T: int, E: int, K: int, seed: int = 0, domains: tuple[str, ...] | None = None) -> Routing:
    """A router of random logits."""
    logits_TE = torch.randn(T, E, generator=torch.Generator().manual_seed(seed))
    scores_TK, ids_TK = logits_TE.softmax(-1).topk(K)
    return Routing.of(logits_TE, ids_TK, scores_TK, domains=domains)


def fixed(ids: list[list[int]], E: int, domains: tuple[str, ...] | None = None) -> Routing:
    """These choices, with even logits."""
    ids_TK = torch.tensor(ids)
    return Routing.of(torch.zeros(len(ids), E), ids_TK, torch.ones(ids_TK.shape), domains=domains)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.data())
def test_always(data: st.DataObject) -> None:
    E = data.draw(st.integers(1, 9))
    K, T = data.draw(st.integers(1, E)), data.draw(st.integers(1, 20))
    r = routing(T, E, K, data.draw(st.integers(0, 99)))
    assert metrics.load(r).sum().item() == pytest.approx(1)
    assert math.log(K) - 1e-6 <= metrics.entropy(r) <= math.log(E) + 1e-6
    assert -1e-9 <= metrics.max_violation(r) <= E / K - 1 + 1e-9
    together_EE = metrics.coactivation(r)
    assert torch.equal(together_EE, together_EE.T)
    assert torch.equal(together_EE.diagonal(), r.tokens_per_expert_E)
    assert together_EE.sum() == T * K * K
    assert metrics.choices(r).sum(1).eq(K).all()
    confidence_T = metrics.router_confidence(r)
    assert ((confidence_T >= 1 / E - 1e-6) & (confidence_T <= 1 + 1e-6)).all()
    assert (metrics.decision_margin(r) >= 0).all()


def test_even_and_collapsed() -> None:
    even, collapsed = fixed([[0], [1], [2], [3]], 4), fixed([[2]] * 4, 4)
    assert metrics.entropy(even) == pytest.approx(math.log(4))
    assert metrics.entropy(even, normalised=True) == pytest.approx(1)
    assert metrics.entropy(collapsed) == 0
    assert metrics.entropy(fixed([[0]], 1), normalised=True) == 1
    assert metrics.max_violation(even) == 0
    assert metrics.max_violation(collapsed) == 3


def test_max_violation_by_hand() -> None:
    assert metrics.max_violation(fixed([[0, 1], [0, 2], [0, 1]], 3)) == pytest.approx((3 - 2) / 2)


def test_global_violation_sums_the_loads_first() -> None:
    left, right = fixed([[0], [0], [1]], 2), fixed([[1], [1], [1]], 2)
    assert metrics.global_max_violation([left, right]) == pytest.approx(4 / 3 - 1)  # loads 2 and 4, mean 3
    assert metrics.global_max_violation([left, left]) == pytest.approx(metrics.max_violation(left))
    assert metrics.global_max_violation(r for r in (left,)) == metrics.global_max_violation(left)
    assert metrics.global_max_violation([left, fixed([[1]] * 9, 2)]) == pytest.approx(10 / 6 - 1)


def test_global_violation_is_of_one_layer() -> None:
    with pytest.raises(ValueError, match="at least one record"):
        metrics.global_max_violation([])
    with pytest.raises(ValueError, match=r"experts differ: \[2, 3\]"):
        metrics.global_max_violation([fixed([[0]], 2), fixed([[0]], 3)])
    with pytest.raises(ValueError, match=r"layer differ: \[0, 1\]"):
        metrics.global_max_violation([replace(fixed([[0]], 2), layer=i) for i in (0, 1)])


def test_drop_rate_counts_choices() -> None:
    r = fixed([[0, 1], [0, 2], [0, 1]], 3)
    assert metrics.drop_rate(kept(r, 1)) == pytest.approx(3 / 6)
    assert metrics.drop_rate(kept(r, 3)) == 0
    for wrong in (kept(r, 1).float(), kept(r, 1)[0], [[True]]):
        with pytest.raises(ValueError, match="bool \\[tokens"):
            metrics.drop_rate(wrong)
    with pytest.raises(ValueError, match="at least one choice"):
        metrics.drop_rate(torch.zeros(0, 2, dtype=torch.bool))


def test_margin_knows_who_decided() -> None:
    logits_TE = torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]])
    r = Routing.of(logits_TE, torch.tensor([[0], [2]]), torch.ones(2, 1))
    assert metrics.decision_margin(r).tolist() == [2.0, -3.0]
    assert metrics.decision_margin(fixed([[0, 1]], 2)).tolist() == [math.inf]


def test_no_gradient_flows() -> None:
    logits_TE = torch.randn(3, 4, requires_grad=True)
    r = Routing.of(logits_TE, torch.tensor([[0], [1], [2]]), torch.ones(3, 1))
    assert not metrics.router_confidence(r).requires_grad
    assert not metrics.decision_margin(r).requires_grad


EVERY = (
    metrics.choices, metrics.load, metrics.entropy, metrics.max_violation, metrics.coactivation,
    metrics.coactivation_lift, metrics.lift_by_domain, metrics.permuted_lift, metrics.router_confidence,
    metrics.decision_margin, lambda r: metrics.saturation(r, r), lambda r: metrics.ablation_effect(r, r),
    lambda r: metrics.global_max_violation([r]),
)  # fmt: skip


@pytest.mark.parametrize("metric", EVERY)
def test_what_is_no_routing(metric) -> None:
    with pytest.raises(ValueError, match="takes a Routing"):
        metric(torch.zeros(2, 2))
    empty = Routing.of(torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2))
    with pytest.raises(ValueError, match="at least one token"):
        metric(empty)
