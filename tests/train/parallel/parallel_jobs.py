"""What the ranks do in the tests: a job of module level is found by pickle, and many cases share one start."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from labkit.core.config import MoEConfig
from labkit.nn import MoE
from labkit.train.parallel import Traffic, make_mesh, node_groups, spread_experts


@dataclass(frozen=True)
class Case:
    """One layer, and for every rank its tokens and the gradient of its outputs."""

    name: str
    config: MoEConfig
    state: dict[str, Tensor]
    x_by_rank: tuple[Tensor, ...]
    grad_by_rank: tuple[Tensor, ...]
    options: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def whole(self) -> MoE:
        layer = MoE(self.config).to(self.dtype)
        layer.load_state_dict(self.state)
        return layer


@dataclass(frozen=True)
class Found:
    """What one rank found."""

    y: Tensor
    x_grad: Tensor
    grads: dict[str, Tensor]
    traffic: Traffic


def run_cases(cases: list[Case], device: str = "cpu") -> list[Found]:
    """Forward and backward of every case on this rank's tokens; `near` of its options means two hops."""
    mesh = make_mesh()
    where = torch.device(device, dist.get_rank()) if device == "cuda" else torch.device("cpu")
    return [_one(case, mesh, where) for case in cases]


def _one(case: Case, mesh: DeviceMesh, device: torch.device) -> Found:
    rank, options = dist.get_rank(), dict(case.options)
    near = options.pop("near", None)
    hops = None if near is None else node_groups(mesh, near)
    layer = spread_experts(case.whole().to(device), mesh.get_group("ep"), hops=hops, **options)
    x = case.x_by_rank[rank].to(device).requires_grad_()
    y = layer(x)
    y.backward(case.grad_by_rank[rank].to(device))
    grads = {name: p.grad.cpu() for name, p in layer.named_parameters() if p.grad is not None}
    return Found(y.detach().cpu(), x.grad.cpu(), grads, layer.traffic())


def together(found: list[Found]) -> Found:
    """The ranks' findings as one process would have them: rows and experts in order, other gradients added up."""
    grads = {}
    for name in found[0].grads:
        parts = [one.grads[name] for one in found]
        grads[name] = torch.cat(parts) if name.startswith("experts.") else sum(parts)
    return Found(torch.cat([one.y for one in found]), torch.cat([one.x_grad for one in found]), grads, found[0].traffic)


def alone(case: Case) -> Found:
    """The same in one process, on all tokens together."""
    layer = case.whole()
    x = torch.cat(case.x_by_rank).requires_grad_()
    y = layer(x)
    y.backward(torch.cat(case.grad_by_rank))
    grads = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return Found(y.detach(), x.grad, grads, None)
