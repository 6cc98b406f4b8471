"""Packages of the extra `serve`, loaded when they are first needed."""

from __future__ import annotations

import importlib
from types import ModuleType


def need(package: str) -> ModuleType:
    """A package by its name. Raises ModuleNotFoundError that says how to install it.

    >>> need("json").__name__
    'json'
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModuleNotFoundError(f"{package} is not installed: pip install 'labkit[serve]'", name=package) from None
