"""A whole model on a mesh: experts over "ep", everything else over all ranks, held whole or in shards (FSDP2).

Gradients are sums over ranks, never means: the loss of a rank is its tokens' share of the whole batch's loss, so that
the ranks together step as one process with all tokens would.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from labkit.nn.experts import Experts
from labkit.train.optim import Groups, groups
from labkit.train.parallel.mesh import node_groups
from labkit.train.parallel.moe import parallel_layers, spread_experts
from labkit.train.parallel.wire import Wire


def parallelize(
    model: nn.Module,
    mesh: DeviceMesh,
    *,
    wire: Wire = "same",
    overlap: bool = True,
    shard: bool = False,
    ranks_per_node: int | None = None,
) -> nn.Module:
    """Spread a model over a mesh, in place.

    Args:
        model: the same on every rank (same seed, or same weights), with `nn.MoE` layers.
        mesh: of `make_mesh`. wire, overlap: see `ParallelMoE`.
        shard: hold parameters in shards and gather each block's when it runs (FSDP2, `fully_shard`): experts over "dp",
            all others over all ranks. Without it every rank holds all of both, and `sum_gradients` must be called.

        ranks_per_node: left out, rows go straight to their ranks; else in two hops, once to each node.

    Raises ValueError as `spread_experts`.
    """
    hops = None if ranks_per_node is None else node_groups(mesh, ranks_per_node)
    model = spread_experts(model, mesh.get_group("ep"), wire=wire, overlap=overlap, hops=hops)
    if not shard:
        return model
    from torch.distributed.fsdp import fully_shard

    everywhere = init_device_mesh(mesh.device_type, (mesh.size(),), mesh_dim_names=("all",))
    for _, layer in parallel_layers(model):
        _sums(fully_shard(layer.experts, mesh=mesh["dp"]))
    for block in getattr(model, "layers", ()):
        _sums(fully_shard(block, mesh=everywhere))
    return _sums(fully_shard(model, mesh=everywhere))


def _sums(module: nn.Module) -> nn.Module:
    """Have FSDP add gradients up instead of taking their mean."""
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)
    return module


def expert_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that hold something for each routed expert, in their first dimension."""
    return {p for module in model.modules() if isinstance(module, Experts) for p in module.parameters()}


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sum_gradients(model: nn.Module, mesh: DeviceMesh) -> None:
    """After the backward pass: add up what the ranks found; what FSDP holds is added up already.

    Experts over "dp", everything else over all ranks, each in one exchange.
    """
    experts = expert_parameters(model)
    plain = [p for p in model.parameters() if p.grad is not None and not isinstance(p, DTensor)]
    _sum([p.grad for p in plain if p not in experts], None)
    if mesh["dp"].size() > 1:
        _sum([p.grad for p in plain if p in experts], mesh.get_group("dp"))


def _sum(gradients: list[Tensor], group: dist.ProcessGroup | None) -> None:
    for dtype in sorted({g.dtype for g in gradients}, key=str):
        some = [g for g in gradients if g.dtype == dtype]
        flat = torch.cat([g.reshape(-1) for g in some])
        dist.all_reduce(flat, group=group)
        for gradient, part in zip(some, flat.split([g.numel() for g in some]), strict=True):
            gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def clip_gradients(model: nn.Module, mesh: DeviceMesh, largest: float) -> Tensor:
    """Scale all gradients so that their common norm over the whole mesh is at most `largest`; 0 leaves them alone.

    Returns the norm before, a scalar, the same on every rank. Every rank must call it, after `sum_gradients`.
    """
    squares = torch.zeros((), dtype=torch.float64, device=mesh.device_type)
    gradients = [(local(p.grad), _holders(p, expert, mesh)) for p, expert in _with_gradients(model)]
    for gradient, holders in gradients:
        squares += gradient.double().square().sum() / holders
    dist.all_reduce(squares)
    norm = squares.sqrt()
    if largest:
        factor = (largest / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        for gradient, _ in gradients:
            gradient.mul_(factor.to(gradient.dtype))
    return norm.float()


def _with_gradients(model: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    experts = expert_parameters(model)
    return ((p, p in experts) for p in model.parameters() if p.grad is not None)


def _holders(parameter: nn.Parameter, expert: bool, mesh: DeviceMesh) -> int:
    """How many ranks hold each of a parameter's elements."""
    if isinstance(parameter, DTensor):
        return 1
    return mesh["dp"].size() if expert else mesh.size()


def mesh_groups(model: nn.Module, weight_decay: float) -> Groups:
    """`optim.groups`, cut further so that no group mixes shards of different meshes, which one step cannot update."""
    experts = expert_parameters(model)
    return [
        {**group, "params": some}
        for group in groups(model, weight_decay)
        for wanted in (False, True)
        if (some := [p for p in group["params"] if (p in experts) == wanted])
    ]
