"""Where Triton's kernels can multiply packed experts, and how they are called; Triton is loaded by the first call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from labkit.nn.quant.experts import QuantExperts


def can(module: QuantExperts, x_TD: Tensor) -> bool:
    """Whether a kernel computes what this module does for x: on a GPU, plain SwiGLU, nothing to differentiate."""
    return False


def experts(module: QuantExperts, x_TD: Tensor, ids_TK: Tensor, scores_TK: Tensor) -> Tensor:
    """[T, D] to [T, D] by the kernel."""
    raise NotImplementedError
