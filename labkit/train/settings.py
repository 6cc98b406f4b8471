"""Everything that decides how a run goes, in one frozen, self-checking record."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from labkit.core.config import Config
from labkit.core.whole import need_whole
from labkit.train.optim import OPTIMIZERS
from labkit.train.recompute import POLICIES, Policy
from labkit.train.schedule import Schedule, ScheduleName

PRECISIONS = ("auto", "bfloat16", "float32")
PROGRESS = ("auto", "bar", "plain", "quiet")
# What may differ between a run and its continuation, since it changes no update.
FREE = ("log_every", "validate_every", "save_every", "keep", "progress")


@dataclass(frozen=True)
class TrainConfig(Config):
    """How to train.

    Args:
        steps: optimiser steps; batch: sequences of a micro-batch; sequence: tokens of each.
        accumulate: micro-batches of a step. The loss is a mean over all real labels of a step.
        optimizer: "adamw" or "muon"; learning_rate: its peak; weight_decay, betas, eps, momentum: see `train.optim`.
        clip: the largest norm of all gradients together; 0 leaves them alone.
        schedule, warmup, decay, final: see `train.schedule`, in steps.
        balance_loss: coefficient of `switch_loss`, the mean over layers; bias_rate: step of the loss-free selection
            bias, which the routers must have; z_loss: coefficient of the routers' z-loss, the mean over layers.
        mtp_weight: λ of the multi-token losses (DeepSeek-V3, equation 25); with 0 their modules do not run.
        recompute: "none", "full" or "selective", see `train.recompute`.
        compile: whether torch.compile is used; with experts on `grouped_mm` it wants bfloat16.
        precision: "bfloat16" runs under autocast with float32 weights, "float32" without; "auto" is bfloat16 on a GPU
            that has it.
        device: "auto" takes the GPU if there is one.
        seed: of all generators, set when a run begins.
        log_every, validate_every, save_every: in steps; 0 never, but a run with a folder saves at its end.
        keep: how many checkpoints stay; progress: "auto", "bar", "plain" or "quiet".

    Raises ValueError for what is out of range.

    >>> TrainConfig(steps=10, batch=2, sequence=8, learning_rate=1e-3).tokens_per_step
    16
    """

    steps: int
    batch: int
    sequence: int
    learning_rate: float
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95
    clip: float = 1.0
    schedule: ScheduleName = "cosine"
    warmup: int = 0
    decay: int = 0
    final: float = 0.1
    balance_loss: float = 0.0
    bias_rate: float = 0.0
    z_loss: float = 0.0
    mtp_weight: float = 0.0
    recompute: Policy = "none"
    compile: bool = False
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    device: str = "auto"
    seed: int = 0
    log_every: int = 10
    validate_every: int = 0
    save_every: int = 0
    keep: int = 3
    progress: Literal["auto", "bar", "plain", "quiet"] = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("steps", "batch", "sequence", "accumulate", "log_every", "keep"):
            self._whole(name, 1)
        for name in ("validate_every", "save_every", "warmup", "decay", "seed"):
            self._whole(name, 0)
        for name in ("weight_decay", "clip", "balance_loss", "bias_rate", "z_loss", "mtp_weight"):
            self._number(name, least=0)
        for name in ("learning_rate", "eps"):
            self._number(name, least=0, strictly=True)
        if self.sequence < 2:
            raise ValueError("TrainConfig.sequence is 1; give 2 or more: the last token predicts nothing")
        choices = {"optimizer": OPTIMIZERS, "recompute": POLICIES, "precision": PRECISIONS, "progress": PROGRESS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"TrainConfig.{name} is {getattr(self, name)!r}; choose one of {', '.join(map(str, known))}"
                )
        self.rates  # noqa: B018 (checks the schedule)

    @property
    def rates(self) -> Schedule:
        """The learning rate's shape; a constant one has no final share."""
        final = 1.0 if self.schedule == "constant" else self.final
        return Schedule(self.schedule, self.steps, self.warmup, self.decay, final)

    @property
    def tokens_per_step(self) -> int:
        """Positions that go through the model in one optimiser step."""
        return self.accumulate * self.batch * self.sequence

    def differences(self, other: dict[str, Any]) -> list[str]:
        """The fields that another run's values differ in, those that change no update left out."""
        own = json.loads(json.dumps(self.to_dict()))
        names = [field.name for field in dataclasses.fields(self) if field.name not in FREE]
        return [name for name in names if own[name] != other.get(name)]

    def _whole(self, name: str, least: int) -> None:
        need_whole(f"TrainConfig.{name}", getattr(self, name), least)

    def _number(self, name: str, least: float, strictly: bool = False) -> None:
        value = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < least or (strictly and value == least):
            bound = f"above {least}" if strictly else f"of {least} or more"
            raise ValueError(f"TrainConfig.{name} is {value!r}; give a number {bound}")
