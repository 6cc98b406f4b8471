"""Small training runs on several ranks, and the same by the loop of one process, which knows nothing of ranks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from labkit.core.config import ModelConfig, MoEConfig
from labkit.nn import Transformer
from labkit.train import data, loop
from labkit.train.parallel import (
    ByteSource,
    checkpoint,
    digest,
    load,
    make_mesh,
    meet,
    node_groups,
    parallelize,
    save,
    train_parallel,
)
from labkit.train.parallel.shard import mesh_groups
from labkit.train.settings import TrainConfig

MOE = MoEConfig(
    d_model=16, d_expert=8, num_experts=4, top_k=2, score_fn="sigmoid", selection_bias=True, num_shared_experts=1
)
MODEL = ModelConfig(
    "small", data.VOCAB_SIZE, 3, 16, num_heads=2, num_kv_heads=1, head_dim=8, moe=MOE, num_dense_layers=1, d_dense=24
)


def corpus() -> data.Corpus:
    return data.corpus(("code", "arithmetic"), bytes_per_domain=9_000)


def model(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(MODEL)


def config(**changes) -> TrainConfig:
    fields = {
        "steps": 4, "batch": 4, "sequence": 12, "accumulate": 2, "learning_rate": 1e-2, "clip": 0.5, "warmup": 2,
        "balance_loss": 0.1, "z_loss": 0.01, "bias_rate": 0.01, "log_every": 1, "device": "cpu", "progress": "quiet",
        "precision": "float32",
    }  # fmt: skip
    return TrainConfig(**{**fields, **changes})


def run_alone(settings: TrainConfig, device: str = "cpu") -> tuple[list[dict], dict[str, torch.Tensor]]:
    """`train.loop` in one process: its log and the trained weights."""
    trained = model()
    result = loop.train(trained, ByteSource(corpus()), settings.replace(device=device))
    return list(result.rows), {name: p.detach().cpu() for name, p in trained.named_parameters()}


def run_all(settings: TrainConfig, grids: list[tuple[int, bool]], folder: str, device: str = "cpu") -> list[tuple]:
    """Runs on this job's ranks, one for each (ep, shard): the log and the checkpoint's path."""
    found = []
    for ep, shard in grids:
        mesh = make_mesh(ep)
        trained = parallelize(model().to(device), mesh, shard=shard)
        source = ByteSource(corpus(), rank=dist.get_rank(), world=dist.get_world_size())
        where = Path(folder) / f"{dist.get_world_size()}-{ep}-{shard}"
        result = train_parallel(trained, source, settings, mesh, folder=where)
        found.append((list(result.rows), result.checkpoint))
    return found


def resave(path: Path, folder: Path, ep: int, shard: bool) -> dict[str, str]:
    """Load into another model, write it again, and tell the sums of the files."""
    mesh = make_mesh(ep)
    other = parallelize(model(seed=7), mesh, shard=shard)
    optimizer = torch.optim.AdamW(mesh_groups(other, 0.1), fused=True)
    loaded = load(path, other, optimizer, mesh)
    return digest(save(folder, loaded.step, other, optimizer, loaded.rest, mesh))


def die_at(settings: TrainConfig, folder: str, step: int, rank: int) -> None:
    """Train until a rank is killed in the middle of a step's forward pass."""
    mesh = make_mesh()
    trained = parallelize(model(), mesh)
    source = ByteSource(corpus(), rank=dist.get_rank(), world=dist.get_world_size())
    calls = []

    def count(*_) -> None:
        calls.append(None)
        if dist.get_rank() == rank and len(calls) == (step - 1) * settings.accumulate + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    trained.layers[1].ffn.experts.register_forward_pre_hook(count)
    train_parallel(trained, source, settings, mesh, folder=folder)


def refusals(folder: str) -> list[str]:
    """What ranks are told, one after another: each error's words, or "nothing" where there was none."""
    rank, ranks, mesh = dist.get_rank(), dist.get_world_size(), make_mesh()
    trained, source = parallelize(model(), mesh), ByteSource(corpus(), rank=rank, world=ranks)
    optimizer = torch.optim.AdamW(mesh_groups(trained, 0.1))

    def late() -> None:
        time.sleep(1.5 * rank)
        meet("the meeting", timeout=0.5)

    def cannot_write() -> None:
        plain = checkpoint.write_tensors
        if rank == 1:
            checkpoint.write_tensors = lambda path, tensors: (_ for _ in ()).throw(OSError("no space left on device"))
        try:
            save(folder, 9, trained, optimizer, {}, mesh)
        finally:
            checkpoint.write_tensors = plain

    def wild() -> None:
        train_parallel(trained, source, config(learning_rate=1e20, clip=0.0), mesh)

    tries = [
        lambda: make_mesh(3),
        lambda: make_mesh(0),
        lambda: node_groups(mesh, 3),
        lambda: train_parallel(trained, source, config(optimizer="muon"), mesh),
        lambda: train_parallel(trained, source, config(batch=3), mesh),
        lambda: save(folder, 1, trained, optimizer, {}, mesh, keep=0),
        lambda: save(folder, 1, trained, optimizer, {"config": {}, "model": None}, mesh),
        lambda: train_parallel(trained, source, config(), mesh, folder=folder),
        cannot_write,
        wild,
        late,
    ]
    return [_words(one) for one in tries]


def _words(function: Callable[[], object]) -> str:
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"
