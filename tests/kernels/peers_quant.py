"""bitsandbytes and torchao for tests: imported where they are installed, their warnings and log lines left out."""

from __future__ import annotations

import importlib
import logging
import warnings

import pytest
import torch


def load(name: str):
    """The module, or a skipped test."""
    pytest.importorskip(name.split(".")[0], reason=f"{name} is not installed", exc_type=ImportError)
    logging.getLogger("torchao").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    """Draws from N(0, 1)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
