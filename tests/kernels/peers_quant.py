"""bitsandbytes and torchao for tests: imported where they are installed, their warnings and log lines left out.

torchao may lie in a folder of its own (`make setup-test` puts it there), which nothing else sees.
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from pathlib import Path

import pytest
import torch


def load(name: str):
    """The module, or a skipped test."""
    logging.getLogger("torchao").setLevel(logging.ERROR)
    apart = str(Path(sys.prefix) / "peers")
    sys.path.append(apart)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(name.split(".")[0], reason=f"{name} is not installed", exc_type=ImportError)
            return importlib.import_module(name)
    finally:
        sys.path.remove(apart)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    """Draws from N(0, 1)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
