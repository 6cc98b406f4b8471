"""Experts on several ranks: expert parallelism over `torch.distributed`, on gloo (CPU) and NCCL (GPUs) alike.

`launch(function, ranks, *args, timeout=…)` runs a function on every rank and gives the results, or raises `RankFailed`
(with `.rank`, `.cause`). Inside: `mesh = make_mesh(ep)` is the grid ("dp", "ep");
`spread_experts(model, mesh.get_group("ep"), wire=…, overlap=…)` puts a `ParallelMoE` in the place of every `nn.MoE`.
Beneath it: `Plan.of(ids_TK, num_experts, ranks)` says which rows go where, `swap_counts(sent_R, group)` tells sizes,
and `depart(x, sent, received, group, wire)` starts an exchange whose `.wait()` gives what arrived.
A whole model: `parallelize(model, mesh, wire=…, shard=…)` (FSDP2 with `shard`), then `sum_gradients(model, mesh)` and
`clip_gradients(model, mesh, largest)` after backward; `train_parallel(model, source, config, mesh, folder=…)` is the
whole loop, `ByteSource(corpus, seed, rank=…, world=…)` its text. `save` and `load` of `parallel.checkpoint` (a file for
each expert) go on with any number of ranks, also with a plain model and `mesh=None`; `digest(path)` are its SHA-256.
`python -m torch.distributed.run --nproc-per-node 4 -m labkit.train.parallel --folder …` trains a small model.
`traffic(ids_by_rank, …)` counts rows and bytes without sending (a `Traffic`), `ParallelMoE.traffic()` those of its last
call.
"""

from labkit.train.parallel.checkpoint import digest, load, save
from labkit.train.parallel.exchange import Flight, depart, swap_counts
from labkit.train.parallel.launch import RankFailed, RanksTimedOut, join, launch, meet
from labkit.train.parallel.loop import ParallelResult, ParallelStep, train_parallel
from labkit.train.parallel.mesh import make_mesh, node_groups
from labkit.train.parallel.moe import ParallelMoE, parallel_layers, share_of, spread_experts, weighted_sum
from labkit.train.parallel.plan import Plan, copies, local_experts
from labkit.train.parallel.shard import clip_gradients, mesh_groups, parallelize, sum_gradients
from labkit.train.parallel.source import ByteSource
from labkit.train.parallel.traffic import Traffic, gather_traffic, traffic
from labkit.train.parallel.wire import WIRES, Wire, decode, encode, row_bytes

__all__ = [
    "WIRES",
    "ByteSource",
    "Flight",
    "ParallelMoE",
    "ParallelResult",
    "ParallelStep",
    "Plan",
    "RankFailed",
    "RanksTimedOut",
    "Traffic",
    "Wire",
    "clip_gradients",
    "copies",
    "decode",
    "depart",
    "digest",
    "encode",
    "gather_traffic",
    "join",
    "launch",
    "load",
    "local_experts",
    "make_mesh",
    "meet",
    "mesh_groups",
    "node_groups",
    "parallel_layers",
    "parallelize",
    "row_bytes",
    "save",
    "share_of",
    "spread_experts",
    "sum_gradients",
    "swap_counts",
    "traffic",
    "train_parallel",
    "weighted_sum",
]
