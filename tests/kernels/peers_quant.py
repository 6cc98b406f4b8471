"""bitsandbytes and torchao for tests: imported where they are installed, their warnings and log lines left out.

torchao may lie in a folder of its own (`make setup-test` puts it there), which nothing else sees.
"""

from __future__ import annotations

import pytest
import torch

from labkit.kernels.bench import apart


def load(name: str):
    """The module, or a skipped test."""
    try:
        return apart.load(name)
    except ImportError as error:
        pytest.skip(f"{name} is not installed: {error}")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    """Draws from N(0, 1)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
