"""What a learner looks at: cards, figures and widgets. Imports only `core`; nothing heavy until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Card": "labkit.show.cards",
    "Microscope": "labkit.show.widgets.microscope",
    "microscope": "labkit.show.widgets.microscope",
    "Planner": "labkit.show.widgets.planner",
    "planner": "labkit.show.widgets.planner",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"labkit.show has no {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
