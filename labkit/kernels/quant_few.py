"""Weights in eight or four bits, tokens as they are: matrices are read packed, and widened in registers.

With few tokens reading the weights is what takes the time, so half the bytes are half the time if nothing else is in
the way. Pairs of one expert share its matrix, in tiles of sixteen rows or more. `quant_pairs` is for fewer still.
Formats: "int8" (a scale a row), "fp8" (E4M3, one for 128 × 128), "nf4" (two levels a byte, one for 64 of a row).
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.kernels import early
from labkit.kernels.early import next_may_start, wait
from labkit.kernels.grouped_mm import locate, precision, put
from labkit.kernels.language import TensorDescriptor, tl, triton
from labkit.kernels.permute import ExpertMap
from labkit.kernels.quant_values import fp8_values, nf4_levels
from labkit.kernels.tiles import Tile, programs

BLOCK = tl.constexpr(128)  # rows and columns that share a scale in "fp8"
GROUP = tl.constexpr(64)  # columns that share one in "nf4"


@triton.jit
def _wide(codes, scale_ptr, expert, row, k, R, D, dtype: tl.constexpr, FORMAT: tl.constexpr):
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
        even, odd = nf4_levels(codes, tl.float32 if dtype == tl.float32 else tl.bfloat16)
        even, odd = even.to(tl.float32) * absmax, odd.to(tl.float32) * absmax
        wide = tl.join(even.to(dtype), odd.to(dtype)).reshape(ROWS, codes.shape[1] * 2)
    elif FORMAT == "fp8":
        wide = fp8_values(codes, dtype)
    else:
        wide = codes.to(tl.int8, bitcast=True).to(dtype)
    return wide


@triton.jit
def _gate_up_tile(
    x_ptr, pair_ptr, weights, scale_ptr, hidden_ptr, tile_expert_ptr, first_tile_ptr, offset_ptr, D, F, E,
    K: tl.constexpr, FORMAT: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """`grouped_mm._gate_up` with packed weights; BLOCK_N divides 128, and in "fp8" BLOCK_K is 128."""
    wait(EARLY)
    next_may_start(EARLY)
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
            w_gate = _wide(codes, scale_ptr, expert, n * BLOCK_N, k, 2 * F, D, dtype, FORMAT)
            codes = weights.load([expert, F + n * BLOCK_N, k // PACKED]).reshape(BLOCK_N, BLOCK_K // PACKED)
            w_up = _wide(codes, scale_ptr, expert, F + n * BLOCK_N, k, 2 * F, D, dtype, FORMAT)
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
    x, weights, scale_ptr, out_ptr, tile_expert_ptr, first_tile_ptr, offset_ptr, D_IN, D_OUT, E,
    FORMAT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """out[row] = x[row] · Wᵀ with packed weights; BLOCK_N divides 128, and in "fp8" BLOCK_K is 128."""
    wait(EARLY)
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
            w = _wide(codes, scale_ptr, expert, n * BLOCK_N, k, D_OUT, D_IN, a.dtype, FORMAT)
            if FORMAT == "fp8":
                product += tl.dot(a, w.T, input_precision=PRECISION) * tl.load(block_scale_ptr + step)
            else:
                product = tl.dot(a, w.T, product, input_precision=PRECISION)
        if FORMAT == "int8":
            j = n * BLOCK_N + tl.arange(0, BLOCK_N)
            product *= tl.load(scale_ptr + expert * D_OUT + j, mask=j < D_OUT, other=0.0)[None, :]
        put(out_ptr, product, start + m * BLOCK_M, rows - m * BLOCK_M, n * BLOCK_N, D_OUT, D_OUT)


def gate_up_tiles(x_TD: Tensor, codes: Tensor, scale: Tensor, form: str, places: ExpertMap, tile: Tile) -> Tensor:
    """Gate, up and SwiGLU in expert order: [N, F] in x's dtype. Arguments as `quant_pairs.gate_up_pairs`."""
    D, (E, F), half = x_TD.shape[1], (codes.shape[0], codes.shape[1] // 2), tile.block_n // 2
    hidden = x_TD.new_empty(len(places.pair_N), F)
    grid = programs(tile, len(places.tile_expert) * triton.cdiv(F, half), x_TD.device)
    starts = early.can(x_TD.device)
    _gate_up_tile[(grid,)](
        x_TD, places.pair_N, _boxes(codes, half, tile.block_k, form), scale, hidden,
        places.tile_expert, places.first_tile_E1, places.offset_E1, D, F, E, K=places.place_TK.shape[1],
        FORMAT=form, EVEN=D % tile.block_k == 0, PRECISION=precision(x_TD),
        BLOCK_M=tile.block_m, BLOCK_N=half, BLOCK_K=tile.block_k, EARLY=starts,
        **tile.launch, **early.launch(starts),
    )  # fmt: skip
    return hidden


def down_tiles(hidden_NF: Tensor, codes: Tensor, scale: Tensor, form: str, places: ExpertMap, tile: Tile) -> Tensor:
    """Every row in expert order times its expert's packed matrix: [N, D] in the rows' dtype."""
    (N, F), (E, D) = hidden_NF.shape, codes.shape[:2]
    out = hidden_NF.new_empty(N, D)
    x = TensorDescriptor.from_tensor(hidden_NF, [tile.block_m, tile.block_k])
    grid = programs(tile, len(places.tile_expert) * triton.cdiv(D, tile.block_n), hidden_NF.device)
    starts = early.can(hidden_NF.device)
    _down_tile[(grid,)](
        x, _boxes(codes, tile.block_n, tile.block_k, form), scale, out,
        places.tile_expert, places.first_tile_E1, places.offset_E1, F, D, E,
        FORMAT=form, PRECISION=precision(hidden_NF),
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, EARLY=starts,
        **tile.launch, **early.launch(starts),
    )  # fmt: skip
    return out


def _boxes(codes: Tensor, rows: int, columns: int, form: str) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(codes.view(torch.uint8), [1, rows, columns // 2 if form == "nf4" else columns])
