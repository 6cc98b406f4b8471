"""Builds, in a worker's child, engines on a GPU."""

from __future__ import annotations

import torch
from paged_models import build as model_of

from labkit.serve.engine import Engine
from labkit.serve.scheduler import Limits


def build(family: str, dtype: str, limits: Limits, hold: int = 0) -> Engine:
    """A family's small model; `hold` bytes of the GPU are held besides, so that two children could not live at once."""
    engine = Engine(model_of(family, getattr(torch, dtype)).cuda(), limits=limits)
    engine.held = torch.empty(hold, dtype=torch.uint8, device="cuda")
    return engine
