"""Lift: what goes together more often than chance, and whether what chance gives is told rightly."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from labkit.core import metrics
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


def text(sequences: int, length: int, E: int, seed: int) -> Routing:
    """Sequences of two domains in turn, each with an expert that it mostly uses."""
    draw = torch.Generator().manual_seed(seed)
    T = sequences * length
    sequence_T = torch.arange(sequences).repeat_interleave(length)
    taste_SE = 4 * torch.eye(E)[torch.randint(E, (sequences,), generator=draw)]
    logits_TE = torch.randn(T, E, generator=draw) + taste_SE[sequence_T]
    r = Routing.of(logits_TE, logits_TE.argmax(-1, keepdim=True), torch.ones(T, 1), sequence_T=sequence_T)
    return replace(r, domains=tuple(("code", "text")[s % 2] for s in sequence_T.tolist()))


def test_lift_by_hand() -> None:
    r = fixed([[0], [0], [1], [1]], 3, ("text", "text", "text", "code"))
    table = metrics.lift_by_domain(r)
    assert table.domains == ("code", "text")
    assert table.lift_GE.tolist() == [[0.0, 2.0, 1.0], [pytest.approx(4 / 3), pytest.approx(2 / 3), 1.0]]


def test_chance_stays_inside_and_a_preference_leaves() -> None:
    domains = ("code", "text") * 150
    random = routing(300, 4, 1, seed=1, domains=domains)
    outside = metrics.permuted_lift(random).exceeded_by(metrics.lift_by_domain(random))
    assert outside.sum() <= 2
    devoted = fixed([[i % 2] for i in range(300)], 2, domains)
    assert metrics.permuted_lift(devoted).exceeded_by(metrics.lift_by_domain(devoted)).all()


def test_the_baseline_depends_on_its_seed_alone() -> None:
    r = routing(60, 4, 2, domains=("a", "b", "c") * 20)
    first, again, other = (metrics.permuted_lift(r, rounds=50, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.low_GE, again.low_GE)
    assert not torch.equal(first.low_GE, other.low_GE)
    assert (metrics.permuted_lift(r, coverage=0.5).low_GE >= metrics.permuted_lift(r, coverage=0.99).low_GE).all()
    assert (first.low_GE <= first.high_GE).all()


def test_whole_sequences_are_shuffled() -> None:
    r = text(12, 50, 4, seed=0)
    chance = metrics.permuted_lift(r, rounds=100)
    assert chance.unit == "sequence"
    counts_SE = torch.zeros(12, 4, dtype=torch.float64).index_add_(0, r.sequence_T, metrics.choices(r).double())
    draw, tables = torch.Generator().manual_seed(0), []
    for _ in range(100):
        code_S = torch.randperm(12, generator=draw) % 2 == 0
        tables.append(counts_SE[code_S].sum(0) / counts_SE[code_S].sum() / (counts_SE.sum(0) / counts_SE.sum()))
    for bound_GE, tail in ((chance.low_GE, 0.025), (chance.high_GE, 0.975)):
        expected = torch.quantile(torch.stack(tables).float(), tail, dim=0)
        assert torch.allclose(bound_GE[0], expected, atol=1e-6)


def test_the_unit_is_asked_for_or_found() -> None:
    r = text(6, 10, 4, seed=0)
    assert metrics.permuted_lift(replace(r, sequence_T=None), rounds=20).unit == "token"
    assert metrics.permuted_lift(r, rounds=20, unit="token").unit == "token"
    mixed = replace(r, domains=r.domains[1:] + r.domains[:1])
    assert metrics.permuted_lift(mixed, rounds=20).unit == "token"
    renamed = metrics.permuted_lift(replace(r, sequence_T=r.sequence_T * 7 + 3), rounds=20)
    assert torch.equal(renamed.low_GE, metrics.permuted_lift(r, rounds=20).low_GE)
    for wrong, unit, message in (
        (replace(r, sequence_T=None), "sequence", "sequence_T="),
        (mixed, "sequence", "several"),
        (r, "word", "'auto', 'sequence' or 'token'"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.permuted_lift(wrong, rounds=20, unit=unit)


def test_family_wise_errors_are_rare_and_cell_wise_ones_are_not() -> None:
    cells, families = 0, 0
    for seed in range(40):
        r = routing(200, 8, 2, seed, ("a", "b", "c", "d") * 50)
        table, chance = metrics.lift_by_domain(r), metrics.permuted_lift(r, rounds=99, seed=seed)
        cells += bool(chance.exceeded_by(table).any())
        families += bool(chance.exceeded_anywhere_by(table).any())
        assert bool(chance.exceeded_anywhere_by(table).any()) == (chance.p_value(table) <= 0.05)
    assert cells >= 20  # 32 cells of 5% each
    assert families <= 6  # 5% of 40 is 2


def test_a_real_preference_is_found_among_many_cells() -> None:
    r = routing(400, 8, 2, 0, ("a", "b", "c", "d") * 100)
    ids_TK = r.topk_ids_TK.clone()
    ids_TK[::4] = torch.tensor([5, 2])
    r = replace(Routing.of(r.logits_TE, ids_TK, r.topk_scores_TK), domains=r.domains)
    table, chance = metrics.lift_by_domain(r), metrics.permuted_lift(r)
    assert chance.exceeded_anywhere_by(table)[0, [2, 5]].all()
    assert chance.p_value(table) == pytest.approx(1 / 201)


@pytest.mark.parametrize("labels_at_once", [1, 90 * 3 * 7, 2**24])
def test_the_baseline_is_the_same_in_one_product_or_many(monkeypatch, labels_at_once: int) -> None:
    monkeypatch.setattr("labkit.core.lift._LABELS_AT_ONCE", labels_at_once)
    r = routing(90, 5, 2, domains=("a", "b", "c") * 30)
    at_once = metrics.permuted_lift(r, rounds=30)
    draw, domain_T = torch.Generator().manual_seed(0), torch.arange(90) % 3
    tables = []
    for _ in range(30):
        shuffled = domain_T[torch.randperm(90, generator=draw)]
        names = tuple("abc"[i] for i in shuffled.tolist())
        tables.append(metrics.lift_by_domain(replace(r, domains=names)).lift_GE.double())
    tables = torch.stack(tables)
    assert torch.allclose(at_once.mean_GE, tables.mean(0), atol=1e-6)
    assert torch.allclose(at_once.deviation_GE, tables.std(0), atol=1e-6)
    furthest = ((tables - tables.mean(0)).abs() / tables.std(0)).flatten(1).amax(1).sort().values
    assert torch.allclose(at_once.largest_R, furthest, atol=1e-4)


def test_too_few_rounds_for_an_error() -> None:
    r = routing(40, 4, 1, domains=("a", "b") * 20)
    with pytest.raises(ValueError, match="with 20 rounds"):
        metrics.permuted_lift(r, rounds=20).exceeded_anywhere_by(metrics.lift_by_domain(r), error=0.01)


def test_an_expert_nobody_chose_and_a_single_domain_are_no_news() -> None:
    r = fixed([[0], [1]] * 20, 3, ("a", "b", "b", "a") * 10)
    assert not metrics.permuted_lift(r, rounds=50).exceeded_anywhere_by(metrics.lift_by_domain(r))[:, 2].any()
    one = fixed([[0], [1]], 2, ("a", "a"))
    assert metrics.permuted_lift(one, rounds=20).p_value(metrics.lift_by_domain(one)) == 1


def test_pairs_that_follow_from_the_loads_have_lift_one() -> None:
    taste = (1, 2, 3, 5)
    pairs = [pair for pair in combinations(range(4), 2) for _ in range(taste[pair[0]] * taste[pair[1]])]
    assert torch.allclose(metrics.coactivation_lift(fixed(pairs, 4)), torch.ones(4, 4), atol=1e-4)
    even = metrics.coactivation_lift(fixed(list(combinations(range(6), 3)), 6))
    assert torch.allclose(even, torch.ones(6, 6), atol=1e-4)


def test_a_constant_companion_explains_nothing() -> None:
    always = metrics.coactivation_lift(fixed([[0, 1], [0, 2], [0, 2], [0, 3]], 4))
    assert torch.allclose(always[0], torch.ones(4), atol=0.02)
    assert torch.equal(always[1:, 1:], torch.eye(3))


def test_lift_needs_domains_and_the_same_table() -> None:
    r = routing(40, 4, 1, domains=("a", "b") * 20)
    for metric in (metrics.lift_by_domain, metrics.permuted_lift):
        with pytest.raises(ValueError, match="domains="):
            metric(routing(4, 4, 1))
    with pytest.raises(ValueError, match="rounds is 3"):
        metrics.permuted_lift(r, rounds=3)
    with pytest.raises(ValueError, match="coverage is 1"):
        metrics.permuted_lift(r, coverage=1)
    other = metrics.lift_by_domain(routing(40, 4, 1, domains=("a", "c") * 20))
    with pytest.raises(ValueError, match="the same Routing"):
        metrics.permuted_lift(r).exceeded_by(other)
