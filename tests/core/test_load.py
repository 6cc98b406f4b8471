"""Who gets the work: against plain Python, by hand, at the edges."""

from __future__ import annotations

import math

import pytest
import torch

from labkit.core import metrics
from labkit.core.routing import Routing

SIZES = [(1, 1, 1), (7, 5, 1), (20, 6, 3), (33, 11, 4), (9, 4, 4), (50, 8, 2)]
every_size = pytest.mark.parametrize(("T", "E", "K"), SIZES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def routing(T: int, E: int, K: int, seed: int = 0, dtype: torch.dtype = torch.float32, **labels) -> Routing:
    """Random logits, and choices that a bias moved away from the best; with gradients."""
    draw = torch.Generator().manual_seed(seed)
    logits_TE = torch.randn(T, E, generator=draw, dtype=dtype).requires_grad_()
    ids_TK = (logits_TE.detach() + torch.randn(E, generator=draw, dtype=dtype)).topk(K).indices
    return Routing.of(logits_TE, ids_TK, logits_TE.softmax(-1).gather(1, ids_TK), **labels)


def fixed(ids: list[list[int]], E: int, **labels) -> Routing:
    """These choices, with even logits."""
    ids_TK = torch.tensor(ids)
    return Routing.of(torch.zeros(len(ids), E), ids_TK, torch.ones(ids_TK.shape), **labels)


def counts(r: Routing) -> list[int]:
    chosen = [e for row in r.topk_ids_TK.tolist() for e in row]
    return [chosen.count(e) for e in range(r.num_experts)]


@every_dtype
@every_size
def test_against_plain_python(T, E, K, dtype):
    for seed in range(3):
        r = routing(T, E, K, seed, dtype)
        n_E = counts(r)
        share = [n / (T * K) for n in n_E]
        assert metrics.choices(r).tolist() == [[float(e in row) for e in range(E)] for row in r.topk_ids_TK.tolist()]
        assert metrics.load(r).tolist() == pytest.approx(share)
        nats = -sum(f * math.log(f) for f in share if f)
        assert metrics.entropy(r) == pytest.approx(nats, abs=1e-6)
        assert metrics.entropy(r, normalised=True) == pytest.approx(nats / math.log(E) if E > 1 else 1, abs=1e-6)
        mean = T * K / E
        assert metrics.max_violation(r) == pytest.approx((max(n_E) - mean) / mean)
        rows, ids = r.logits_TE.tolist(), r.topk_ids_TK.tolist()
        likeliest = [math.exp(max(row)) / sum(map(math.exp, row)) for row in rows]
        assert metrics.router_confidence(r).tolist() == pytest.approx(likeliest, rel=1e-5)
        margins = [
            min(row[e] for e in some) - max((row[e] for e in range(E) if e not in some), default=-math.inf)
            for row, some in zip(rows, ids, strict=True)
        ]
        assert metrics.decision_margin(r).tolist() == pytest.approx(margins, abs=1e-5)


@every_size
def test_violation_of_many_batches(T, E, K):
    batches = [routing(T, E, K, seed, layer=2) for seed in range(5)]
    total = [sum(n) for n in zip(*map(counts, batches), strict=True)]
    mean = sum(total) / E
    glob = metrics.global_max_violation(batches)
    assert glob == pytest.approx(max(total) / mean - 1)
    assert glob <= sum(metrics.max_violation(r) for r in batches) / 5 + 1e-9  # never above the mean
    assert metrics.global_max_violation(batches[:1]) == pytest.approx(metrics.max_violation(batches[0]))
    assert metrics.global_max_violation(batches[0]) == metrics.global_max_violation(batches[:1])
    assert metrics.global_max_violation(iter(batches)) == glob


def test_violation_of_batches_of_different_sizes_counts_tokens():
    big, small = fixed([[0]] * 9, 2), fixed([[1]], 2)
    assert metrics.global_max_violation([big, small]) == pytest.approx(9 / 5 - 1)


def test_swings_that_cancel():
    batches = [fixed([[e]] * 4, 4) for e in range(4)]
    assert [metrics.max_violation(r) for r in batches] == [3.0] * 4
    assert metrics.global_max_violation(batches) == 0


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([], "at least one record"),
        ([fixed([[0]], 2), fixed([[0]], 3)], r"experts differ: \[2, 3\]"),
        ([fixed([[0]], 2, layer=0), fixed([[0]], 2, layer=1)], r"layer differ: \[0, 1\]"),
        ([fixed([[0]], 2, layer=0), fixed([[0]], 2)], "layer differ"),
        ([torch.zeros(2, 2)], "takes a Routing, got Tensor"),
    ],
)
def test_batches_that_do_not_belong_together(records, says):
    with pytest.raises(ValueError, match=says):
        metrics.global_max_violation(records)


def test_drop_rate():
    for seed in range(3):
        kept_TK = torch.rand(17, 3, generator=torch.Generator().manual_seed(seed)) > 0.3
        flat = [kept for row in kept_TK.tolist() for kept in row]
        assert metrics.drop_rate(kept_TK) == pytest.approx(flat.count(False) / 51)
    assert metrics.drop_rate(torch.ones(2, 2, dtype=torch.bool)) == 0
    assert metrics.drop_rate(torch.zeros(2, 2, dtype=torch.bool)) == 1


@pytest.mark.parametrize(
    ("kept_TK", "says"),
    [
        (torch.ones(2, 2), "bool"),
        (torch.ones(2, dtype=torch.bool), "bool"),
        ([[True]], "got list"),
        (torch.ones(0, 2, dtype=torch.bool), "at least one choice"),
    ],
)
def test_drop_rate_refuses(kept_TK, says):
    with pytest.raises(ValueError, match=says):
        metrics.drop_rate(kept_TK)


def test_an_expert_that_was_taken_out_has_logit_minus_infinity():
    logits_TE = torch.tensor([[0.0, 0.0, float("-inf")]])
    r = Routing.of(logits_TE, torch.tensor([[0]]), torch.ones(1, 1))
    assert metrics.router_confidence(r).tolist() == [0.5]
    assert metrics.decision_margin(r).tolist() == [0.0]


@every_dtype
def test_no_gradient_and_nothing_changed(dtype):
    r = routing(12, 5, 2, dtype=dtype)
    before = r.logits_TE.detach().clone()
    for metric in (metrics.choices, metrics.load, metrics.router_confidence, metrics.decision_margin):
        value = metric(r)
        assert not value.requires_grad
        assert value.dtype == torch.float32
    assert torch.equal(r.logits_TE, before)
