"""One to four tokens, weights in eight or four bits: every pair of token and expert by itself, in two launches.

No map, no tensor cores, no sums across programs: a program reads some rows of an expert's matrix, and each thread adds
up its own columns before anything is scaled or exchanged. Programs of the same rows for
all pairs start together, so that an expert of two tokens is read from memory once and from the L2 cache again. The
second kernel starts early (`kernels.early`): its weights are on their way while the first still ends.
Formats: "int8" (a scale a row), "fp8" (E4M3, one for 128 × 128), "nf4" (two levels a byte, one for 64 of a row).
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.kernels import early
from labkit.kernels.early import next_may_start, wait
from labkit.kernels.language import INTERPRETED, tl, triton
from labkit.kernels.quant_values import fp8_values, int8_floats, nf4_levels

BLOCK = tl.constexpr(128)  # rows and columns that share a scale in "fp8"
GROUP = tl.constexpr(64)  # columns that share one in "nf4"
# Bytes of a row that a thread reads at once: so many that its tokens' values, eight of two bytes, are its own as well.
BYTES = {"int8": 8, "fp8": 8, "nf4": 4}
ROWS = 64 if INTERPRETED else 4  # rows of a matrix that a program reads; interpreted, programs are slow
MOST = 256  # chunks of so many bytes that it reads at once of each


@triton.jit
def _codes(w_ptr, row, row_bytes, chunk, mask, BYTES: tl.constexpr):
    """Bytes [chunks, parts, rows, BYTES]. w_ptr: [parts, 1], where a part's matrix begins; row: [1 or parts, rows].

    Chunks stand first, as Triton gives a warp's threads neighbours of the first dimension, after those of the last.
    """
    at = row.to(tl.int64)[None, :, :, None] * row_bytes + (chunk * BYTES)[:, None, None, None]
    at = w_ptr[None, :, :, None] + at + tl.arange(0, BYTES)[None, None, None, :]
    return tl.load(at, mask=mask[:, :, :, None], other=0)


@triton.jit
def _products(codes, x_ptr, scale_ptr, row, chunk, mask, C, FORMAT: tl.constexpr, PRECISE: tl.constexpr):
    """Each chunk of packed rows times a token's values: [chunks, parts, rows]; of "int8" without its scale.

    x_ptr, scale_ptr: [parts, 1], where a part's values and its matrix' scales begin. C: columns of a row.
    """
    BYTES: tl.constexpr = codes.shape[3]
    VALUES: tl.constexpr = 2 * BYTES if FORMAT == "nf4" else BYTES
    column = (chunk * VALUES)[:, None, None, None] + tl.arange(0, VALUES)[None, None, None, :]
    x = tl.load(x_ptr[None, :, :, None] + column, mask=mask[:, :, :, None], other=0.0)
    if FORMAT == "nf4":
        even, odd = nf4_levels(codes, tl.float32 if PRECISE else tl.bfloat16)
        x_even, x_odd = x.reshape(x.shape[0], x.shape[1], x.shape[2], BYTES, 2).split()
        product = even.to(tl.float32) * x_even.to(tl.float32) + odd.to(tl.float32) * x_odd.to(tl.float32)
        product = tl.sum(product, 3)
        scale = (row * tl.cdiv(C, GROUP))[None, :, :] + (chunk * VALUES // GROUP)[:, None, None]
        product *= tl.load(scale_ptr[None, :, :] + scale, mask=mask, other=0.0)
    else:
        w = int8_floats(codes) if FORMAT == "int8" else fp8_values(codes, tl.float32)
        product = tl.sum(w * x.to(tl.float32), 3)
        if FORMAT == "fp8":
            scale = (row // BLOCK * tl.cdiv(C, BLOCK))[None, :, :] + (chunk * VALUES // BLOCK)[:, None, None]
            product *= tl.load(scale_ptr[None, :, :] + scale, mask=mask, other=0.0)
    return product


@triton.jit
def _gate_up_pair(
    x_ptr, ids_ptr, w_ptr, scale_ptr, hidden_ptr, D, F, E, row_bytes, matrix_scales,
    K: tl.constexpr, FORMAT: tl.constexpr, ROWS: tl.constexpr, CHUNKS: tl.constexpr, STEPS: tl.constexpr,
    BYTES: tl.constexpr, PRECISE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """ROWS columns of a pair's hidden row: gate and up rows of its expert in one tile."""
    next_may_start(EARLY)
    pair = tl.program_id(0).to(tl.int64)
    expert = tl.load(ids_ptr + pair).to(tl.int64)
    if (expert >= 0) & (expert < E):
        f = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        row = tl.arange(0, 2)[:, None] * F + tl.minimum(f, F - 1)[None, :]
        zero = tl.zeros((1, 1), tl.int64)
        w_ptr += expert * 2 * F * row_bytes
        scale_ptr += expert * matrix_scales
        x_ptr += pair // K * D
        total = tl.zeros((CHUNKS, 2, ROWS), tl.float32)
        for step in tl.static_range(STEPS):
            chunk = step * CHUNKS + tl.arange(0, CHUNKS)
            mask = (chunk * BYTES < row_bytes)[:, None, None]
            codes = _codes(w_ptr + zero, row, row_bytes, chunk, mask, BYTES)
            total += _products(codes, x_ptr + zero, scale_ptr + zero, row, chunk, mask, D, FORMAT, PRECISE)
        both = tl.sum(total, 0)
        if FORMAT == "int8":
            both *= tl.load(scale_ptr + row)
        gate, up = both.permute(1, 0).split()
        hidden = gate * tl.sigmoid(gate) * up
        tl.store(hidden_ptr + pair * F + f, hidden.to(hidden_ptr.dtype.element_ty), mask=f < F)


@triton.jit
def _down_token(
    hidden_ptr, ids_ptr, score_ptr, w_ptr, scale_ptr, out_ptr, D, F, E, row_bytes, matrix_scales,
    K: tl.constexpr, SLOTS: tl.constexpr, FORMAT: tl.constexpr, ROWS: tl.constexpr, CHUNKS: tl.constexpr,
    STEPS: tl.constexpr, BYTES: tl.constexpr, PRECISE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """ROWS columns of a token's output: the weighted sum over its experts happens before anything is stored."""
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(d, D - 1)[None, :]
    slot = tl.arange(0, SLOTS)
    expert = tl.load(ids_ptr + token * K + slot, mask=slot < K, other=-1).to(tl.int64)
    kept = (expert >= 0) & (expert < E)
    weight = tl.load(score_ptr + token * K + slot, mask=kept, other=0.0).to(tl.float32)
    expert = tl.where(kept, expert, 0)[:, None]
    mine_ptr, its_scale_ptr = w_ptr + expert * D * row_bytes, scale_ptr + expert * matrix_scales
    its_hidden_ptr = hidden_ptr + (token * K + tl.where(kept, slot, 0))[:, None] * F
    total = tl.zeros((CHUNKS, SLOTS, ROWS), tl.float32)
    chunk = tl.arange(0, CHUNKS)
    mask = kept[None, :, None] & (chunk * BYTES < row_bytes)[:, None, None]
    codes = _codes(mine_ptr, row, row_bytes, chunk, mask, BYTES)
    wait(EARLY)  # for the hidden rows; the weights were there before
    for step in tl.static_range(STEPS):
        total += _products(codes, its_hidden_ptr, its_scale_ptr, row, chunk, mask, F, FORMAT, PRECISE)
        if step + 1 < STEPS:
            chunk += CHUNKS
            mask = kept[None, :, None] & (chunk * BYTES < row_bytes)[:, None, None]
            codes = _codes(mine_ptr, row, row_bytes, chunk, mask, BYTES)
    weight = weight[:, None]
    if FORMAT == "int8":
        weight = weight * tl.load(its_scale_ptr + row)
    y = tl.sum(tl.sum(total * weight[None, :, :], 1), 0)  # a thread's own experts first
    tl.store(out_ptr + token * D + d, y.to(out_ptr.dtype.element_ty), mask=d < D)


def gate_up_pairs(
    x_TD: Tensor, ids_TK: Tensor, codes: Tensor, scale: Tensor, form: str, rows: int = ROWS, warps: int = 4,
    most: int = MOST,
) -> Tensor:  # fmt: skip
    """Gate, up and SwiGLU of every pair by itself: [T·K, F] in x's dtype, in the pairs' own order.

    Args:
        x_TD: [T, D] contiguous. ids_TK: [T, K] contiguous; rows of dropped pairs stay unwritten.
        codes: [E, 2F, D], in "nf4" [E, 2F, D/2] uint8; scale: [E, 2F], [E, 2F/128, ⌈D/128⌉] or [E, 2F, ⌈D/64⌉].
        rows: columns of F a program computes, a power of two up to 64. most: chunks of a row read at once.
    """
    (T, D), K, (E, F, row_bytes) = x_TD.shape, ids_TK.shape[1], codes.shape
    F //= 2
    hidden = x_TD.new_empty(T * K, F)
    chunks, steps = _chunks(row_bytes // BYTES[form], most)
    _gate_up_pair[(T * K, triton.cdiv(F, rows))](
        x_TD, ids_TK, codes.view(torch.uint8), scale, hidden, D, F, E, row_bytes, scale[0].numel(), K=K, FORMAT=form,
        ROWS=rows, CHUNKS=chunks, STEPS=steps, BYTES=BYTES[form], PRECISE=x_TD.dtype == torch.float32,
        EARLY=early.can(x_TD.device), num_warps=warps,
    )  # fmt: skip
    return hidden


def down_tokens(
    hidden_NF: Tensor, ids_TK: Tensor, scores_TK: Tensor, codes: Tensor, scale: Tensor, form: str, rows: int = ROWS,
    warps: int = 4, most: int = MOST,
) -> Tensor:  # fmt: skip
    """The weighted sum over each token's experts of hidden · Wᵀ: [T, D]. Arguments as `gate_up_pairs`."""
    (T, K), (E, D, row_bytes), F = ids_TK.shape, codes.shape, hidden_NF.shape[1]
    out = hidden_NF.new_empty(T, D)
    chunks, steps = _chunks(row_bytes // BYTES[form], most)
    starts = early.can(hidden_NF.device)
    _down_token[(T, triton.cdiv(D, rows))](
        hidden_NF, ids_TK, scores_TK, codes.view(torch.uint8), scale, out, D, F, E, row_bytes, scale[0].numel(),
        K=K, SLOTS=triton.next_power_of_2(K), FORMAT=form, ROWS=rows, CHUNKS=chunks, STEPS=steps, BYTES=BYTES[form],
        PRECISE=hidden_NF.dtype == torch.float32, EARLY=starts, num_warps=warps, **early.launch(starts),
    )  # fmt: skip
    return out


def _chunks(chunks: int, most: int) -> tuple[int, int]:
    """How many chunks of a row are read at once, a power of two up to `most`, and how often.

    >>> _chunks(96, 256), _chunks(896, 256)
    ((128, 1), (256, 4))
    """
    at_once = min(most, triton.next_power_of_2(chunks))
    return at_once, -(-chunks // at_once)
