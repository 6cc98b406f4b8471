"""How far a result is from what was wanted, without a second copy of a large tensor in wide numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PIECE = 2**26  # elements that are compared at a time


def relative(found: Tensor, wanted: Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖ (the norm of found where nothing is wanted), in float64.

    Raises ValueError for another shape.

    >>> relative(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
    0.1
    """
    if found.shape != wanted.shape:
        raise ValueError(f"it gave shape {tuple(found.shape)}; expected {tuple(wanted.shape)}")
    rows = max(1, PIECE * max(1, len(wanted)) // max(1, wanted.numel())) if wanted.ndim else 1
    off, size = (torch.zeros((), dtype=torch.float64, device=wanted.device) for _ in range(2))
    pieces = zip(found.detach().split(rows), wanted.detach().split(rows), strict=True) if wanted.numel() else ()
    for mine, want in pieces:
        want = want.double()
        off += (mine.double() - want).square().sum()
        size += want.square().sum()
    return (off.sqrt() / (size.sqrt() if size > 0 else 1)).item()


def output_and_gradients(
    wanted: Mapping[str, Tensor], output: Tensor, gradients: Mapping[str, Tensor]
) -> dict[str, float]:
    """How far a tensor and its gradients are from what was wanted under "output" and their names; see `relative`."""
    return {name: relative(found, wanted[name]) for name, found in {"output": output, **gradients}.items()}


def wide(dtype: torch.dtype) -> torch.dtype:
    """The numbers a reference computes in: float64 for float32, float32 for what is narrower."""
    return torch.float64 if dtype == torch.float32 else torch.float32
