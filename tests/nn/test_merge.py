"""Experts that are equal but for the order of their units merge without a trace; others merge by use."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import KINDS, D, E, F, batch, build

from labkit.core.routing import Routing
from labkit.nn import trace
from labkit.nn.densify import densify
from labkit.nn.merge import (
    Groups,
    align,
    grouped,
    groups_by_routing,
    groups_by_weights,
    merge,
    merge_behind_routers,
    merge_by_use,
    merged,
)
from labkit.nn.prune import prune, use


def twins(model, pairs, seed=5):
    """Make expert b of each pair a shuffled copy of expert a, in every layer; its router row stays."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in model.layers:
            bank = block.ffn.experts
            for a, b in pairs:
                order = torch.randperm(F, generator=draw)
                both = torch.cat([order, order + F])
                bank.gate_up_E2FD[b] = bank.gate_up_E2FD[a][both]
                bank.down_EDF[b] = bank.down_EDF[a][:, order]
                if bank.gate_up_bias_E2F is not None:
                    bank.gate_up_bias_E2F[b] = bank.gate_up_bias_E2F[a][both]
                    bank.down_bias_ED[b] = bank.down_bias_ED[a]
    return model


def groups_of(pairs, uses=None):
    partner = {b: a for a, b in pairs}
    leaders = tuple(e for e in range(E) if e not in partner)
    group_E = torch.tensor([leaders.index(partner.get(e, e)) for e in range(E)])
    return Groups(leaders, group_E, torch.rand(E) + 0.1 if uses is None else uses)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_experts_in_another_order_merge_without_a_trace(kind):
    pairs = ((0, 3), (2, 5))
    model = twins(build(kind), pairs)
    small = merge_behind_routers(model, dict.fromkeys(range(3), groups_of(pairs)))
    ids_BS = batch().ids_BS
    torch.testing.assert_close(small(ids_BS).logits, model(ids_BS).logits, atol=1e-5, rtol=1e-5)
    assert small.layers[0].ffn.experts.merged.down_EDF.shape == (4, D, F)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_both_of_a_pair_chosen_add_their_scores():
    pairs = ((0, 3),)
    model = twins(build(), pairs)
    with torch.no_grad():
        for block in model.layers:  # similar rows: many tokens choose both
            block.ffn.router.weight_ED[3] = block.ffn.router.weight_ED[0] + 0.01
    records = trace(model, batch())
    assert any((set(row) == {0, 3}) for record in records for row in record.topk_ids_TK.tolist())
    small = merge_behind_routers(model, dict.fromkeys(range(3), groups_of(pairs)))
    ids_BS = batch().ids_BS
    torch.testing.assert_close(small(ids_BS).logits, model(ids_BS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", ["mean", "leader"])
def test_a_smaller_router_is_the_same_model_where_one_of_two_equal_experts_was_chosen(rows):
    pairs = ((0, 3), (2, 5))
    model = twins(build(top_k=1), pairs)
    with torch.no_grad():
        for block in model.layers:
            for a, b in pairs:
                block.ffn.router.weight_ED[b] = block.ffn.router.weight_ED[a]
    small = merge(model, dict.fromkeys(range(3), groups_of(pairs)), rows=rows)
    assert small.config.moe.num_experts == 4
    ids_BS = batch().ids_BS
    torch.testing.assert_close(small(ids_BS).logits, model(ids_BS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_expert_its_own_group_changes_nothing(kind):
    model = build(kind, dense=0, tie=False)
    own = Groups(tuple(range(E)), torch.arange(E), torch.zeros(E))
    ids_BS = batch().ids_BS
    for small in (
        merge(model, dict.fromkeys(range(3), own)),
        merge_behind_routers(model, dict.fromkeys(range(3), own)),
    ):
        torch.testing.assert_close(small(ids_BS).logits, model(ids_BS).logits, atol=1e-6, rtol=1e-6)


def test_without_alignment_the_average_of_equal_experts_would_be_another():
    model = twins(build(), ((0, 3),))
    bank = model.layers[0].ffn.experts
    plain = (bank.gate_up_E2FD[0] + bank.gate_up_E2FD[3]) / 2
    found = merged(bank, groups_of(((0, 3),)))["gate_up_E2FD"][0]
    torch.testing.assert_close(found, bank.gate_up_E2FD[0])
    assert not torch.allclose(plain, bank.gate_up_E2FD[0], atol=1e-2)


def test_the_average_weighs_by_use_and_an_unused_member_counts_nothing():
    bank = build().layers[0].ffn.experts
    uses = torch.tensor([0.3, 0.2, 0.2, 0.1, 0.2, 0.0])
    groups = Groups((0, 1, 2, 4), torch.tensor([0, 1, 2, 0, 3, 2]), uses)
    torch.testing.assert_close(groups.weights_NE[0, [0, 3]], torch.tensor([0.75, 0.25], dtype=torch.float64))
    found = merged(bank, groups)
    order = align(torch.cat([bank.gate_up_E2FD[0, :F], bank.gate_up_E2FD[0, F:], bank.down_EDF[0].T], 1),
                  torch.cat([bank.gate_up_E2FD[3, :F], bank.gate_up_E2FD[3, F:], bank.down_EDF[3].T], 1))  # fmt: skip
    expected = 0.75 * bank.down_EDF[0] + 0.25 * bank.down_EDF[3][:, order]
    torch.testing.assert_close(found["down_EDF"][0], expected)
    torch.testing.assert_close(found["down_EDF"][2], bank.down_EDF[2])
    torch.testing.assert_close(found["down_EDF"][1], bank.down_EDF[1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 99))
def test_a_hidden_order_is_found_under_noise(F, seed):
    draw = torch.Generator().manual_seed(seed)
    anchor, order = torch.randn(F, 48, generator=draw), torch.randperm(F, generator=draw)
    other = anchor[order] + 0.1 * torch.randn(F, 48, generator=draw)
    assert torch.equal(order[align(anchor, other)], torch.arange(F))


@pytest.mark.parametrize("seed", range(20))
def test_the_order_is_near_the_best_of_all(seed):
    draw = torch.Generator().manual_seed(seed)
    anchor, other = torch.randn(2, 6, 4, generator=draw, dtype=torch.float64)
    alike = anchor @ other.T
    places = torch.arange(6)
    best = max(alike[places, torch.tensor(order)].sum().item() for order in itertools.permutations(range(6)))
    found = align(anchor, other)
    assert sorted(found.tolist()) == list(range(6))
    assert 0.9 * best <= alike[places, found].sum().item() <= best + 1e-9


def test_equal_and_zero_units_still_have_an_order():
    for units in (torch.zeros(5, 3), torch.ones(5, 3)):
        assert sorted(align(units, units).tolist()) == list(range(5))


def test_groups_find_shuffled_copies_by_weights_and_shared_tokens_by_routing():
    pairs = ((0, 3), (2, 5))
    model = twins(build(), pairs)
    uses = torch.tensor([0.3, 0.2, 0.2, 0.05, 0.2, 0.05])
    found = groups_by_weights(model.layers[1].ffn.experts, uses, 4)
    assert found.leaders == (0, 1, 2, 4)
    assert found.group_E.tolist() == [0, 1, 2, 0, 3, 2]


def test_groups_by_routing_join_what_rises_and_falls_together():
    draw, T = torch.Generator().manual_seed(0), 600
    logits = 0.1 * torch.randn(T, 12, generator=draw)
    logits[:, 1] *= 30
    logits[:, 3] = 0.2 * logits[:, 1] + 0.05 * torch.randn(T, generator=draw)
    logits += 10 * torch.randn(T, 1, generator=draw)  # which a router does not feel, and which makes all look alike
    chosen = torch.arange(T)[:, None] % 3
    found = groups_by_routing(Routing.of(logits, chosen, torch.ones(T, 1)), 3)
    assert found.leaders == (0, 1, 2)
    assert found.group_E[:4].tolist() == [0, 1, 2, 1]
    assert 1 not in found.group_E[4:]


@pytest.mark.parametrize("alike", ["routing", "weights"])
@pytest.mark.parametrize("number", [1, 3, E])
def test_by_use_to_any_number(alike, number):
    model = build()
    records = trace(model, batch(16))
    small = merge_by_use(model, records, number, alike=alike, top_k=min(2, number))
    assert small(batch().ids_BS).logits.isfinite().all()
    kept = merge_behind_routers(model, grouped(model, records, number, alike=alike))
    assert [r.num_experts for r in trace(kept, batch())] == [E] * 3
    if number == E:
        torch.testing.assert_close(small(batch().ids_BS).logits, model(batch().ids_BS).logits, atol=1e-5, rtol=1e-5)


def test_side_by_side_is_exact_where_scores_do_not_depend_on_the_token():
    model = build("softmax", top_k=E, num_shared_experts=1)
    with torch.no_grad():
        for block in model.layers:
            block.ffn.router.weight_ED.zero_()  # every score is 1/E
    dense = densify(model, trace(model, batch()))
    assert (dense.config.moe, dense.config.d_dense) == (None, F * (E + 1))
    ids_BS = batch().ids_BS
    torch.testing.assert_close(dense(ids_BS).logits, model(ids_BS).logits, atol=1e-5, rtol=1e-5)


def test_the_average_of_shuffled_copies_is_exact():
    model = twins(build(), tuple((0, e) for e in range(1, E)))
    dense = densify(model, trace(model, batch()), how="average")
    assert dense.config.d_dense == F
    ids_BS = batch().ids_BS
    torch.testing.assert_close(dense(ids_BS).logits, model(ids_BS).logits, atol=1e-5, rtol=1e-5)


def test_a_dense_student_of_the_best_experts_keeps_the_scores_sum():
    model = build("sigmoid, selection bias, shared")
    records = trace(model, batch())
    dense = densify(model, records, experts=2)
    assert dense.config.d_dense == 3 * F
    record, ffn, bank = records[0], dense.layers[0].ffn, model.layers[0].ffn.experts
    share = use(record, "scores")
    best = sorted(share.argsort(descending=True)[:2].tolist())
    scales = [(ffn.down_DF[:, i * F] / bank.down_EDF[e, :, 0]).mean().item() for i, e in enumerate(best)]
    assert sum(scales) == pytest.approx(2.5, rel=1e-4)  # route_scale: what K renormalised scores sum to
    assert scales[0] / scales[1] == pytest.approx((share[best[0]] / share[best[1]]).item(), rel=1e-4)


def test_what_does_not_fit_is_refused():
    model, records = build(), trace(build(), batch())
    own = Groups(tuple(range(E)), torch.arange(E), torch.ones(E))
    few = Groups((0,), torch.zeros(E, dtype=torch.int64), torch.ones(E))
    for call, told in (
        (lambda: Groups((0, 1), torch.tensor([1, 0, 0]), torch.ones(3)), "are in groups"),
        (lambda: Groups((0,), torch.tensor([0, 1]), torch.ones(2)), "do not fit"),
        (lambda: Groups((0,), torch.tensor([0, 0]), torch.tensor([1.0, -1.0])), "not negative"),
        (lambda: Groups((0,), torch.tensor([0, 0]), torch.tensor([1.0, float("nan")])), "finite"),
        (lambda: merge(model, {0: own}), "the sparse layers are"),
        (lambda: merge(model, {0: own, 1: own, 2: few}), "different layers"),
        (lambda: merge(model, dict.fromkeys(range(3), few)), "lower top_k"),
        (lambda: merge(model, dict.fromkeys(range(3), own), rows="best"), "rows is 'best'"),
        (lambda: merge_by_use(model, records, 3, alike="smell"), "alike is 'smell'"),
        (lambda: densify(model, records, how="svd"), "how is 'svd'"),
        (lambda: densify(model, records, experts=0), "number is 0"),
        (lambda: densify(build("softmax of the chosen, biases"), records), "biases or another activation"),
        (lambda: densify(build(dense=1), trace(build(dense=1), batch())), "dense layers have width 24"),
        (lambda: densify(densify(model, records), records), "a dense model"),
        (lambda: prune(densify(model, records), {}), "a dense model"),
    ):
        with pytest.raises(ValueError, match=told):
            call()
