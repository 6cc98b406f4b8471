"""The sparse layer with its experts spread over ranks: decide, send, compute, send back, add up.

Every rank decides for its own tokens, so routers and shared experts are the same everywhere; of the routed experts each
rank has its share. Shared experts are computed while the tokens are under way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from labkit.core.routing import Routing
from labkit.kernels.reference import widen
from labkit.nn.experts import Experts
from labkit.nn.moe import MoE
from labkit.nn.skeleton import without_values
from labkit.train.parallel.exchange import Flight, depart, swap_counts
from labkit.train.parallel.plan import Plan, local_experts
from labkit.train.parallel.traffic import Traffic, gather_traffic
from labkit.train.parallel.wire import Wire, answer_wire, check_wire


class ParallelMoE(MoE):
    """A sparse layer whose `experts` are those of this rank; names and results are `nn.MoE`'s.

    Args:
        whole: the layer with all experts, the same on every rank of the group. Its router and shared experts are taken
            over, and copies of this rank's experts.
        group: the ranks that share the experts; None is this process alone.
        wire: how rows travel, see `parallel.wire`; overlap: whether shared experts run meanwhile.
        hops: left out, every row goes straight to its rank. Or two groups of `node_groups`: first once to each node
            that a token needs, to the rank of the same place there, then on within the node (DeepSeek-V3, section
            3.2.2). Sums are taken in the node before they go back.

    Raises ValueError unless the ranks divide the experts.
    """

    def __init__(
        self,
        whole: MoE,
        group: dist.ProcessGroup | None = None,
        *,
        wire: Wire = "same",
        overlap: bool = True,
        hops: Sequence[dist.ProcessGroup] | None = None,
    ) -> None:
        nn.Module.__init__(self)
        check_wire(wire)
        self.group, self.wire, self.overlap = group, wire, overlap
        self.hops: tuple[dist.ProcessGroup | None, ...] = (group,) if hops is None else tuple(hops)
        self.ranks = dist.get_world_size(group) if group is not None else 1
        self.rank = dist.get_rank(group) if group is not None else 0
        self.config = whole.config
        self.router, self.shared = whole.router, whole.shared
        self.experts = share_of(whole.experts, self.rank, self.ranks)
        self.tokens, self.sent = 0, []  # of the last call: tokens, and for each hop the rows to each of its ranks

    def forward(
        self,
        x: Tensor,
        return_routing: bool = False,
        *,
        layer: int | None = None,
        generator: torch.Generator | None = None,
        ids: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Routing]:
        """As `nn.MoE.forward`, for this rank's tokens, of which there may be none; every rank must call it.

        The record holds the choices of this rank's tokens, counted over all experts.
        """
        labels = {} if ids is None else {"ids": ids}
        routing = self.router(x, layer=layer, generator=generator, **labels)
        x_TD = x.reshape(routing.num_tokens, x.shape[-1])
        self.tokens, self.sent = len(x_TD), []
        journey = self._send(x_TD, routing.topk_ids_TK, routing.topk_scores_TK, self.hops, self.config.num_experts)
        shared = self.shared(x) if self.shared is not None and self.overlap else None
        y = self._come_back(journey, x_TD).reshape(x.shape)
        if self.shared is not None:
            y = y + (shared if self.overlap else self.shared(x))
        return (y, routing) if return_routing else y

    def traffic(self, ranks_per_node: int = 1) -> Traffic:
        """What the last call sent, as all ranks saw it; every rank of the group must ask.

        Args:
            ranks_per_node: neighbours in number that share a node; with two hops, it is known.
        """
        c = self.config
        if len(self.hops) > 1:
            ranks_per_node = dist.get_world_size(self.hops[1])
        return gather_traffic(
            self.tokens, self.sent, self.group, d_model=c.d_model, top_k=c.top_k, wire=self.wire,
            dtype=self.experts.down_EDF.dtype, ranks_per_node=ranks_per_node,
        )  # fmt: skip

    def _send(
        self, x_TD: Tensor, ids_TK: Tensor, scores_TK: Tensor, hops: Sequence[dist.ProcessGroup | None], experts: int
    ) -> Journey:
        """Rows, ids and scores on the first of these hops to `experts` experts, under way when this returns."""
        group = hops[0]
        ranks = dist.get_world_size(group) if group is not None else 1
        plan = Plan.of(ids_TK, experts, ranks)
        received = swap_counts(plan.sent_R, group).tolist()
        sent = plan.sent_R.tolist()
        self.sent.append(sent)
        flights = (
            depart(x_TD[plan.token_M], sent, received, group, self.wire),
            depart(plan.ids_MK, sent, received, group),
            depart(scores_TK[plan.token_M], sent, received, group),
        )
        return Journey(plan, flights, hops[1:], experts // ranks)

    def _come_back(self, journey: Journey, x_TD: Tensor) -> Tensor:
        """On to the next hop, or through this rank's experts; then back, and each token's sums added up: as x."""
        arrived_MD, ids_MK, scores_MK = (flight.wait() for flight in journey.flights)
        if journey.hops:
            further = self._send(arrived_MD, ids_MK, scores_MK, journey.hops, journey.experts)
            y_MD = self._come_back(further, arrived_MD)
        else:
            y_MD = weighted_sum(self.experts, arrived_MD, ids_MK, scores_MK)
        out = journey.flights[0]
        sums_MD = depart(y_MD, out.received, out.sent, out.group, answer_wire(self.wire), self.wire).wait()
        sums_TD = torch.zeros_like(widen(x_TD)).index_add(0, journey.plan.token_M, widen(sums_MD))
        return sums_TD.to(x_TD.dtype)


@dataclass(frozen=True, eq=False)
class Journey:
    """Rows, ids and scores on one hop.

    Args:
        plan: who goes where; flights: the three. hops: what is still to come; experts: of every place reached.
    """

    plan: Plan
    flights: tuple[Flight, Flight, Flight]
    hops: Sequence[dist.ProcessGroup | None]
    experts: int


def weighted_sum(experts: Experts, x_MD: Tensor, ids_MK: Tensor, scores_MK: Tensor) -> Tensor:
    """Each row through those of its K experts that are here, weighted and added up: [M, D].

    Args:
        x_MD: [M, D]; ids_MK: [M, K] integers, −1 where the expert is elsewhere; scores_MK: [M, K].
    """
    row_P, slot_P = (ids_MK >= 0).nonzero(as_tuple=True)
    ids_P1, scores_P1 = ids_MK[row_P, slot_P, None].long(), scores_MK[row_P, slot_P, None]
    y_PD = experts(x_MD[row_P], (ids_P1, scores_P1))
    return torch.zeros_like(widen(x_MD)).index_add(0, row_P, widen(y_PD)).to(x_MD.dtype)


def share_of(whole: Experts, rank: int, ranks: int) -> Experts:
    """The experts that one rank owns, copied out of all of them. Raises ValueError unless the ranks divide them."""
    local = local_experts(whole.config.num_experts, ranks)
    config = whole.config.replace(
        num_experts=local, top_k=1, num_groups=1, top_groups=1, num_shared_experts=0, group_score="max"
    )
    with without_values():
        share = Experts(config, whole.implementation)
    mine = slice(rank * local, (rank + 1) * local)
    state = {name: value[mine].detach().clone() for name, value in whole.state_dict().items()}
    share.load_state_dict(state, assign=True)
    for name, parameter in share.named_parameters():
        parameter.requires_grad_(whole.get_parameter(name).requires_grad)
    return share.train(whole.training)


def parallel_layers(model: nn.Module) -> Iterator[tuple[str, ParallelMoE]]:
    """The sparse layers of a model whose experts are spread, with their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, ParallelMoE))


def spread_experts(model: nn.Module, group: dist.ProcessGroup | None, **options: Any) -> nn.Module:
    """Put a `ParallelMoE` in the place of every `nn.MoE` of a model, in place; a bare `MoE` is answered by its own.

    Args as `ParallelMoE`, options among them. Raises ValueError for a model without sparse layers.
    """
    if isinstance(model, MoE):
        return ParallelMoE(model, group, **options)
    found = [name for name, module in model.named_modules() if isinstance(module, MoE)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no nn.MoE layer; there are no experts to spread")
    for name in found:
        model.set_submodule(name, ParallelMoE(model.get_submodule(name), group, **options))
    return model
