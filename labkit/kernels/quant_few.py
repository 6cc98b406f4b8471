"""Few tokens, weights in eight or four bits: every chosen expert's matrix is read packed, and widened in registers.

With few tokens reading the weights is what takes the time, so half the bytes are half the time if nothing else is in
the way. `pair_*` computes each pair of token and expert by itself, without a map and without tensor cores: two launches
in place of four, for one or two tokens. In `tile_*` pairs of one expert share its matrix, in tiles of sixteen rows.
Formats: "int8" (a scale a row), "fp8" (E4M3, one for 128 × 128), "nf4" (two levels a byte, one for 64 of a row).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from labkit.kernels.grouped_mm import locate, precision, put
from labkit.kernels.language import INTERPRETED, TensorDescriptor, tl, triton
from labkit.kernels.nf4 import LEVELS
from labkit.kernels.permute import ExpertMap
from labkit.kernels.tiles import Tile, programs

BLOCK = tl.constexpr(128)  # rows and columns that share a scale in "fp8"
GROUP = tl.constexpr(64)  # columns that share one in "nf4"
ROWS = 64 if INTERPRETED else 4  # rows of a matrix that a program of `pair_*` reads; interpreted, programs are slow


@triton.jit
def _partial(
    x_ptr, w_ptr, scale_ptr, table_ptr, row, k, D, read, FORMAT: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Packed rows times one token's columns from k on, not added up yet: [halves, rows, parts]; no scale of INT8.

    row: [halves, rows]; those of a half lie in one block of 128. Rows are D long, of which `read` columns are read.
    """
    if FORMAT == "nf4":
        byte = k // 2 + tl.arange(0, WIDTH // 2)
        mask = byte < read // 2
        at = row.to(tl.int64)[:, :, None] * (D // 2) + byte[None, None, :]
        codes = tl.load(w_ptr + at, mask=mask[None, None, :], other=0x77).to(tl.int32)
        groups = tl.cdiv(D, GROUP)
        group = k // GROUP + tl.arange(0, WIDTH // GROUP)
        at = row[:, :, None] * groups + group[None, None, :]
        absmax = tl.load(scale_ptr + at, mask=(group * GROUP < read)[None, None, :], other=0.0)
        even = tl.load(x_ptr + 2 * byte, mask=mask, other=0.0).to(tl.float32)
        odd = tl.load(x_ptr + 2 * byte + 1, mask=mask, other=0.0).to(tl.float32)
        product = tl.load(table_ptr + (codes >> 4)) * even[None, None, :]
        product += tl.load(table_ptr + (codes & 15)) * odd[None, None, :]
        product = tl.sum(product.reshape(row.shape[0], row.shape[1], WIDTH // GROUP, GROUP // 2), 3) * absmax
    else:
        column = k + tl.arange(0, WIDTH)
        mask = column < read
        at = row.to(tl.int64)[:, :, None] * D + column[None, None, :]
        codes = tl.load(w_ptr + at, mask=mask[None, None, :], other=0.0)
        x = tl.load(x_ptr + column, mask=mask, other=0.0).to(tl.float32)[None, :]
        if FORMAT == "fp8":
            block = tl.min(row, 1) // BLOCK * tl.cdiv(D, BLOCK)
            x = x * tl.load(scale_ptr + block[:, None] + (column // BLOCK)[None, :], mask=mask[None, :], other=0.0)
        product = codes.to(tl.float32) * x[:, None, :]
    return product


@triton.jit
def _gate_up_pair(
    x_ptr, ids_ptr, w_ptr, scale_ptr, table_ptr, hidden_ptr, D, F, E, matrix_bytes, matrix_scales,
    K: tl.constexpr, FORMAT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """ROWS columns of a pair's hidden row: gate and up rows of its expert in one tile."""
    pair = tl.program_id(1).to(tl.int64)
    expert = tl.load(ids_ptr + pair).to(tl.int64)
    if (expert >= 0) & (expert < E):
        f = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        row = tl.arange(0, 2)[:, None] * F + tl.minimum(f, F - 1)[None, :]
        x_ptr += pair // K * D
        w_ptr += expert * matrix_bytes
        scale_ptr += expert * matrix_scales
        both = tl.zeros((2, ROWS), tl.float32)
        for k in range(0, D, WIDTH):
            both += tl.sum(_partial(x_ptr, w_ptr, scale_ptr, table_ptr, row, k, D, D, FORMAT, WIDTH), 2)
        if FORMAT == "int8":
            both *= tl.load(scale_ptr + row)
        gate, up = both.permute(1, 0).split()
        hidden = gate * tl.sigmoid(gate) * up
        tl.store(hidden_ptr + pair * F + f, hidden.to(hidden_ptr.dtype.element_ty), mask=f < F)


@triton.jit
def _down_token(
    hidden_ptr, ids_ptr, score_ptr, w_ptr, scale_ptr, table_ptr, out_ptr, D, F, E, matrix_bytes, matrix_scales,
    K: tl.constexpr, FORMAT: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """ROWS columns of a token's output: the weighted sum over its experts happens before anything is stored."""
    token = tl.program_id(1).to(tl.int64)
    d = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(d, D - 1)[None, :]
    total = tl.zeros((1, ROWS, PARTS), tl.float32)
    for slot in tl.static_range(K):
        expert = tl.load(ids_ptr + token * K + slot).to(tl.int64)
        kept = (expert >= 0) & (expert < E)
        expert = tl.where(kept, expert, 0)
        width = tl.where(kept, F, 0)  # of a dropped pair, nothing is read
        weight = tl.load(score_ptr + token * K + slot).to(tl.float32)
        if FORMAT == "int8":
            weight = weight * tl.load(scale_ptr + expert * matrix_scales + row)[:, :, None]
        for k in range(0, F, WIDTH):
            part = _partial(
                hidden_ptr + (token * K + slot) * F, w_ptr + expert * matrix_bytes,
                scale_ptr + expert * matrix_scales, table_ptr, row, k, F, width, FORMAT, WIDTH,
            )  # fmt: skip
            total += part * weight
    y = tl.sum(tl.sum(total, 2), 0)
    tl.store(out_ptr + token * D + d, y.to(out_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def _wide(codes, scale_ptr, table_ptr, expert, row, k, R, D, dtype: tl.constexpr, FORMAT: tl.constexpr):
    """A tile of packed weights in the tokens' dtype; its scales are in it only if they differ within a row ("nf4")."""
    if FORMAT == "nf4":
        ROWS: tl.constexpr = codes.shape[0]
        GROUPS: tl.constexpr = codes.shape[1] * 2 // GROUP
        groups = tl.cdiv(D, GROUP)
        i = tl.minimum(row + tl.arange(0, ROWS), R - 1)
        j = k // GROUP + tl.arange(0, GROUPS)
        at = (expert.to(tl.int64) * R + i)[:, None] * groups + j[None, :]
        absmax = tl.load(scale_ptr + at, mask=(j < groups)[None, :], other=0.0)
        absmax = tl.broadcast_to(absmax[:, :, None], (ROWS, GROUPS, GROUP // 2)).reshape(codes.shape)
        even = tl.load(table_ptr + (codes >> 4).to(tl.int32)) * absmax
        odd = tl.load(table_ptr + (codes & 15).to(tl.int32)) * absmax
        wide = tl.join(even.to(dtype), odd.to(dtype)).reshape(ROWS, codes.shape[1] * 2)
    else:
        wide = codes.to(dtype)
    return wide


@triton.jit
def _gate_up_tile(
    x_ptr, pair_ptr, weights, scale_ptr, table_ptr, hidden_ptr, tile_expert_ptr, first_tile_ptr, offset_ptr, D, F, E,
    K: tl.constexpr, FORMAT: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`grouped_mm._gate_up` with packed weights; BLOCK_N divides 128, and in "fp8" BLOCK_K is 128."""
    columns = tl.cdiv(F, BLOCK_N)
    blocks = tl.cdiv(D, BLOCK)
    steps = tl.cdiv(D, BLOCK_K)
    depth = tl.arange(0, BLOCK_K)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    PACKED: tl.constexpr = 2 if FORMAT == "nf4" else 1
    num_tiles = tl.load(first_tile_ptr + E) * columns
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        expert, m, n, start, rows = locate(tile, columns, tile_expert_ptr, first_tile_ptr, offset_ptr)
        row = tl.minimum(m * BLOCK_M + tl.arange(0, BLOCK_M), rows - 1)
        token = tl.load(pair_ptr + start + row) // K
        x_row = x_ptr + (token.to(tl.int64) * D)[:, None] + depth[None, :]
        gate_scale_ptr = scale_ptr + (expert * 2 * tl.cdiv(F, BLOCK) + n * BLOCK_N // BLOCK) * blocks
        up_scale_ptr = gate_scale_ptr + tl.cdiv(F, BLOCK) * blocks
        gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for step in range(steps):
            k = step * BLOCK_K
            x = tl.load(x_row + k) if EVEN else tl.load(x_row + k, mask=(k + depth < D)[None, :], other=0.0)
            codes = weights.load([expert, n * BLOCK_N, k // PACKED]).reshape(BLOCK_N, BLOCK_K // PACKED)
            w_gate = _wide(codes, scale_ptr, table_ptr, expert, n * BLOCK_N, k, 2 * F, D, dtype, FORMAT)
            codes = weights.load([expert, F + n * BLOCK_N, k // PACKED]).reshape(BLOCK_N, BLOCK_K // PACKED)
            w_up = _wide(codes, scale_ptr, table_ptr, expert, F + n * BLOCK_N, k, 2 * F, D, dtype, FORMAT)
            if FORMAT == "fp8":
                gate += tl.dot(x, w_gate.T, input_precision=PRECISION) * tl.load(gate_scale_ptr + step)
                up += tl.dot(x, w_up.T, input_precision=PRECISION) * tl.load(up_scale_ptr + step)
            else:
                gate = tl.dot(x, w_gate.T, gate, input_precision=PRECISION)
                up = tl.dot(x, w_up.T, up, input_precision=PRECISION)
        if FORMAT == "int8":
            j = n * BLOCK_N + tl.arange(0, BLOCK_N)
            gate *= tl.load(scale_ptr + expert * 2 * F + j, mask=j < F, other=0.0)[None, :]
            up *= tl.load(scale_ptr + expert * 2 * F + F + j, mask=j < F, other=0.0)[None, :]
        put(hidden_ptr, gate * tl.sigmoid(gate) * up, start + m * BLOCK_M, rows - m * BLOCK_M, n * BLOCK_N, F, F)


@triton.jit
def _down_tile(
    x, weights, scale_ptr, table_ptr, out_ptr, tile_expert_ptr, first_tile_ptr, offset_ptr, D_IN, D_OUT, E,
    FORMAT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[row] = x[row] · Wᵀ with packed weights; BLOCK_N divides 128, and in "fp8" BLOCK_K is 128."""
    columns = tl.cdiv(D_OUT, BLOCK_N)
    blocks = tl.cdiv(D_IN, BLOCK)
    steps = tl.cdiv(D_IN, BLOCK_K)
    PACKED: tl.constexpr = 2 if FORMAT == "nf4" else 1
    num_tiles = tl.load(first_tile_ptr + E) * columns
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        expert, m, n, start, rows = locate(tile, columns, tile_expert_ptr, first_tile_ptr, offset_ptr)
        block_scale_ptr = scale_ptr + (expert * tl.cdiv(D_OUT, BLOCK) + n * BLOCK_N // BLOCK) * blocks
        product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for step in range(steps):
            k = step * BLOCK_K
            a = x.load([start + m * BLOCK_M, k])
            codes = weights.load([expert, n * BLOCK_N, k // PACKED]).reshape(BLOCK_N, BLOCK_K // PACKED)
            w = _wide(codes, scale_ptr, table_ptr, expert, n * BLOCK_N, k, D_OUT, D_IN, a.dtype, FORMAT)
            if FORMAT == "fp8":
                product += tl.dot(a, w.T, input_precision=PRECISION) * tl.load(block_scale_ptr + step)
            else:
                product = tl.dot(a, w.T, product, input_precision=PRECISION)
        if FORMAT == "int8":
            j = n * BLOCK_N + tl.arange(0, BLOCK_N)
            product *= tl.load(scale_ptr + expert * D_OUT + j, mask=j < D_OUT, other=0.0)[None, :]
        put(out_ptr, product, start + m * BLOCK_M, rows - m * BLOCK_M, n * BLOCK_N, D_OUT, D_OUT)


def gate_up_pairs(
    x_TD: Tensor, ids_TK: Tensor, codes: Tensor, scale: Tensor, form: str, rows: int = ROWS, warps: int = 4
) -> Tensor:
    """Gate, up and SwiGLU of every pair by itself: [T·K, F] in x's dtype, in the pairs' own order.

    Args:
        x_TD: [T, D] contiguous. ids_TK: [T, K] contiguous; rows of dropped pairs stay unwritten.
        codes: [E, 2F, D], in "nf4" [E, 2F, D/2] uint8; scale: [E, 2F], [E, 2F/128, ⌈D/128⌉] or [E, 2F, ⌈D/64⌉].
        rows: columns of F a program computes, a power of two up to 128.
    """
    (T, D), K, (E, F) = x_TD.shape, ids_TK.shape[1], (codes.shape[0], codes.shape[1] // 2)
    hidden = x_TD.new_empty(T * K, F)
    width = _width(D, form)
    _gate_up_pair[(triton.cdiv(F, rows), T * K)](
        x_TD, ids_TK, codes, scale, table(codes.device), hidden, D, F, E, codes[0].numel(), scale[0].numel(), K=K,
        FORMAT=form, ROWS=rows, WIDTH=width, num_warps=warps,
    )  # fmt: skip
    return hidden


def down_tokens(
    hidden_NF: Tensor, ids_TK: Tensor, scores_TK: Tensor, codes: Tensor, scale: Tensor, form: str,
    rows: int = ROWS, warps: int = 4,
) -> Tensor:  # fmt: skip
    """The weighted sum over each token's experts of hidden · Wᵀ: [T, D]. Arguments as `gate_up_pairs`."""
    (T, K), (E, D), F = ids_TK.shape, codes.shape[:2], hidden_NF.shape[1]
    out = hidden_NF.new_empty(T, D)
    width = _width(F, form)
    _down_token[(triton.cdiv(D, rows), T)](
        hidden_NF, ids_TK, scores_TK, codes, scale, table(codes.device), out, D, F, E,
        codes[0].numel(), scale[0].numel(), K=K,
        FORMAT=form, PARTS=_parts(width, form), ROWS=rows, WIDTH=width, num_warps=warps,
    )  # fmt: skip
    return out


def gate_up_tiles(x_TD: Tensor, codes: Tensor, scale: Tensor, form: str, places: ExpertMap, tile: Tile) -> Tensor:
    """Gate, up and SwiGLU in expert order: [N, F] in x's dtype. Arguments as `gate_up_pairs`."""
    D, (E, F), half = x_TD.shape[1], (codes.shape[0], codes.shape[1] // 2), tile.block_n // 2
    hidden = x_TD.new_empty(len(places.pair_N), F)
    grid = programs(tile, len(places.tile_expert) * triton.cdiv(F, half), x_TD.device)
    _gate_up_tile[(grid,)](
        x_TD, places.pair_N, _boxes(codes, half, tile.block_k, form), scale, table(codes.device), hidden,
        places.tile_expert, places.first_tile_E1, places.offset_E1, D, F, E, K=places.place_TK.shape[1],
        FORMAT=form, EVEN=D % tile.block_k == 0, PRECISION=precision(x_TD),
        BLOCK_M=tile.block_m, BLOCK_N=half, BLOCK_K=tile.block_k, **tile.launch,
    )  # fmt: skip
    return hidden


def down_tiles(hidden_NF: Tensor, codes: Tensor, scale: Tensor, form: str, places: ExpertMap, tile: Tile) -> Tensor:
    """Every row in expert order times its expert's packed matrix: [N, D] in the rows' dtype."""
    (N, F), (E, D) = hidden_NF.shape, codes.shape[:2]
    out = hidden_NF.new_empty(N, D)
    x = TensorDescriptor.from_tensor(hidden_NF, [tile.block_m, tile.block_k])
    grid = programs(tile, len(places.tile_expert) * triton.cdiv(D, tile.block_n), hidden_NF.device)
    _down_tile[(grid,)](
        x, _boxes(codes, tile.block_n, tile.block_k, form), scale, table(codes.device), out,
        places.tile_expert, places.first_tile_E1, places.offset_E1, F, D, E,
        FORMAT=form, PRECISION=precision(hidden_NF),
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, **tile.launch,
    )  # fmt: skip
    return out


@functools.cache
def table(device: torch.device) -> Tensor:
    """The sixteen levels of NF4 on a device."""
    return torch.tensor(LEVELS, device=device)


def _boxes(codes: Tensor, rows: int, columns: int, form: str) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(codes, [1, rows, columns // 2 if form == "nf4" else columns])


def _width(columns: int, form: str) -> int:
    """Columns read at once: as many as there are, up to 2,048."""
    return max(int(BLOCK if form == "fp8" else GROUP), min(2048, triton.next_power_of_2(columns)))


def _parts(width: int, form: str) -> int:
    return width // int(GROUP) if form == "nf4" else width
