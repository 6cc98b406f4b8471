"""An OpenAI-compatible server (FastAPI): what is asked is checked before it is run, and no request can break another.

Each name is loaded when it is first used, so that settings can be read without FastAPI.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {"Settings": "settings", "Text": "text", "create_app": "app", "serve": "launch"}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"labkit.serve.server has no {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
