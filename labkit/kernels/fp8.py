"""FP8 in slow, obvious torch: E4M3 with a scale for every 128 × 128 weights and for every 128 values of a token.

DeepSeek-V3 (arXiv 2412.19437, section 3.3.2): four exponent bits, three of mantissa, no infinity, 448 the largest. Fine
blocks keep an outlier from spoiling more than its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.kernels.quant import Packed, blocks, check_product, check_tokens, check_weight, spread

BLOCK = 128
LARGEST = 448.0  # of E4M3
DTYPE = torch.float8_e4m3fn


@dataclass(frozen=True, eq=False)
class Fp8(Packed):
    """Weights in E4M3.

    Args:
        codes: [..., R, C] float8_e4m3fn.
        scale: [..., ⌈R/block⌉, ⌈C/block⌉] float32, what a code's 1 is worth.
        block: rows and columns that share a scale.
    """

    codes: Tensor
    scale: Tensor
    block: int = BLOCK

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        R, C = self.shape[-2:]
        wide = spread(spread(self.scale, self.block, C).mT, self.block, R).mT
        return (self.codes.float() * wide).to(dtype)

    def rows(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        scale = spread(self.scale[ids // self.block], self.block, self.shape[-1])
        return (self.codes[ids].float() * scale).to(dtype)


def fp8(w: Tensor, block: int = BLOCK) -> Fp8:
    """Each block over a 448th of its largest value, rounded to E4M3 (ties to even).

    Args:
        w: [..., R, C], floating point, finite. block: rows and columns of a block; those at the edges may be smaller.

    Raises ValueError for other weights and a block below 1.

    >>> packed = fp8(torch.tensor([[7.0, -3.5], [0.0, 0.1]]))
    >>> packed.codes.float().tolist(), packed.scale.item()
    ([[448.0, -224.0], [0.0, 6.5]], 0.015625)
    """
    check_weight(w)
    if block < 1:
        raise ValueError(f"block is {block}; give 1 or more rows and columns")
    w, (R, C) = w.detach().float(), w.shape[-2:]
    across = blocks(w.abs(), block).amax(-1)
    scale = scale_of(blocks(across.mT, block).amax(-1).mT)
    wide = spread(spread(scale, block, C).mT, block, R).mT
    return Fp8((w / wide).to(DTYPE), scale.contiguous(), block)


def fp8_rows(x_TC: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Tokens in E4M3: codes [T, C] float8_e4m3fn and scales [T, ⌈C/block⌉] float32.

    A block with a value that is not finite becomes NaN.

    >>> codes, scale = fp8_rows(torch.tensor([[1.0, 2.0, 0.0]]), block=2)
    >>> codes.float().tolist(), (scale * 448).tolist()
    ([[224.0, 448.0, 0.0]], [[2.0, ...]])
    """
    check_tokens(x_TC)
    x_TC = x_TC.float()
    scale = scale_of(blocks(x_TC, block).abs().amax(-1))
    return (x_TC / spread(scale, block, x_TC.shape[-1])).to(DTYPE), scale


def fp8_product(x: Tensor, packed: Fp8, bias: Tensor | None = None) -> Tensor:
    """Both sides in FP8, summed in float32: [..., C] times a packed [R, C] to [..., R] in x's dtype.

    Raises ValueError unless the sizes fit.
    """
    check_product(x, packed)
    R, C = packed.shape
    codes, scale = fp8_rows(x.reshape(-1, C), packed.block)
    x_TC = codes.float() * spread(scale, packed.block, C)
    y = F.linear(x_TC, packed.dequantize(), None if bias is None else bias.float())
    return y.to(x.dtype).reshape(*x.shape[:-1], R)


def scale_of(largest: Tensor) -> Tensor:
    """A 448th of it; where that would be zero (or too small to divide by), the smallest normal float32.

    >>> scale_of(torch.tensor([0.0, 448.0])).tolist()
    [1.17549...e-38, 1.0]
    """
    return (largest / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
