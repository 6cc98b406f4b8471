"""Experts on several ranks: expert parallelism over `torch.distributed`, on gloo (CPU) and NCCL (GPUs) alike.

`launch(function, ranks, *args, timeout=…)` runs a function on every rank and gives the results, or raises `RankFailed`
(with `.rank`, `.cause`). Inside: `mesh = make_mesh(ep)` is the grid ("dp", "ep");
`spread_experts(model, mesh.get_group("ep"), wire=…, overlap=…)` puts a `ParallelMoE` in the place of every `nn.MoE`.
Beneath it: `Plan.of(ids_TK, num_experts, ranks)` says which rows go where, `swap_counts(sent_R, group)` tells sizes,
and `depart(x, sent, received, group, wire)` starts an exchange whose `.wait()` gives what arrived.
`traffic(ids_by_rank, …)` counts rows and bytes without sending (a `Traffic`), `ParallelMoE.traffic()` those of its last
call.
"""

from labkit.train.parallel.exchange import Flight, depart, swap_counts
from labkit.train.parallel.launch import RankFailed, RanksTimedOut, join, launch
from labkit.train.parallel.mesh import make_mesh
from labkit.train.parallel.moe import ParallelMoE, parallel_layers, share_of, spread_experts, weighted_sum
from labkit.train.parallel.plan import Plan, copies, local_experts
from labkit.train.parallel.traffic import Traffic, gather_traffic, traffic
from labkit.train.parallel.wire import WIRES, Wire, decode, encode, row_bytes

__all__ = [
    "WIRES",
    "Flight",
    "ParallelMoE",
    "Plan",
    "RankFailed",
    "RanksTimedOut",
    "Traffic",
    "Wire",
    "copies",
    "decode",
    "depart",
    "encode",
    "gather_traffic",
    "join",
    "launch",
    "local_experts",
    "make_mesh",
    "parallel_layers",
    "row_bytes",
    "share_of",
    "spread_experts",
    "swap_counts",
    "traffic",
    "weighted_sum",
]
