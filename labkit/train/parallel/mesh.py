"""Ranks as a grid: `dp` rows hold copies of the experts, `ep` columns share them out.

Every rank has tokens of its own, so for all that is no expert the whole grid is data-parallel.
"""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from labkit.core.whole import need_whole


def make_mesh(ep: int | None = None, device: str | None = None) -> DeviceMesh:
    """The grid over all ranks of the job, with dimensions "dp" and "ep"; neighbours in number share experts.

    Args:
        ep: ranks that share the experts, a divisor of all ranks; left out, all of them.
        device: "cpu" or "cuda"; left out, as the backend wants.

    Raises ValueError where the job is not set up or cannot be cut so.
    """
    if not dist.is_initialized():
        raise ValueError("torch.distributed is not set up; call this inside `launch` or under torchrun")
    ranks = dist.get_world_size()
    ep = ranks if ep is None else ep
    need_whole("ep", ep, 1)
    if ranks % ep:
        raise ValueError(f"ep is {ep}, which does not divide the {ranks} ranks")
    device = device or ("cuda" if dist.get_backend() == "nccl" else "cpu")
    return init_device_mesh(device, (ranks // ep, ep), mesh_dim_names=("dp", "ep"))


def node_groups(mesh: DeviceMesh, ranks_per_node: int) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """For a layer of two hops, this rank's groups: the same place in each node, and its own node.

    Args:
        mesh: of `make_mesh`; ranks_per_node: neighbours in number that share a node, a divisor of "ep".

    Every rank must call it. Raises ValueError for another number.
    """
    dp, ep = mesh["dp"].size(), mesh["ep"].size()
    need_whole("ranks_per_node", ranks_per_node, 1)
    if ep % ranks_per_node:
        raise ValueError(f"ranks_per_node is {ranks_per_node}, which does not divide the {ep} ranks of ep")
    shape = (dp, ep // ranks_per_node, ranks_per_node)
    nodes = init_device_mesh(mesh.device_type, shape, mesh_dim_names=("dp", "node", "near"))
    return nodes.get_group("node"), nodes.get_group("near")
