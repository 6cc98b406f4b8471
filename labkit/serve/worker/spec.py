"""How the child builds its engine: a name and options, since an engine itself does not travel between processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from importlib import import_module
from typing import Any

Progress = Callable[[float, str], None]
FOLDER = "labkit.serve.engine.loading:load"


@dataclass(frozen=True)
class Spec:
    """A function that makes an engine, and what it is called with.

    Args:
        target: `"module:name"`, and the name may have dots; by default what loads a folder, given as `folder`.
        options: keyword arguments; they are pickled. If the function takes `on_progress`, it also gets a function of a
            share (0 to 1) and a text, to call while it loads.

    Raises ValueError for a target of another form.

    >>> Spec("fractions:Fraction", {"numerator": 3}).build()
    Fraction(3, 1)
    """

    target: str = FOLDER
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module, colon, name = self.target.partition(":")
        if not (module and colon and name):
            raise ValueError(f'target is {self.target!r}; give "module:function"')
        object.__setattr__(self, "options", dict(self.options))

    def build(self, on_progress: Progress | None = None) -> Any:
        """Call it. Raises whatever it raises."""
        module, _, name = self.target.partition(":")
        function = reduce(getattr, name.split("."), import_module(module))
        options = dict(self.options)
        if on_progress is not None and "on_progress" in inspect.signature(function).parameters:
            options.setdefault("on_progress", on_progress)
        return function(**options)
