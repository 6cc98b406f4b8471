"""The training loop on several ranks: `train.loop`'s step, with tokens split over ranks and experts over "ep".

Left out on purpose (`train.loop` has them for one process): Muon, torch.compile, recomputation, multi-token losses,
validation, finding the layer that a NaN came from.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import AdamW

from labkit.core.config import Config
from labkit.train.balance import update_bias
from labkit.train.checkpoint import checkpoints
from labkit.train.feed import Micro, Source
from labkit.train.forward import biased_routers, call
from labkit.train.journal import Journal, Row
from labkit.train.loop import autocast_dtype
from labkit.train.pace import Pace
from labkit.train.parallel import checkpoint
from labkit.train.parallel.launch import meet
from labkit.train.parallel.losses import count_loads, share
from labkit.train.parallel.shard import clip_gradients, mesh_groups, sum_gradients
from labkit.train.progress import Progress
from labkit.train.settings import TrainConfig

UNSUPPORTED = {"optimizer": "adamw", "compile": False, "recompute": "none", "mtp_weight": 0.0, "validate_every": 0}


@dataclass(frozen=True)
class ParallelResult:
    """How a run ended.

    Args:
        step: steps done; rows: the log of rank 0, of other ranks since the last start.
        checkpoint: the newest one, or None.
    """

    step: int
    rows: tuple[Row, ...]
    checkpoint: Path | None


@dataclass(frozen=True)
class ParallelStep:
    """What `on_step` is told on every rank: the step from 1, the whole batch's loss in nats, the norm, the model."""

    step: int
    loss: float
    grad_norm: float
    model: nn.Module


def train_parallel(
    model: nn.Module,
    source: Source,
    config: TrainConfig,
    mesh: DeviceMesh,
    *,
    folder: Path | str | None = None,
    on_step: Callable[[ParallelStep], None] | None = None,
) -> ParallelResult:
    """Train a model on all ranks of a mesh, or go on where the folder's newest checkpoint stopped.

    Args:
        model: after `parallelize`. source: gives this rank's rows of every batch.
        config: `batch` counts sequences of all ranks together, so a run goes on alike on fewer ranks.
        mesh: of `make_mesh`. folder: for checkpoints and `log.jsonl`, the same for all ranks; None: nothing is written.
        on_step: called on every rank after every step.

    Raises ValueError for settings that are not supported here and a batch that the ranks do not divide,
    FloatingPointError at a loss or norm that is not finite, before anything was moved by it, and
    `checkpoint.Damaged`.
    """
    run = _Run(model, source, config, mesh, None if folder is None else Path(folder))
    return run.go(on_step)


class _Run:
    """A run's state between steps, on one rank."""

    def __init__(
        self, model: nn.Module, source: Source, config: TrainConfig, mesh: DeviceMesh, folder: Path | None
    ) -> None:
        for name, only in UNSUPPORTED.items():
            if getattr(config, name) != only:
                raise ValueError(f"{name} is {getattr(config, name)!r}; on several ranks only {only!r} is supported")
        if config.batch % mesh.size():
            raise ValueError(f"batch is {config.batch} sequences, which {mesh.size()} ranks cannot share evenly")
        self.model, self.source, self.config, self.mesh, self.folder = model, source, config, mesh, folder
        self.first, self.mine = dist.get_rank() == 0, config.batch // mesh.size()
        self.device = torch.device(
            mesh.device_type, torch.cuda.current_device() if mesh.device_type == "cuda" else None
        )
        self.autocast = autocast_dtype(config, self.device)
        self.optimizer = AdamW(
            mesh_groups(model, config.weight_decay), lr=config.learning_rate, betas=config.betas, eps=config.eps,
            fused=True,
        )  # fmt: skip
        self.routers = biased_routers(model) if config.bias_rate else []
        if config.bias_rate and not self.routers:
            raise ValueError("bias_rate is set, but no router has a selection bias; MoEConfig(selection_bias=True)")
        self.step, self.saved = 0, None

    def go(self, on_step: Callable[[ParallelStep], None] | None) -> ParallelResult:
        config, training = self.config, self.model.training
        self._begin()
        pace = Pace(config.tokens_per_step, None, None)
        pace.restart(self.step)
        journal = Journal(self.folder / "log.jsonl" if self.folder and self.first else None, self.step)
        progress = Progress(config.progress if self.first else "quiet", self.step, config.steps)
        self.model.train()
        try:
            with progress:
                while self.step < config.steps:
                    loss, norm, loads_LE = self._one_step()
                    progress.step()
                    if on_step is not None:
                        on_step(ParallelStep(self.step, loss, norm, self.model))
                    if self.step == config.steps or self.step % config.log_every == 0:
                        journal.write(self._row(loss, norm, loads_LE, pace))
                        progress.log(journal.rows[-1])
                    if self.step == config.steps or (config.save_every and self.step % config.save_every == 0):
                        self._save()
        finally:
            self.model.train(training)
        return ParallelResult(self.step, tuple(journal.rows), self.saved)

    def _begin(self) -> None:
        if self.folder is None:
            return
        if self.first:
            self.folder.mkdir(parents=True, exist_ok=True)
        meet("the start of the run")
        if found := checkpoints(self.folder):
            loaded = checkpoint.load(found[-1], self.model, self.optimizer, self.mesh, approve=self._same_run)
            self.step, self.saved = loaded.step, found[-1]
            self.source.load(loaded.rest["data"])

    def _same_run(self, rest: dict[str, Any]) -> None:
        if differing := self.config.differences(rest["config"]):
            theirs = ", ".join(f"{name}={rest['config'].get(name)!r}" for name in differing)
            raise ValueError(f"the run in {self.folder} has {theirs}; give the same configuration, or another folder")
        if rest["model"] != self._model_config():
            raise ValueError(f"the run in {self.folder} trains a model of another configuration; give another folder")

    def _model_config(self) -> Any:
        config = getattr(self.model, "config", None)
        return json.loads(json.dumps(config.to_dict())) if isinstance(config, Config) else None

    def _one_step(self) -> tuple[float, float, Tensor]:
        config, step = self.config, self.step + 1
        torch.manual_seed(((config.seed * 1_000_003 + step) * 4_099 + dist.get_rank()) % 2**63)
        micros = [Micro.of(self.source.next(self.mine, config.sequence), self.device) for _ in range(config.accumulate)]
        counts = torch.tensor(sum(micro.count for micro in micros), device=self.device)
        dist.all_reduce(counts)
        if not counts:
            raise ValueError(f"step {step} has no label: every one is −100; look at the source of batches")
        loss, loads_LE = torch.zeros((), dtype=torch.float64, device=self.device), None
        for micro in micros:
            with torch.autocast(self.device.type, self.autocast) if self.autocast else contextlib.nullcontext():
                output = call(self.model, micro.ids_BS)
            now_LE, tokens = count_loads(output.routing)
            total, part = share(output, micro, config, int(counts), now_LE, tokens)
            total.backward()
            loss += part
            loads_LE = now_LE if loads_LE is None else loads_LE + now_LE
        dist.all_reduce(loss)
        return self._update(step, float(loss), loads_LE)

    def _update(self, step: int, loss: float, loads_LE: Tensor) -> tuple[float, float, Tensor]:
        """Add up, clip, move; every rank sees the same loss and norm, so all go on or none."""
        config = self.config
        sum_gradients(self.model, self.mesh)
        norm = float(clip_gradients(self.model, self.mesh, config.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            newest = "there is no checkpoint" if self.saved is None else f"the newest checkpoint is {self.saved.name}"
            raise FloatingPointError(f"step {step} has loss {loss} and gradient norm {norm}; {newest}")
        self.rate = config.learning_rate * config.rates(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for router, load_E in zip(self.routers, loads_LE, strict=False):
                router.expert_bias_E.copy_(update_bias(router.expert_bias_E, load_E, rate=config.bias_rate))
        self.step = step
        return loss, norm, loads_LE

    def _row(self, loss: float, norm: float, loads_LE: Tensor, pace: Pace) -> Row:
        worst = [float(load.max() / load.double().mean() - 1) for load in loads_LE]
        row = {
            "step": self.step, "loss": loss, "learning_rate": self.rate, "grad_norm": norm,
            "tokens": self.step * self.config.tokens_per_step, "tokens_per_s": pace.tokens_per_second(self.step),
            "mfu": None, "max_violation": worst, "ranks": self.mesh.size(),
        }  # fmt: skip
        pace.restart(self.step)
        return row

    def _save(self) -> None:
        if self.folder is None:
            return
        meet(f"the checkpoint of step {self.step}")
        rest = {"config": self.config.to_dict(), "model": self._model_config(), "data": self.source.state()}
        self.saved = checkpoint.save(
            self.folder, self.step, self.model, self.optimizer, rest, self.mesh, keep=self.config.keep
        )
