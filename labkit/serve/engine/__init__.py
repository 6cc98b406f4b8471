"""The engine: one step is schedule, run, sample. What is asked and answered is plain data and loads no torch.

Each name is loaded when it is first used, so that the server's process, whose engine lives elsewhere, stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "AsyncEngine": "async_engine",
    "Backend": "backend",
    "Completion": "delta",
    "Delta": "delta",
    "Engine": "engine",
    "Health": "backend",
    "Info": "backend",
    "Result": "delta",
    "SamplingParams": "params",
    "StepReport": "delta",
    "Stream": "backend",
    "TokenLogprob": "delta",
    "Unavailable": "backend",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"labkit.serve.engine has no {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
