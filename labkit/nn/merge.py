"""Experts merged: units aligned first, then averaged by use, as in M-SMoE (Li et al. 2024, arXiv 2310.01334).

The F units of an expert can stand in any order, so equal experts may look different: an average without alignment mixes
units that have nothing to do with each other (Ainsworth et al. 2023, "Git Re-Basin", arXiv 2209.04836). M-SMoE solves
an assignment problem for the order; here the best pairs are taken greedily and then improved by exchanging two at a
time, which needs no further package and is not always the best order.

Legend: E experts, N merged experts, D model width, F expert width, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from labkit.core.routing import Routing
from labkit.nn.experts import Experts
from labkit.nn.model import Transformer
from labkit.nn.prune import most_used, use
from labkit.nn.rebuild import by_layer, check_sparse, rebuilt


@dataclass(frozen=True, eq=False)
class Groups:
    """Which experts of a layer become one.

    Args:
        leaders: N experts that give the order of units, by their numbers.
        group_E: [E] int64 in [0, N), the merged expert that each becomes.
        use_E: [E] floating point, not negative, the weights of the average inside a group.

    Raises ValueError unless each leader is in the group of its own place and some member of every group has weight.
    """

    leaders: tuple[int, ...]
    group_E: Tensor
    use_E: Tensor

    def __post_init__(self) -> None:
        N, E = len(self.leaders), len(self.group_E)
        if len(self.use_E) != E or not all(0 <= e < E for e in self.leaders) or int(self.group_E.max()) >= N:
            raise ValueError(f"Groups has {N} leaders for {E} experts and {len(self.use_E)} weights that do not fit")
        if self.group_E[list(self.leaders)].tolist() != list(range(N)):
            raise ValueError(f"the leaders {self.leaders} are in groups {self.group_E[list(self.leaders)].tolist()}")
        if bool((self.use_E < 0).any()) or not bool(torch.isfinite(self.use_E).all()):
            raise ValueError("Groups.use_E must be finite and not negative")

    @property
    def weights_NE(self) -> Tensor:
        """[N, E] float64: how much each expert counts in each merged one; rows sum to one.

        A group that nothing was routed to is a plain average.
        """
        member_NE = torch.zeros(len(self.leaders), len(self.group_E), dtype=torch.float64, device=self.group_E.device)
        member_NE.scatter_(0, self.group_E[None], 1.0)
        used_NE = member_NE * self.use_E.to(member_NE)
        idle_N1 = used_NE.sum(1, keepdim=True) == 0
        return torch.where(idle_N1, member_NE, used_NE) / torch.where(idle_N1, member_NE, used_NE).sum(1, keepdim=True)


def groups_by_routing(record: Routing, number: int) -> Groups:
    """The most used experts lead; every other joins the leader whose logits rise and fall with its own.

    Similarity is the correlation of logits over tokens, each token's mean over experts taken off first, since a router
    does not feel it (M-SMoE compares router logits too). Raises ValueError unless 1 ≤ number ≤ E.
    """
    logits_TE = record.logits_TE.detach().double()
    logits_TE = logits_TE - logits_TE.mean(1, keepdim=True)
    logits_TE = logits_TE - logits_TE.mean(0)
    unit_TE = logits_TE / logits_TE.norm(dim=0).clamp_min(1e-300)
    return _joined(unit_TE.T @ unit_TE, use(record), number)


def groups_by_weights(experts: Experts, used_E: Tensor, number: int) -> Groups:
    """The most used experts lead; every other joins the leader that it is nearest to once its units are aligned."""
    units_EFX = _units(experts)
    E = len(units_EFX)
    alike_EE = torch.full((E, E), -torch.inf, dtype=torch.float64)
    for leader in most_used(used_E, number):
        for e in range(E):
            apart = units_EFX[leader] - units_EFX[e][align(units_EFX[leader], units_EFX[e])]
            alike_EE[e, leader] = -apart.square().sum()
    return _joined(alike_EE, used_E, number)


def _joined(alike_EE: Tensor, used_E: Tensor, number: int) -> Groups:
    leaders = most_used(used_E, number)
    places = torch.tensor(leaders, device=alike_EE.device)
    group_E = alike_EE[:, places].argmax(1)
    group_E[places] = torch.arange(number, device=alike_EE.device)
    return Groups(leaders, group_E, used_E)


def align(anchor_FX: Tensor, other_FX: Tensor) -> Tensor:
    """The order [F] in which `other`'s units stand beside the anchor's that they resemble: `other[align(…)]`.

    Args:
        anchor_FX, other_FX: [F, X], a row for each unit: all weights that belong to it.

    The sum of the pairs' inner products is made large, so that the squared distance becomes small: pairs are taken from
    the best on, then two are exchanged as long as that helps.

    >>> anchor = torch.eye(3)
    >>> align(anchor, anchor[[2, 0, 1]]).tolist()
    [1, 2, 0]
    """
    alike_FF = anchor_FX.detach().double() @ other_FX.detach().double().T
    F = len(alike_FF)
    order_F, left_FF = torch.empty(F, dtype=torch.int64, device=alike_FF.device), alike_FF.clone()
    for _ in range(F):
        a, b = divmod(int(left_FF.argmax()), F)
        order_F[a] = b
        left_FF[a], left_FF[:, b] = -torch.inf, -torch.inf
    tiny = 1e-12 * float(alike_FF.abs().max())
    for _ in range(4 * F):
        paired_FF = alike_FF[:, order_F]
        own_F = paired_FF.diagonal()
        gain_FF = paired_FF + paired_FF.T - own_F[:, None] - own_F
        a, b = divmod(int(gain_FF.argmax()), F)
        if gain_FF[a, b] <= tiny:
            break
        order_F[[a, b]] = order_F[[b, a]]
    return order_F


def merged(experts: Experts, groups: Groups) -> dict[str, Tensor]:
    """The merged experts' tensors by name, in the old ones' number format: N in place of E."""
    units_EFX, F = _units(experts), experts.config.d_expert
    order_EF = torch.arange(F).repeat(len(units_EFX), 1)
    for e, group in enumerate(groups.group_E.tolist()):
        leader = groups.leaders[group]
        if e != leader:
            order_EF[e] = align(units_EFX[leader], units_EFX[e])
    order_EF = order_EF.to(experts.down_EDF.device)
    both_E2F = torch.cat([order_EF, order_EF + F], 1)
    found = {}
    for name, tensor in experts.state_dict().items():
        if name == "gate_up_E2FD":
            tensor = tensor.gather(1, both_E2F[..., None].expand_as(tensor))
        elif name == "gate_up_bias_E2F":
            tensor = tensor.gather(1, both_E2F)
        elif name == "down_EDF":
            tensor = tensor.gather(2, order_EF[:, None].expand_as(tensor))
        weights_NE = groups.weights_NE.to(tensor.device)
        found[name] = torch.tensordot(weights_NE, tensor.double(), 1).to(tensor.dtype)
    return found


def merge(
    model: Transformer,
    groups: Mapping[int, Groups],
    *,
    rows: Literal["mean", "leader"] = "mean",
    top_k: int | None = None,
) -> Transformer:
    """A smaller model with N experts in every layer, in evaluation mode, whose routers have N rows.

    Args:
        model: of labkit; groups: for every sparse layer, as many in each.
        rows: a merged expert's router row (and biases): the mean of its members' by use, or its leader's.
        top_k: of the new model; None: as before.

    A router with N rows cannot decide as one with E did, not even for equal experts: what K choices of E were are K of
    N now. `merge_behind_routers` keeps the decisions. Raises ValueError for layers that do not fit.
    """
    config = check_sparse(model, "merge")
    if rows not in ("mean", "leader"):
        raise ValueError(f"rows is {rows!r}; choose 'mean' or 'leader'")
    number = _same_number(groups, config.sparse_layers)
    moe = config.moe.replace(num_experts=number, top_k=config.moe.top_k if top_k is None else top_k)
    changed = {}
    for layer, found in groups.items():
        ffn = model.layers[layer].ffn
        changed |= {f"layers.{layer}.ffn.experts.{name}": value for name, value in merged(ffn.experts, found).items()}
        for name, value in ffn.router.state_dict().items():
            mean = torch.tensordot(found.weights_NE.to(value.device), value.double(), 1).to(value.dtype)
            changed[f"layers.{layer}.ffn.router.{name}"] = mean if rows == "mean" else value[list(found.leaders)]
    return rebuilt(model, config.replace(moe=moe), changed)


class MergedExperts(nn.Module):
    """N merged experts behind a router that still knows E: each choice goes to what its expert has become.

    A token that chose two experts of a group passes the merged one with the sum of both scores.

    Args:
        experts: the N merged ones; group_E: [E] int64, see `Groups`.
    """

    def __init__(self, experts: Experts, group_E: Tensor) -> None:
        super().__init__()
        self.merged = experts
        self.register_buffer("group_E", group_E)

    @property
    def implementation(self) -> str:
        """Of the merged experts."""
        return self.merged.implementation

    def forward(self, x_TD: Tensor, decision: Routing) -> Tensor:
        """[T, D] and the router's decision among E experts to [T, D]."""
        return self.merged(x_TD, (self.group_E[decision.topk_ids_TK], decision.topk_scores_TK))


def merge_behind_routers(model: Transformer, groups: Mapping[int, Groups]) -> Transformer:
    """A copy whose routers decide as before among E, and whose experts are merged, as M-SMoE does.

    Merging equal experts changes nothing then. Its configuration still says E (that of its routers), so it is not
    saved by `save_pretrained`, and sizes are counted from its parameters. Raises ValueError for layers that do not fit.
    """
    config = check_sparse(model, "merge_behind_routers")
    number = _same_number(groups, config.sparse_layers)
    new = copy.deepcopy(model)
    for layer, found in groups.items():
        ffn = new.layers[layer].ffn
        moe = config.moe.replace(num_experts=number, top_k=min(number, config.moe.top_k))
        few = Experts(moe, ffn.experts.implementation)
        few.load_state_dict({k: v.contiguous() for k, v in merged(ffn.experts, found).items()}, assign=True)
        ffn.experts = MergedExperts(few.requires_grad_(), found.group_E.clone().to(model.device))
    return new.eval()


def merge_by_use(
    model: Transformer,
    records: Iterable[Routing],
    number: int,
    *,
    alike: Literal["routing", "weights"] = "routing",
    rows: Literal["mean", "leader"] = "mean",
    top_k: int | None = None,
) -> Transformer:
    """`merge` to N experts a layer: the most used lead, and the others join by their routing or by their weights."""
    config = check_sparse(model, "merge")
    found = by_layer(records, config, "merge")
    return merge(model, grouped(model, found.values(), number, alike=alike), rows=rows, top_k=top_k)


def grouped(
    model: Transformer, records: Iterable[Routing], number: int, *, alike: str = "routing"
) -> dict[int, Groups]:
    """Groups for each record's layer. Raises ValueError for another likeness than "routing" or "weights"."""
    if alike not in ("routing", "weights"):
        raise ValueError(f"alike is {alike!r}; choose 'routing' or 'weights'")
    if alike == "routing":
        return {record.layer: groups_by_routing(record, number) for record in records}
    return {r.layer: groups_by_weights(model.layers[r.layer].ffn.experts, use(r), number) for r in records}


def _units(experts: Experts) -> Tensor:
    """[E, F, X] float64, on the CPU: all that belongs to a unit, its gate, up and down weights and its biases."""
    F = experts.config.d_expert
    parts = [experts.gate_up_E2FD[:, :F], experts.gate_up_E2FD[:, F:], experts.down_EDF.mT]
    if experts.gate_up_bias_E2F is not None:
        parts += [experts.gate_up_bias_E2F[:, :F, None], experts.gate_up_bias_E2F[:, F:, None]]
    return torch.cat([part.detach().double().cpu() for part in parts], -1)


def _same_number(groups: Mapping[int, Groups], layers: tuple[int, ...]) -> int:
    if set(groups) != set(layers):
        raise ValueError(f"groups are of layers {sorted(groups)}; the sparse layers are {list(layers)}")
    sizes = {len(found.leaders) for found in groups.values()}
    if len(sizes) > 1:
        raise ValueError(f"groups leave {sorted(sizes)} experts in different layers; a model has as many in each")
    return sizes.pop()
