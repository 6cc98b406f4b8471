"""Activations quantised row by row, once a token before any gather: E4M3 with a scale for every 128 values, or INT8.

The arithmetic is that of `kernels.fp8.fp8_rows` and `kernels.quant.int8_rows`: a scale is the largest size over 448 or
127. Scales of E4M3 are laid out block by block, [⌈D/128⌉, T] in memory, so that a product's tile reads neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.kernels.language import INTERPRETED, tl, triton

BLOCK = 128
"""Values of a row that share a scale in E4M3, and rows and columns of a weight that do (DeepSeek-V3, section 3.3.2)."""
FP8 = torch.float8_e4m3fn
INFINITY = tl.constexpr(float("inf"))
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
_INTERPRETED = tl.constexpr(INTERPRETED)
TO_WHOLE = tl.constexpr(1.5 * 2**23)  # added and taken away again, it leaves a float32 rounded, ties to even


@triton.jit
def fp8_scale(largest):
    """What a code's 1 is worth where `largest` is to become 448; NaN where something is not finite.

    Divisions are rounded as IEEE says: values of bfloat16 often lie between two codes, and the last bit decides.
    """
    return tl.maximum(tl.div_rn(largest, 448.0), TINY) + 0 * largest


@triton.jit
def size(x):
    """How large each value is; infinite for NaN too, which a maximum would pass over."""
    return tl.where(tl.abs(x) < INFINITY, tl.abs(x), INFINITY)


@triton.jit
def to_fp8(x, dtype: tl.constexpr):
    """x in E4M3, ties to even. Triton's interpreter loses carries in this; what it gets is on E4M3's grid already."""
    if _INTERPRETED:
        power = (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        to_grid = tl.maximum(power, 2.0**-6) * (1.5 * 2**20)  # a whole number of 2⁻³ of the power, at least of 2⁻⁹
        x = x + to_grid - to_grid
    return x.to(dtype)


@triton.jit
def _fp8_rows(x_ptr, codes_ptr, scale_ptr, T, D, ROWS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr):
    """ROWS tokens by BLOCKS blocks; what lies beyond D counts as zero."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < T)[:, None, None] & (column < D)[None, :, :]
    at = row.to(tl.int64)[:, None, None] * D + column[None, :, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    scale = fp8_scale(tl.max(size(x), 2))
    tl.store(codes_ptr + at, to_fp8(tl.div_rn(x, scale[:, :, None]), codes_ptr.dtype.element_ty), mask=inside)
    real = (row < T)[:, None] & (block * BLOCK < D)[None, :]
    tl.store(scale_ptr + block.to(tl.int64)[None, :] * T + row[:, None], scale, mask=real)


@triton.jit
def _fp8_rows_in_order(
    x_ptr, place_ptr, codes_ptr, scale_ptr, T, D,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`_fp8_rows`, each token's codes stored K times: it is read and rounded once, wherever its experts' rows are."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < T)[:, None, None] & (column < D)[None, :, :]
    at = row.to(tl.int64)[:, None, None] * D + column[None, :, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    scale = fp8_scale(tl.max(size(x), 2))
    codes = to_fp8(tl.div_rn(x, scale[:, :, None]), codes_ptr.dtype.element_ty)
    for slot in tl.static_range(K):
        place = tl.load(place_ptr + row * K + slot, mask=row < T, other=-1)  # −1: a dropped pair
        at = place.to(tl.int64)[:, None, None] * D + column[None, :, :]
        tl.store(codes_ptr + at, codes, mask=(place >= 0)[:, None, None] & (column < D)[None, :, :])
    real = (row < T)[:, None] & (block * BLOCK < D)[None, :]
    tl.store(scale_ptr + block.to(tl.int64)[None, :] * T + row[:, None], scale, mask=real)


@triton.jit
def _int8_rows(x_ptr, codes_ptr, scale_ptr, D, WIDTH: tl.constexpr):
    """One token: its largest value, then its codes; a token with a value that is not finite has the scale NaN."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + row * D + column, mask=column < D, other=0.0).to(tl.float32)
    largest = tl.max(size(x), 0)
    whole = x * (127.0 / tl.maximum(largest, 127 * TINY)) + TO_WHOLE - TO_WHOLE
    codes = tl.where(largest < INFINITY, whole, 0.0).to(tl.int8)
    tl.store(codes_ptr + row * D + column, codes, mask=column < D)
    tl.store(scale_ptr + row, largest * (1 / 127.0) + 0 * largest)


def fp8_rows(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens in E4M3: codes [T, D], and scales [T, ⌈D/128⌉] float32 with neighbouring tokens beside each other.

    Args:
        x_TD: [T, D] contiguous; float32, float16 or bfloat16. A block with a value that is not finite becomes NaN.
    """
    (T, D), blocks = x_TD.shape, triton.cdiv(x_TD.shape[1], BLOCK)
    codes = torch.empty_like(x_TD, dtype=FP8)
    scale = x_TD.new_empty(blocks, T, dtype=torch.float32)
    if T:
        rows, some = 8, min(4, triton.next_power_of_2(blocks))
        grid = (triton.cdiv(T, rows), triton.cdiv(blocks, some))
        _fp8_rows[grid](x_TD, codes, scale, T, D, ROWS=rows, BLOCKS=some, BLOCK=BLOCK, num_warps=4)
    return codes, scale.mT


def fp8_rows_in_order(x_TD: Tensor, place_TK: Tensor) -> tuple[Tensor, Tensor]:
    """`fp8_rows` with the codes in expert order: [T·K, D], and the scales [T, ⌈D/128⌉] in token order as there.

    Args:
        place_TK: [T, K] int32 of `kernels.permute`; rows that no pair has stay unwritten.
    """
    (T, D), K, blocks = x_TD.shape, place_TK.shape[1], triton.cdiv(x_TD.shape[1], BLOCK)
    codes = torch.empty(T * K, D, dtype=FP8, device=x_TD.device)
    scale = x_TD.new_empty(blocks, T, dtype=torch.float32)
    if T:
        rows, some = 8, min(4, triton.next_power_of_2(blocks))
        grid = (triton.cdiv(T, rows), triton.cdiv(blocks, some))
        _fp8_rows_in_order[grid](
            x_TD, place_TK, codes, scale, T, D, K=K, ROWS=rows, BLOCKS=some, BLOCK=BLOCK, num_warps=4
        )
    return codes, scale.mT


def int8_rows(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens in INT8: codes [T, D] from −127 to 127, and scales [T] float32.

    Args:
        x_TD: [T, D] contiguous; float32, float16 or bfloat16. A token with a value that is not finite gets scale NaN.
    """
    T, D = x_TD.shape
    codes = torch.empty_like(x_TD, dtype=torch.int8)
    scale = x_TD.new_empty(T, dtype=torch.float32)
    if T:
        width = triton.next_power_of_2(D)
        _int8_rows[(T,)](x_TD, codes, scale, D, WIDTH=width, num_warps=max(1, min(8, width // 512)))
    return codes, scale
