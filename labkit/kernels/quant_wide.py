"""A layer's packed matrices made whole in the tokens' dtype, for a call with so many tokens that it pays.

Tiles that unpack as they read do it again for every tile of rows. With many rows an expert it is faster to write all
matrices out once, and to multiply as if they had never been packed; the price is memory for the length of a call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.kernels.language import INTERPRETED, tl, triton
from labkit.kernels.quant_values import fp8_values, int8_floats, nf4_levels

BLOCK = tl.constexpr(128)  # rows and columns that share a scale in "fp8"
GROUP = tl.constexpr(64)  # columns that share one in "nf4"
ROWS, BYTES = (64, 1024) if INTERPRETED else (16, 128)  # of a program; interpreted, programs are slow


@triton.jit
def _widen(
    codes_ptr, scale_ptr, out_ptr, R, C, row_bytes, matrix_scales,
    FORMAT: tl.constexpr, ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """ROWS × BYTES codes of one matrix."""
    blocks = tl.cdiv(R, ROWS)
    expert = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    byte = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    mask = (row < R)[:, None] & (byte < row_bytes)[None, :]
    codes = tl.load(codes_ptr + (expert * R + row)[:, None] * row_bytes + byte[None, :], mask=mask, other=0)
    scale_ptr += expert * matrix_scales
    PACKED: tl.constexpr = 2 if FORMAT == "nf4" else 1
    if FORMAT == "nf4":
        at = row[:, None] * tl.cdiv(C, GROUP) + (byte * 2 // GROUP)[None, :]
        absmax = tl.load(scale_ptr + at, mask=mask, other=0.0)
        even, odd = nf4_levels(codes, tl.float32)
        wide = tl.join(even * absmax, odd * absmax).reshape(ROWS, BYTES * 2)
    elif FORMAT == "fp8":
        at = (row // BLOCK)[:, None] * tl.cdiv(C, BLOCK) + (byte // BLOCK)[None, :]
        wide = fp8_values(codes, tl.float32) * tl.load(scale_ptr + at, mask=mask, other=0.0)
    else:
        wide = int8_floats(codes) * tl.load(scale_ptr + row, mask=row < R, other=0.0)[:, None]
    column = tl.program_id(1) * BYTES * PACKED + tl.arange(0, BYTES * PACKED)
    out_ptr += (expert * R + row)[:, None] * C + column[None, :]
    tl.store(out_ptr, wide.to(out_ptr.dtype.element_ty), mask=(row < R)[:, None] & (column < C)[None, :])


def widen(codes: Tensor, scale: Tensor, form: str, dtype: torch.dtype) -> Tensor:
    """The matrices that packed ones stand for, rounded to a dtype: [E, R, C].

    Args:
        codes: [E, R, C], in "nf4" [E, R, C/2] uint8; scale: [E, R], [E, ⌈R/128⌉, ⌈C/128⌉] or [E, R, ⌈C/64⌉] float32.
    """
    E, R, row_bytes = codes.shape
    C = row_bytes * 2 if form == "nf4" else row_bytes
    out = torch.empty(E, R, C, dtype=dtype, device=codes.device)
    _widen[(E * triton.cdiv(R, ROWS), triton.cdiv(row_bytes, BYTES))](
        codes.view(torch.uint8), scale, out, R, C, row_bytes, scale[0].numel(),
        FORMAT=form, ROWS=ROWS, BYTES=BYTES,
    )  # fmt: skip
    return out
