"""Modules that have shapes and no values: what the tensors of a file, or of another module, are put into."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from labkit.core.config import ModelConfig
from labkit.nn.model import Transformer


def skeleton(config: ModelConfig, implementation: str = "auto") -> Transformer:
    """The model of a configuration, `without_values`.

    Args:
        implementation: of the experts, see `nn.Experts`.
    """
    with without_values():
        return Transformer(config, implementation)


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Modules that are built inside lie on the meta device, where tensors take no memory, and `nn.init` does nothing.

    To draw a normal number there, torch would import its compiler, for seconds and a hundred megabytes.

    >>> with without_values():
    ...     layer = torch.nn.Linear(3, 2)
    >>> layer.weight.device.type, tuple(layer.weight.shape)
    ('meta', (2, 3))
    """
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    """Passes over the functions of `nn.init`."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == torch.nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
