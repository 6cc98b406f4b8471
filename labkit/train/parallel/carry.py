"""Functions of a notebook for other processes: pickle sends names, and a notebook's names mean nothing there.

A function of `__main__`, a lambda or a closure goes as its code with whatever globals it reads; everything else goes by
pickle as usual. Both sides must run the same Python. Left out on purpose: classes made in a notebook.
"""

from __future__ import annotations

import builtins
import dis
import importlib
import io
import marshal
import pickle
import types
from typing import Any


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.busy: set[int] = set()

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, types.ModuleType):
            return importlib.import_module, (value.__name__,)
        if isinstance(value, types.FunctionType) and _is_local(value):
            return (
                _shell,
                (marshal.dumps(value.__code__), value.__name__, len(value.__closure__ or ())),
                _insides(value),
                None,
                None,
                _fill,
            )
        return NotImplemented


def pack(value: Any) -> bytes:
    """Bytes of a value that `unpack` gives back in another process of the same Python.

    >>> factor = 3
    >>> unpack(pack(lambda x: x * factor))(2)
    6
    """
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


def unpack(packed: bytes) -> Any:
    """What `pack` was given."""
    return pickle.loads(packed)


def _is_local(function: types.FunctionType) -> bool:
    """Whether another process could not import it."""
    if function.__module__ == "__main__" or "<" in function.__qualname__:
        return True
    found: Any = importlib.import_module(function.__module__) if function.__module__ else None
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is not function and getattr(found, "__wrapped__", None) is not function


def _insides(function: types.FunctionType) -> dict[str, Any]:
    read = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append((True, cell.cell_contents))
        except ValueError:
            cells.append((False, None))
    return {"globals": read, "cells": cells, "defaults": function.__defaults__, "kwdefaults": function.__kwdefaults__}


def _names(code: types.CodeType) -> set[str]:
    """The globals that code reads; names of attributes are not among them."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    own = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_names(constant) for constant in inner))


def _shell(code: bytes, name: str, cells: int) -> types.FunctionType:
    """The function before it has its globals, so that functions may call each other in circles."""
    space = {"__builtins__": builtins, "__name__": "__carried__"}
    return types.FunctionType(marshal.loads(code), space, name, None, tuple(types.CellType() for _ in range(cells)))


def _fill(function: types.FunctionType, insides: dict[str, Any]) -> None:
    function.__globals__.update(insides["globals"])
    for cell, (full, value) in zip(function.__closure__ or (), insides["cells"], strict=True):
        if full:
            cell.cell_contents = value
    function.__defaults__, function.__kwdefaults__ = insides["defaults"], insides["kwdefaults"]
