"""Lift against plain Python, and how often chance alone stands out."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from labkit.core import metrics
from labkit.core.routing import Routing

SIZES = [(7, 5, 1), (20, 6, 3), (33, 11, 4), (9, 4, 4), (50, 8, 2)]
every_size = pytest.mark.parametrize(("T", "E", "K"), SIZES)


def record(ids_TK: torch.Tensor, E: int, **labels) -> Routing:
    return Routing.of(torch.zeros(len(ids_TK), E), ids_TK, torch.ones(ids_TK.shape), **labels)


def drawn(weight_TE: torch.Tensor, K: int, draw: torch.Generator) -> torch.Tensor:
    """[T, K] experts drawn one after the other, each as probable as its weight among those that are left."""
    return torch.multinomial(weight_TE, K, generator=draw)


def routing(T: int, E: int, K: int, seed: int = 0, **labels) -> Routing:
    """A random router whose experts are not equally popular."""
    draw = torch.Generator().manual_seed(seed)
    weight_E = 0.3 + torch.rand(E, generator=draw)
    return record(drawn(weight_E.expand(T, E), K, draw), E, **labels)


@every_size
def test_coactivation_against_plain_python(T, E, K):
    for seed in range(3):
        r = routing(T, E, K, seed)
        rows = [set(row) for row in r.topk_ids_TK.tolist()]
        expected = [[sum(i in row and j in row for row in rows) for j in range(E)] for i in range(E)]
        assert metrics.coactivation(r).tolist() == expected


def fitted(pairs: list[list[int]]) -> list[list[float]]:
    """Expected pairs under quasi-independence: rows and columns scaled in turn until both sums are right."""
    E = len(pairs)
    fit = [[float(i != j) for j in range(E)] for i in range(E)]
    target = [sum(row[j] for j in range(E) if j != i) for i, row in enumerate(pairs)]
    for _ in range(3000):
        for i in range(E):
            total = sum(fit[i])
            fit[i] = [value * target[i] / total if total else 0.0 for value in fit[i]]
        for j in range(E):
            total = sum(row[j] for row in fit)
            for i in range(E):
                fit[i][j] = fit[i][j] * target[j] / total if total else 0.0
    return fit


@pytest.mark.parametrize(("T", "E", "K"), [(60, 5, 2), (60, 6, 3), (80, 7, 4)])
def test_pair_lift_against_a_plain_fit(T, E, K):
    r = routing(T, E, K, seed=T + E)
    pairs = metrics.coactivation(r).tolist()
    fit = fitted(pairs)
    lift_EE = metrics.coactivation_lift(r).tolist()
    for i in range(E):
        for j in range(E):
            assert lift_EE[i][j] == pytest.approx(1 if i == j else pairs[i][j] / fit[i][j], rel=1e-3)


def test_pairs_of_a_random_router_have_lift_one():
    for E, K in ((6, 2), (11, 4)):
        lift_EE = metrics.coactivation_lift(routing(60_000, E, K))
        assert (lift_EE - 1).abs().max() < 0.1
        assert torch.equal(lift_EE, lift_EE.T)


def test_a_planted_pair_is_found():
    E, draw = 8, torch.Generator().manual_seed(0)
    ids_TK = drawn(torch.ones(4000, E), 2, draw)
    ids_TK[:400] = torch.tensor([2, 5])
    lift_EE = metrics.coactivation_lift(record(ids_TK, E))
    assert divmod(int(lift_EE.argmax()), E) == (2, 5)
    assert lift_EE[2, 5] > 1.8
    others = [(i, j) for i, j in permutations(range(E), 2) if not {i, j} & {2, 5}]
    assert all(0.7 < lift_EE[i, j] < 1.4 for i, j in others)


def test_pair_lift_at_the_edges():
    one = metrics.coactivation_lift(routing(20, 5, 1))  # no pairs at all
    assert torch.equal(one, torch.ones(5, 5))
    whole = metrics.coactivation_lift(routing(20, 4, 4))  # every pair, always
    torch.testing.assert_close(whole, torch.ones(4, 4))
    unused = metrics.coactivation_lift(record(torch.tensor([[0, 1], [1, 2], [0, 2]]), 4))
    torch.testing.assert_close(unused, torch.ones(4, 4))
    only = metrics.coactivation_lift(record(torch.tensor([[0, 1]] * 3), 2))
    assert only.tolist() == [[1, 1], [1, 1]]
    assert metrics.coactivation_lift(record(torch.tensor([[0, 1], [2, 3]] * 9), 4)).isfinite().all()


@every_size
def test_domain_lift_against_plain_python(T, E, K):
    for seed in range(3):
        domains = tuple("cab"[(5 * i + seed) % 3] for i in range(T))
        r = routing(T, E, K, seed, domains=domains)
        table = metrics.lift_by_domain(r)
        assert table.domains == tuple(sorted(set(domains)))
        rows = r.topk_ids_TK.tolist()
        for g, domain in enumerate(table.domains):
            here = [e for row, d in zip(rows, domains, strict=True) if d == domain for e in row]
            everywhere = [e for row in rows for e in row]
            for e in range(E):
                share = everywhere.count(e) / len(everywhere)
                expected = (here.count(e) / len(here)) / share if share else 1.0
                assert table.lift_GE[g, e].item() == pytest.approx(expected, rel=1e-5)


def test_the_interval_against_a_plain_shuffle():
    r = routing(30, 4, 2, domains=("a", "b", "b") * 10)
    ours = metrics.permuted_lift(r, rounds=2000, seed=3)
    draw = torch.Generator().manual_seed(11)
    lifts = []
    for _ in range(2000):
        order = torch.randperm(30, generator=draw).tolist()
        shuffled = tuple(r.domains[i] for i in order)
        lifts.append(metrics.lift_by_domain(record(r.topk_ids_TK, 4, domains=shuffled)).lift_GE)
    lift_RGE = torch.stack(lifts)
    assert ours.unit == "token"
    torch.testing.assert_close(ours.mean_GE.float(), lift_RGE.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(ours.deviation_GE.float(), lift_RGE.std(0), atol=0.03, rtol=0)
    torch.testing.assert_close(ours.low_GE, lift_RGE.quantile(0.025, dim=0), atol=0.12, rtol=0)
    torch.testing.assert_close(ours.high_GE, lift_RGE.quantile(0.975, dim=0), atol=0.12, rtol=0)


def text(seed: int, *, sequences: int = 24, length: int = 15, E: int = 6, K: int = 2, spread: float = 0.0) -> Routing:
    """Sequences of two domains, shuffled; with `spread` every sequence has a taste of its own, whatever its domain."""
    draw = torch.Generator().manual_seed(seed)
    taste_SE = (spread * torch.randn(sequences, E, generator=draw)).exp()
    ids_TK = drawn(taste_SE.repeat_interleave(length, 0), K, draw)
    labels = torch.randperm(sequences, generator=draw) % 2
    domains = tuple("ab"[label] for label in labels.tolist() for _ in range(length))
    return record(ids_TK, E, domains=domains, sequence_T=torch.arange(sequences).repeat_interleave(length))


def false_alarms(unit: str, runs: int = 200, **kind) -> float:
    """How often a table whose labels mean nothing has a cell that stands out."""
    alarms = 0
    for seed in range(runs):
        r = text(seed, **kind)
        chance = metrics.permuted_lift(r, rounds=99, seed=seed, unit=unit)
        assert chance.unit == unit
        alarms += bool(chance.exceeded_anywhere_by(metrics.lift_by_domain(r)).any())
    return alarms / runs


@pytest.mark.parametrize(("unit", "spread"), [("token", 0.0), ("sequence", 0.0), ("sequence", 1.0)])
def test_chance_stands_out_about_as_often_as_said(unit, spread):
    assert 0.015 <= false_alarms(unit, spread=spread) <= 0.09  # 5% nominal, three standard errors of 200 runs


def test_single_tokens_are_no_units_of_text_with_a_taste():
    assert false_alarms("token", runs=60, spread=1.0) > 0.4


def test_the_p_value_is_even_where_labels_mean_nothing():
    values = sorted(
        metrics.permuted_lift(r, rounds=99, seed=seed).p_value(metrics.lift_by_domain(r))
        for seed, r in enumerate(text(s, spread=1.0) for s in range(200, 320))
    )
    worst = max(abs(value - (i + 0.5) / 120) for i, value in enumerate(values))
    assert worst < 1.63 / 120**0.5  # Kolmogorov and Smirnov, 1%


@pytest.mark.parametrize("unit", ["token", "sequence"])
def test_a_planted_specialist_is_found(unit):
    r = text(0, sequences=40)
    ids_TK = r.topk_ids_TK.clone()
    rows = torch.tensor([d == "a" for d in r.domains]) & (torch.arange(len(ids_TK)) % 2 == 0)
    ids_TK[rows] = torch.tensor([3, 4])
    planted = record(ids_TK, 6, domains=r.domains, sequence_T=r.sequence_T)
    lift, chance = metrics.lift_by_domain(planted), metrics.permuted_lift(planted, unit=unit)
    found = chance.exceeded_anywhere_by(lift)
    assert found[:, [3, 4]].all()
    assert (lift.lift_GE[0, [3, 4]] > 1.2).all()
    assert chance.p_value(lift) == pytest.approx(1 / 201)


def test_the_corrected_test_is_stricter_than_the_interval():
    r = text(3, spread=1.0)
    lift, chance = metrics.lift_by_domain(r), metrics.permuted_lift(r, rounds=500)
    assert not (chance.exceeded_anywhere_by(lift) & ~chance.exceeded_by(lift)).any()
    for error in (0.0, 0.001, 1.0):
        with pytest.raises(ValueError, match="error is"):
            chance.exceeded_anywhere_by(lift, error)
    assert (chance.largest_R.diff() >= 0).all()
    other = metrics.Lift(("a", "c"), lift.lift_GE)
    for method in (chance.exceeded_by, chance.exceeded_anywhere_by, chance.p_value):
        with pytest.raises(ValueError, match="the same Routing"):
            method(other)


@pytest.mark.parametrize("rounds", [19, True, 50.0])
def test_rounds_are_whole_numbers(rounds):
    with pytest.raises(ValueError, match="rounds is"):
        metrics.permuted_lift(text(0), rounds=rounds)
