"""Experts in their slots: the same layer after its experts were copied and moved, with the same outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labkit.core.placement import Placement, spread
from labkit.core.routing import Routing
from labkit.nn.experts import Experts


class PlacedExperts(nn.Module):
    """`Experts` with one set of weights in each slot of a placement; takes the place of a layer's `experts`.

    It takes the router's decision about E experts, sends each choice to a slot of that expert, and gives the output
    that the experts gave before (in float32 to rounding: a token's K parts may be added in another order).

    Args:
        experts: the experts as they are, E of them; ValueError if the placement is of another number.
        placement: slot to expert.

    >>> from labkit.core.config import MoEConfig
    >>> from labkit.core.placement import place
    >>> experts = Experts(MoEConfig(d_model=8, d_expert=4, num_experts=3, top_k=1))
    >>> placed = PlacedExperts(experts, place([6, 1, 1], num_slots=4, num_gpus=2))
    >>> x, decision = torch.randn(5, 8), (torch.tensor([[0], [0], [2], [1], [0]]), torch.ones(5, 1))
    >>> torch.allclose(placed(x, decision), experts(x, decision))
    True
    """

    def __init__(self, experts: Experts, placement: Placement) -> None:
        super().__init__()
        self.placement = placement
        self.slots = slot_experts(experts, placement)

    def forward(self, x_TD: Tensor, decision: Routing | tuple[Tensor, Tensor]) -> Tensor:
        """Each token through a slot of each of its experts: [T, D] to [T, D]."""
        given = (decision.topk_ids_TK, decision.topk_scores_TK) if isinstance(decision, Routing) else decision
        ids_TK, scores_TK = given
        return self.slots(x_TD, (slot_ids(self.placement, ids_TK), scores_TK))


def slot_experts(experts: Experts, placement: Placement) -> Experts:
    """New experts, one a slot, each with a copy of its expert's weights; rank r of G holds slots r·S/G and up."""
    if experts.config.num_experts != placement.num_experts:
        raise ValueError(
            f"slot_experts: {experts.config.num_experts} experts, the placement is of {placement.num_experts}"
        )
    config = experts.config.replace(num_experts=placement.num_slots, num_groups=1, top_groups=1)
    slots = Experts(config, experts.implementation).to(experts.down_EDF)
    with torch.no_grad():
        for name, weights in experts.named_parameters():
            slots.get_parameter(name).copy_(weights[list(placement.experts)])
    return slots


def slot_ids(placement: Placement, topk_ids_TK: Tensor) -> Tensor:
    """The slot of each choice, [T, K] int64 where the choices are; an expert's tokens go round its copies."""
    return torch.from_numpy(spread(placement, topk_ids_TK.cpu().numpy())).to(topk_ids_TK.device)
