"""Failures of a large job: how often, how often to checkpoint, and how much of the time is work. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

from labkit.core.config import ModelConfig
from labkit.core.parameters import model_params
from labkit.core.whole import need_whole

FAILURES_PER_GPU_HOUR = 419 / (54 * 24 * 16_384)
"""Llama 3 405B: 419 unexpected interruptions in 54 days on 16,384 GPUs (arXiv 2407.21783, section 3.3.4, table 5)."""

STORAGE = 2e12
"""Bytes per second to storage, sustained: 2 TB/s of Llama 3's cluster (arXiv 2407.21783, section 3.3.1)."""

RESTART = 600.0
"""Seconds from a failure to the first step after it: ten minutes, an assumption. Llama 3's text gives no figure."""


@dataclass(frozen=True)
class Reliability:
    """What failures cost a synchronous job that any GPU's failure stops.

    Args:
        gpus: of the job; between: mean seconds between failures; write: seconds to write a checkpoint, in which the job
            stands still; interval: seconds of work between two checkpoints; restart: seconds to begin again.
    """

    gpus: int
    between: float
    write: float
    interval: float
    restart: float

    @property
    def checkpointing(self) -> float:
        """The share of time spent on writing checkpoints."""
        return self.write / (self.interval + self.write)

    @property
    def lost(self) -> float:
        """The share spent on work that is done again: half an interval and half a write for each failure."""
        return min(1.0, (self.interval + self.write) / 2 / self.between)

    @property
    def restarting(self) -> float:
        """The share spent on beginning again."""
        return min(1.0, self.restart / self.between)

    @property
    def effective(self) -> float:
        """The share of the time that is work and stays."""
        return max(0.0, 1 - self.checkpointing - self.lost - self.restarting)


def reliability(
    gpus: int,
    checkpoint_bytes: float,
    *,
    storage: float = STORAGE,
    restart: float = RESTART,
    rate: float = FAILURES_PER_GPU_HOUR,
) -> Reliability:
    """Failures of a job of so many GPUs, with checkpoints at the interval that loses least.

    The interval is Daly's (2006, doi 10.1016/j.future.2004.11.016, equation 37), which for a write δ much shorter than
    the time M between failures is Young's √(2·δ·M) (1974, doi 10.1145/361147.361115).

    Args:
        checkpoint_bytes: of one checkpoint of the whole job; storage: bytes per second that it is written with.
        restart: seconds; rate: failures of a GPU, with its share of everything around it, in an hour.

    Raises ValueError for a number that is not positive.

    >>> r = reliability(16_384, 405e9 * 14)
    >>> round(r.between / 3600, 1), round(r.interval), round(r.effective, 2)
    (3.1, 249, 0.92)
    """
    need_whole("reliability: gpus", gpus)
    given = {"checkpoint_bytes": checkpoint_bytes, "storage": storage, "rate": rate}
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"reliability: {name} is {value}; give a positive number")
    if restart < 0:
        raise ValueError(f"reliability: restart is {restart} seconds; give zero or more")
    between, write = 3600 / (rate * gpus), checkpoint_bytes / storage
    return Reliability(gpus, between, write, daly(write, between), restart)


def daly(write: float, between: float) -> float:
    """The work between two checkpoints that loses least time, in seconds; see `reliability`.

    >>> round(daly(1.0, 20_000.0))
    199
    """
    if write >= 2 * between:
        return between
    half = write / (2 * between)
    return math.sqrt(2 * write * between) * (1 + math.sqrt(half) / 3 + half / 9) - write


def checkpoint_bytes(model: ModelConfig, state_bytes: int = 12) -> float:
    """Bytes of a checkpoint: weights in 16 bits, and master weights and moments of `state_bytes` a parameter."""
    return model_params(model).total * (2.0 + state_bytes)
