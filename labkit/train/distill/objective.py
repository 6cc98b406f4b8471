"""What a distilled student minimises: a place for the training loop's own objective (`train.forward.objective`)."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from labkit.core.config import Config
from labkit.nn.model import evaluating
from labkit.train.crossentropy import IGNORED, token_losses
from labkit.train.distill.divergence import check_numbers, divergences
from labkit.train.distill.fingerprint import fingerprint
from labkit.train.distill.sparse import sparse_divergences
from labkit.train.feed import Micro
from labkit.train.forward import Forward, Objective, call, router_losses
from labkit.train.settings import TrainConfig


@dataclass(frozen=True)
class DistillConfig(Config):
    """How a student learns from its teacher: hard · cross-entropy + (1 − hard) · T² · divergence, at every position.

    Args:
        beta: 0 forward KL, 1 reverse KL, between them generalized Jensen–Shannon (`divergence.divergences`).
        temperature: T of both models' distributions; T² keeps the gradient's size when T changes, so that `hard` means
            the same at every T (Hinton et al. 2015, section 2). TRL's GKD leaves this factor out.
        hard: the share of the cross-entropy of the text's own next token, in [0, 1].

    Raises ValueError for what is out of range.

    >>> DistillConfig(temperature=2.0).hard
    0.0
    """

    beta: float = 0.0
    temperature: float = 1.0
    hard: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self.beta, self.temperature)
        if not 0 <= self.hard <= 1 or math.isnan(self.hard):
            raise ValueError(f"DistillConfig.hard is {self.hard}; give a share from 0 to 1")


class Distillation:
    """An objective for `loop.train`: what a micro-batch adds when a teacher stands beside the text.

    Args:
        config: the losses and their weights.
        teacher: called as `train.forward.call` does, on the student's device, in evaluation mode and without gradients;
            None: every batch brings what was kept of one (`cache.CachedTeacher`).

    `told` says what must be the same when a run goes on.
    """

    def __init__(self, config: DistillConfig, teacher: nn.Module | None = None) -> None:
        self.config, self.teacher = config, teacher
        whose = "of the batches" if teacher is None else fingerprint(teacher)
        self.told: dict[str, Any] = {**config.to_dict(), "teacher": whose}

    def __call__(self, output: Forward, micro: Micro, config: TrainConfig, count: int) -> Objective:
        """The losses of a micro-batch, divided by the labels of the whole step; the routers' losses as ever.

        Raises ValueError for multi-token modules, which no teacher speaks about here, and for a batch or a teacher that
        does not fit.
        """
        if config.mtp_weight:
            raise ValueError("mtp_weight is set, but distillation teaches the next token alone; set it to 0")
        with torch.autocast(output.logits.device.type, enabled=False):
            loss_BS = self.losses(output.logits, micro)
            total = loss_BS.sum() / count + router_losses(output.routing, config) / config.accumulate
        return Objective(total, loss_BS.detach(), output.routing)

    def losses(self, logits_BSV: Tensor, micro: Micro) -> Tensor:
        """The mixed loss of every position [B, S], in nats for T = 1; 0 where nothing is learned."""
        hard, soft = self.config.hard, 1 - self.config.hard
        loss_BS = 0.0
        if hard:
            loss_BS = hard * token_losses(logits_BSV, micro.target_BS)
        if soft:
            loss_BS = loss_BS + soft * self.config.temperature**2 * self._divergences(logits_BSV, micro)
        return loss_BS

    def _divergences(self, logits_BSV: Tensor, micro: Micro) -> Tensor:
        beta, T, mask_BS = self.config.beta, self.config.temperature, micro.target_BS != IGNORED
        if self.teacher is not None:
            teacher_BSV = teacher_logits(self.teacher, micro.ids_BS, logits_BSV.dtype)
            return divergences(logits_BSV, teacher_BSV, beta=beta, temperature=T, mask_BS=mask_BS)
        if micro.teacher is None:
            raise ValueError("there is no teacher and the batch brings none; give one, or batches of a CachedTeacher")
        if micro.teacher.temperature != T:
            raise ValueError(
                f"the temperature is {T}, but the teacher's logits were kept at {micro.teacher.temperature}, where the "
                "mass of the rest was taken; write a cache at this temperature"
            )
        return sparse_divergences(logits_BSV, micro.teacher, beta=beta, mask_BS=mask_BS)


@torch.no_grad()
def teacher_logits(teacher: nn.Module, ids_BS: Tensor, like: torch.dtype | None = None) -> Tensor:
    """A teacher's logits [B, S, V], in evaluation mode; under autocast where the student's (`like`) are short."""
    where = next(teacher.parameters()).device
    if where != ids_BS.device:
        raise ValueError(f"the teacher is on {where}, the batch on {ids_BS.device}; move the teacher there")
    short = like in (torch.bfloat16, torch.float16)
    with evaluating(teacher), torch.autocast(where.type, like) if short else contextlib.nullcontext():
        return call(teacher, ids_BS).logits
