"""A Transformer that has shapes and no values: what the tensors of a file are put into."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from labkit.core.config import ModelConfig
from labkit.nn.model import Transformer


def skeleton(config: ModelConfig, implementation: str = "auto") -> Transformer:
    """The model of a configuration on the meta device, where tensors take no memory.

    Args:
        implementation: of the experts, see `nn.Experts`.

    Nothing is drawn: to draw a normal number there, torch imports its compiler, for seconds and a hundred megabytes.
    """
    with torch.device("meta"), _NothingDrawn():
        return Transformer(config, implementation)


class _NothingDrawn(TorchFunctionMode):
    """Passes over the functions of `nn.init`."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == torch.nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
