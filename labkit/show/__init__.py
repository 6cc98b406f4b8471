"""What a learner looks at: cards, figures and widgets. Imports only `core`; nothing heavy until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_VIEWS = {  # the function that makes a view, by the module that it lives in
    "ablation": "ablation",
    "balance_over_training": "training",
    "batch_timeline": "batch_timeline",
    "coactivation_map": "coactivation",
    "contexts": "contexts",
    "flow": "flow",
    "lift_map": "lift",
    "load_map": "load_map",
    "ribbon": "ribbon",
    "tiles": "tiles",
}

_HOMES = {
    "BatchTimeline": "labkit.show.widgets.batch_timeline",
    "Card": "labkit.show.cards",
    "Microscope": "labkit.show.widgets.microscope",
    "microscope": "labkit.show.widgets.microscope",
    "Planner": "labkit.show.widgets.planner",
    "planner": "labkit.show.widgets.planner",
} | {name: f"labkit.show.widgets.{module}" for name, module in _VIEWS.items()}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"labkit.show has no {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
