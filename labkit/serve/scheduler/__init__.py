"""Continuous batching: which sequences compute which tokens in the next step. Pure Python, no torch, deterministic."""

from labkit.serve.scheduler.limits import Full, Limits
from labkit.serve.scheduler.scheduler import Scheduler
from labkit.serve.scheduler.sequence import Sequence, Status
from labkit.serve.scheduler.step import Chunk, Load, Step

__all__ = ["Chunk", "Full", "Limits", "Load", "Scheduler", "Sequence", "Status", "Step"]
