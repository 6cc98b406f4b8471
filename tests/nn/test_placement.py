"""Outputs and gradients are equal before and after experts are copied and moved."""

from __future__ import annotations

import pytest
import torch

from labkit.core.config import MoEConfig
from labkit.core.placement import place
from labkit.nn.experts import Experts
from labkit.nn.moe import MoE
from labkit.nn.placement import PlacedExperts, slot_experts, slot_ids


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_gives_the_same_after_its_experts_moved(bias):
    torch.manual_seed(0)
    config = MoEConfig(
        d_model=16, d_expert=8, num_experts=12, top_k=3, num_groups=4, top_groups=2, score_fn="sigmoid",
        num_shared_experts=1, expert_bias=bias,
    )  # fmt: skip
    layer, x = MoE(config), torch.randn(70, 16)
    if bias:
        torch.nn.init.normal_(layer.experts.gate_up_bias_E2F)
        torch.nn.init.normal_(layer.experts.down_bias_ED)
    before, routing = layer(x, return_routing=True)
    for groups in (None, 4):
        placement = place(routing.tokens_per_expert_E.tolist(), 16, 8, num_nodes=2, num_groups=groups)
        assert max(placement.copies) > 1
        experts, layer.experts = layer.experts, PlacedExperts(layer.experts, placement)
        torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-6)
        layer.experts = experts


def test_copies_gradients_add_up_to_the_experts():
    torch.manual_seed(0)
    experts = Experts(MoEConfig(d_model=8, d_expert=4, num_experts=3, top_k=1))
    placement = place([6, 1, 1], num_slots=4, num_gpus=2)
    ids, x = torch.tensor([[0], [0], [2], [1], [0]]), torch.randn(5, 8)
    placed = PlacedExperts(experts, placement)
    experts(x, (ids, torch.ones(5, 1))).square().sum().backward()
    placed(x, (ids, torch.ones(5, 1))).square().sum().backward()
    summed = torch.zeros(3, 8, 8).index_add_(0, torch.tensor(placement.experts), placed.slots.gate_up_E2FD.grad)
    torch.testing.assert_close(summed, experts.gate_up_E2FD.grad)


def test_slots_are_copies_in_the_same_dtype():
    experts = Experts(MoEConfig(d_model=8, d_expert=4, num_experts=3, top_k=1)).double()
    placement = place([6, 1, 1], num_slots=4, num_gpus=2)
    slots = slot_experts(experts, placement)
    assert slots.down_EDF.dtype == torch.float64
    assert torch.equal(slots.down_EDF, experts.down_EDF[list(placement.experts)])
    assert slots.down_EDF.data_ptr() != experts.down_EDF.data_ptr()
    assert slot_ids(placement, torch.tensor([[1], [2]])).tolist() == [list(placement.slots[e]) for e in (1, 2)]


def test_bad_input():
    experts = Experts(MoEConfig(d_model=8, d_expert=4, num_experts=3, top_k=1))
    with pytest.raises(ValueError, match="3 experts"):
        PlacedExperts(experts, place([1, 1], 2, 1))
