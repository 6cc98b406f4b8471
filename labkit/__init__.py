"""Mixture-of-Experts from scratch: the lab kit behind the course.

`import labkit` is cheap: it loads no torch, and each name below only when it is first used.

>>> import labkit
>>> "check" in dir(labkit)
True
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "check": "labkit.course.check",
    "hint": "labkit.course.check",
    "reveal": "labkit.course.check",
    "predict": "labkit.course.predict",
    "recap": "labkit.course.recap",
    "claim": "labkit.course.claims",
    "ledger": "labkit.course.claims",
    "my_model": "labkit.course.mine",
    "doctor": "labkit.core.runtime",
    "MoEConfig": "labkit.core.config",
    "ModelConfig": "labkit.core.config",
    "Routing": "labkit.core.routing",
    "preset": "labkit.core.presets",
}
_ROOMS = ("core", "kernels", "nn", "train", "serve", "show", "course")

__all__ = ["__version__", *_HOMES, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"labkit.{name}")
    raise AttributeError(f"labkit has no {name!r}; it has {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted(__all__)
