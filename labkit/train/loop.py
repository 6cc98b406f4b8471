"""The training loop: batches in, a trained model out, and a run that can be killed at any moment.

The host launches work and looks at results at log steps only; between them nothing waits for the device. Left out on
purpose: several devices (see `train.parallel`), float16 with loss scaling, learned stopping.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from labkit.core import runtime
from labkit.core.config import Config
from labkit.core.routing import Routing
from labkit.train import checkpoint, evaluate
from labkit.train.balance import update_bias
from labkit.train.feed import Feed, Micro, Source, batches
from labkit.train.forward import Objective, biased_routers, call, objective
from labkit.train.guard import Diverged, Guard, locate
from labkit.train.interrupt import interruptible
from labkit.train.journal import Journal, Row
from labkit.train.meter import Meter, flops_per_token, peak_memory
from labkit.train.optim import build_optimizer
from labkit.train.pace import Pace, peak_flops
from labkit.train.progress import Progress
from labkit.train.recompute import recompute
from labkit.train.settings import TrainConfig

__all__ = ["Diverged", "Step", "TrainConfig", "TrainResult", "train"]

LOG = "log.jsonl"


@dataclass(frozen=True, eq=False)
class Step:
    """What `on_step` is told; its tensors are still on the device, and reading one waits for it.

    Args:
        step: counted from 1; learning_rate: of this step.
        loss: a scalar, the mean over the step's labels in nats; grad_norm: of all gradients, before clipping.
        routing: the records of the step's last micro-batch, without gradients.
        model: what is trained.
    """

    step: int
    learning_rate: float
    loss: Tensor
    grad_norm: Tensor
    routing: tuple[Routing, ...]
    model: nn.Module


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Args:
        step: steps done; stopped: "finished" or "interrupted".
        rows: the log, see `train`; validation: the last losses by domain, in nats, empty without validation.
        checkpoint: the newest one, or None; notes: what was found on resuming.
    """

    step: int
    stopped: Literal["finished", "interrupted"]
    rows: tuple[Row, ...]
    validation: dict[str, float]
    checkpoint: Path | None
    notes: tuple[str, ...] = ()


def train(
    model: nn.Module,
    source: Source,
    config: TrainConfig,
    *,
    validation: Any = None,
    folder: Path | str | None = None,
    resume: bool | Literal["latest-good"] = True,
    on_step: Callable[[Step], None] | None = None,
    objective: Callable[..., Objective] = objective,
) -> TrainResult:
    """Train a model, or go on training it where a folder says it stopped.

    Args:
        model: `nn.Transformer`, or whatever `train.forward.call` can run; moved to the device, trained in place.
        source: gives batches, see `train.feed.Source`; it is left where training stopped.
        config: how to train.
        validation: batches, or another source, whose losses by domain are logged every `validate_every` steps and at
            the end.
        folder: for checkpoints and for the log, `log.jsonl`. None: nothing is written.
        resume: True goes on from the newest checkpoint; "latest-good" passes over damaged ones, sets them aside and
            says so; False wants a folder without checkpoints.
        on_step: called after every step. A KeyboardInterrupt raised by it, or Ctrl-C, ends the run: the state is
            saved and the result returned.
        objective: called as `forward.objective`; its JSON-able `told`, if any, must stay the same when a run goes on.

    Each line of the log has: step, loss (mean since the last line, nats per token), loss_by_domain, learning_rate,
    grad_norm (before clipping), tokens (positions so far), tokens_per_s, mfu (None off known GPUs, in float32 and
    without a `ModelConfig`), max_violation (of each sparse layer), memory_bytes (the peak), and, where validated,
    validation.

    Raises Diverged at a loss or gradient that is no finite number; ValueError for settings that do not fit; and
    `checkpoint.Damaged` for a damaged checkpoint.
    """
    run = _Run(model, source, config, validation, None if folder is None else Path(folder), on_step, objective)
    run.begin(resume)
    return run.go()


class _Run:
    """A run's state between steps."""

    def __init__(self, model, source, config: TrainConfig, validation, folder: Path | None, on_step, objective) -> None:
        self.objective, self.told = objective, getattr(objective, "told", None)
        self.config, self.model, self.folder = config, model, folder
        self.validation, self.on_step = validation, on_step
        self.device = runtime.device() if config.device == "auto" else torch.device(config.device)
        self.autocast = autocast_dtype(config, self.device)
        model.to(self.device)
        self.optimizer = build_optimizer(
            model, config.optimizer, lr=config.learning_rate, weight_decay=config.weight_decay,
            betas=config.betas, eps=config.eps, momentum=config.momentum,
        )  # fmt: skip
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.routers = biased_routers(model) if config.bias_rate else []
        if config.bias_rate and not self.routers:
            raise ValueError("bias_rate is set, but no router has a selection bias; MoEConfig(selection_bias=True)")
        self.source = source
        self.meter, self.guard = Meter(self.device), Guard(self.device)
        self.step, self.notes, self.saved = 0, [], None
        self.last_validation: dict[str, float] = {}

    # Beginning, and beginning again

    def begin(self, resume: bool | str) -> None:
        if resume not in (True, False, "latest-good"):
            raise ValueError(f"resume is {resume!r}; give True, False or 'latest-good'")
        found = checkpoint.checkpoints(self.folder) if self.folder else []
        if found and resume is False:
            raise ValueError(
                f"{self.folder} holds {found[-1].name} of an earlier run; give another folder, or resume=True"
            )
        runtime.seed_all(self.config.seed)
        if found:
            self._load(found, resume == "latest-good")
        self.feed = Feed(self.source, self.config, self.device)
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.folder / LOG if self.folder else None, self.step)
        for row in self.journal.rows:
            self.last_validation = row.get("validation") or self.last_validation

    def _load(self, found: list[Path], pass_over: bool) -> None:
        for path in reversed(found):
            try:
                loaded = checkpoint.load(path, self.model, self.optimizer, approve=self._same_run)
            except checkpoint.Damaged as error:
                if not pass_over:
                    raise checkpoint.Damaged(
                        f"{error}. train(..., resume='latest-good') sets it aside and goes on from an older one"
                    ) from None
                aside = checkpoint.set_aside(path)
                self.notes.append(f"passed over {path.name}, now {aside.name}: {error}")
                continue
            break
        else:
            raise checkpoint.Damaged(f"no checkpoint in {self.folder} is whole: {'; '.join(self.notes)}")
        self.step, self.saved = loaded.step, path
        self.source.load(loaded.rest["data"])
        self.meter.load(loaded.rest["meter"])

    def _same_run(self, rest: dict[str, Any]) -> None:
        differing = self.config.differences(rest["config"])
        if differing:
            theirs = ", ".join(f"{name}={rest['config'].get(name)!r}" for name in differing)
            raise ValueError(
                f"the run in {self.folder} has {theirs}; give the same configuration, or another folder for another run"
            )
        if rest.get("objective") != self.told:
            raise ValueError(f"the run in {self.folder} has the objective {rest.get('objective')}, not {self.told}")
        if rest["model"] != self._model_config():
            raise ValueError(f"the run in {self.folder} trains a model of another configuration; give another folder")

    def _model_config(self) -> Any:
        config = getattr(self.model, "config", None)
        return json.loads(json.dumps(config.to_dict())) if isinstance(config, Config) else None

    # Going

    def go(self) -> TrainResult:
        config, training = self.config, self.model.training
        self.forward = torch.compile(self.model) if config.compile else self.model
        flops = flops_per_token(self.model, config.sequence)
        self.pace = Pace(config.tokens_per_step, flops, peak_flops(self.device, self.autocast))
        stopped = "finished"
        progress = Progress(config.progress, self.step, config.steps)
        try:
            with progress, recompute(self.model, config.recompute), interruptible() as interrupt:
                for note in self.notes:
                    progress.say(note)
                self.pace.restart(self.step)
                self.model.train()
                while self.step < config.steps and not interrupt.is_set():
                    self._one_step(interrupt)
                    self._between_steps(progress)
                if interrupt.is_set() and self.step < config.steps:
                    stopped = "interrupted"
                self._end()
        finally:
            self.model.train(training)
            self.feed.give_back()
        return TrainResult(
            self.step, stopped, tuple(self.journal.rows), self.last_validation, self.saved, tuple(self.notes)
        )

    def _one_step(self, interrupt: threading.Event) -> None:
        step, micros = self.step + 1, self.feed.take()
        count = sum(micro.count for micro in micros)
        if not count:
            raise ValueError(f"step {step} has no label: every one is −100; look at the source of batches")
        self.guard.keep(step, micros)
        self.rate = self.config.learning_rate * self.config.rates(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        loss, loads, routing = torch.zeros((), device=self.device), [], ()
        for micro in micros:
            result = self._objective(micro, count)
            result.total.backward()
            loss = loss + result.loss_BS.sum() / count
            self.meter.add(result.loss_BS, micro)
            routing = result.routing
            counts = [record.tokens_per_expert_E for record in routing]
            loads = [a + b for a, b in zip(loads, counts, strict=True)] if loads else counts
        self.norm = self._update(step, loss, loads)
        self.step = step
        if step < self.config.steps:
            self.feed.prefetch()
        if self.on_step is not None:
            records = tuple(dataclasses.replace(r, logits_TE=r.logits_TE.detach(),
                                                topk_scores_TK=r.topk_scores_TK.detach()) for r in routing)  # fmt: skip
            try:
                self.on_step(Step(step, self.rate, loss, self.norm, records, self.model))
            except KeyboardInterrupt:
                interrupt.set()

    def _objective(self, micro: Micro, count: int, model: nn.Module | None = None) -> Objective:
        with torch.autocast(self.device.type, self.autocast) if self.autocast else contextlib.nullcontext():
            output = call(model or self.forward, micro.ids_BS, mtp=self.config.mtp_weight > 0)
        return self.objective(output, micro, self.config, count)

    def _update(self, step: int, loss: Tensor, loads: list[Tensor]) -> Tensor:
        """Clip, and move parameters and biases unless something was not finite; gives the norm."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip, norm)
        skip = self.guard.watch(step, loss, norm)
        self.optimizer.found_inf = skip
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.meter.add_loads(loads)
        with torch.no_grad():
            for router, load_E in zip(self.routers, loads, strict=False):  # modules that did not run come last
                bias_E = router.expert_bias_E
                moved_E = update_bias(bias_E, load_E, rate=self.config.bias_rate)
                bias_E.copy_(torch.where(skip > 0, bias_E, moved_E))
        return norm

    # Between steps: looking, saving

    def _between_steps(self, progress: Progress) -> None:
        config, step = self.config, self.step
        progress.step()
        last = step == config.steps
        validates = self.validation is not None and (last or _due(step, config.validate_every))
        if validates or last or _due(step, config.log_every):
            self._check()
            row = self._row()
            if validates:
                self.last_validation = row["validation"] = self._validate()
            self.journal.write(row)
            progress.log(row)
            self.pace.restart(self.step)
        if self.folder and _due(step, config.save_every) and not last:
            self._save()

    def _row(self) -> Row:
        norm = float(self.norm)  # waits for the device, so that the pace is true
        speed = self.pace.tokens_per_second(self.step)
        row = {
            "step": self.step, "loss": self.meter.loss(), "loss_by_domain": self.meter.by_domain(),
            "learning_rate": self.rate, "grad_norm": norm, "tokens": self.step * self.config.tokens_per_step,
            "tokens_per_s": speed, "mfu": self.pace.mfu(speed), "max_violation": self.meter.violations(),
            "memory_bytes": peak_memory(self.device),
        }  # fmt: skip
        self.meter.clear()
        return row

    def _validate(self) -> dict[str, float]:
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            some = batches(self.validation, self.config.batch, self.config.sequence)
            return evaluate.losses(self.model, some, autocast=self.autocast, names=getattr(self.source, "domains", ()))

    def _check(self) -> None:
        bad = self.guard.first_bad_step()
        if not bad:
            return
        micros = self.guard.micros(bad)
        count = sum(micro.count for micro in micros)
        micro, domains, where = locate(self.model, micros, lambda m: self._objective(m, count, self.model))
        raise Diverged(bad, micro, domains, where, self.saved)

    def _save(self) -> None:
        started = time.perf_counter()
        self._check()
        rest = {
            "config": self.config.to_dict(), "model": self._model_config(), "data": self.feed.state,
            "meter": self.meter.state(), "objective": self.told,
        }  # fmt: skip
        self.saved = checkpoint.save(self.folder, self.step, self.model, self.optimizer, rest, keep=self.config.keep)
        self.pace.pause(time.perf_counter() - started)

    def _end(self) -> None:
        self._check()
        if self.folder and (self.saved is None or not self.saved.name.endswith(f"-{self.step:08d}")):
            self._save()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast, or None. Raises Unavailable for bfloat16 on a GPU without it."""
    if config.precision == "float32":
        return None
    if config.precision == "bfloat16":
        runtime.require("bf16")
        return torch.bfloat16
    return torch.bfloat16 if device.type == "cuda" and runtime.capability("bf16").available else None
