"""The learning rate as a pure function of the step: nothing to save, nothing to resume.

A step is counted from 1; the factor of step s is what the optimiser's s-th update is multiplied by. A warm-up of W
steps rises linearly, s / W, so that no update is wasted on a rate of zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["cosine", "wsd", "constant"]
SCHEDULES = ("cosine", "wsd", "constant")


@dataclass(frozen=True)
class Schedule:
    """A learning rate's shape.

    Args:
        name: "cosine": warm-up, then half a cosine down to `final` (SGDR, Loshchilov and Hutter 2016, arXiv
            1608.03983, without restarts). "wsd": warm-up, a stable stretch, then a decay over the last `decay` steps
            (MiniCPM, Hu et al. 2024, arXiv 2404.06395), here linear. "constant": warm-up, then 1.
        steps: of the whole run.
        warmup: W, in steps.
        decay: steps of WSD's last stretch; 0 for the others.
        final: the factor at the last step, as a share of the peak; "constant" takes 1 only.

    Raises ValueError for a name or number out of range.

    >>> cosine = Schedule("cosine", steps=4, warmup=2)
    >>> [round(cosine(step), 3) for step in (1, 2, 3, 4)]
    [0.5, 1.0, 0.5, 0.0]
    >>> [Schedule("wsd", steps=6, warmup=1, decay=2)(step) for step in (1, 4, 5, 6)]
    [1.0, 1.0, 0.5, 0.0]
    """

    name: ScheduleName
    steps: int
    warmup: int = 0
    decay: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(f"the schedule is {self.name!r}; choose one of {', '.join(SCHEDULES)}")
        if self.steps < 1 or self.warmup < 0 or self.decay < 0 or self.warmup + self.decay > self.steps:
            raise ValueError(
                f"a schedule of {self.steps} steps has a warm-up of {self.warmup} and a decay of {self.decay}; give "
                "whole numbers that fit into the steps"
            )
        if not 0 <= self.final <= 1:
            raise ValueError(f"final is {self.final}; give a share of the peak, from 0 to 1")
        if self.name == "wsd" and not self.decay:
            raise ValueError("wsd has a decay of 0 steps, which is 'constant'; give 1 or more")
        if self.name != "wsd" and self.decay:
            raise ValueError(f"decay is {self.decay}, but only 'wsd' has such a stretch; leave it at 0")

    def __call__(self, step: int) -> float:
        """The factor of this step, counted from 1. Raises ValueError for a step outside the run."""
        if not 1 <= step <= self.steps:
            raise ValueError(f"step is {step}; this schedule has steps 1 to {self.steps}")
        if step <= self.warmup:
            return step / self.warmup
        if self.name == "constant":
            return 1.0
        length = self.steps - self.warmup if self.name == "cosine" else self.decay
        done = max(0, step - (self.steps - length)) / length
        shape = (1 + math.cos(math.pi * done)) / 2 if self.name == "cosine" else 1 - done
        return self.final + (1 - self.final) * shape
