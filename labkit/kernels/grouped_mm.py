"""Products over rows in expert order: every expert's rows times its own matrix, in one launch.

Each program takes tile after tile: which expert and which rows, it reads from the map of `kernels.permute`. Token rows
are gathered while they are loaded, SwiGLU happens before anything is stored, weights come by descriptor (on Hopper, the
tensor memory accelerator), which fills with zeros what lies beyond a matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.kernels.language import TensorDescriptor, tl, triton
from labkit.kernels.permute import ExpertMap
from labkit.kernels.tiles import Tile, programs

GROUP = tl.constexpr(16)  # with 132 programs, 16 row tiles by 8 column tiles read the least


@triton.jit
def neighbours(tile, tiles, columns):
    """Row and column of a tile in a grid of tiles, walked so that those computed at one time share their operands.

    Down `GROUP` rows, then the next column of the same rows, and after the last column the next `GROUP` rows.
    """
    group = tile // (GROUP * columns) * GROUP
    size = tl.minimum(tiles - group, GROUP)
    within = tile % (GROUP * columns)
    return group + within % size, within // size


@triton.jit
def locate(tile, columns, tile_expert_ptr, first_tile_ptr, offset_ptr):
    """A tile's expert, its row tile and column tile there, and the expert's first row and number of rows."""
    expert = tl.load(tile_expert_ptr + tile // columns)
    first = tl.load(first_tile_ptr + expert)
    tiles = tl.load(first_tile_ptr + expert + 1) - first
    start = tl.load(offset_ptr + expert)
    rows = tl.load(offset_ptr + expert + 1) - start
    m, n = neighbours(tile - first * columns, tiles, columns)
    return expert, m, n, start, rows


@triton.jit
def halves(block):
    """The left and the right half of a block's columns."""
    return block.reshape(block.shape[0], 2, block.shape[1] // 2).permute(0, 2, 1).split()


@triton.jit
def put(ptr, block, row, rows_left, column, width, stride):
    """Store a block at (row, column) of a matrix, without what lies beyond its rows or its width."""
    i = tl.arange(0, block.shape[0])
    j = tl.arange(0, block.shape[1])
    mask = (i < rows_left)[:, None] & (column + j < width)[None, :]
    at = ptr + row.to(tl.int64) * stride + column
    tl.store(at + i[:, None] * stride + j[None, :], block.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gate_up(
    x_ptr, pair_ptr, weights, pre_ptr, hidden_ptr, tile_expert_ptr, first_tile_ptr, offset_ptr, D, F, E,
    K: tl.constexpr, SAVE: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """hidden[row] = SiLU(x[token] · gate) · (x[token] · up); `pre` keeps both products for the backward pass.

    A tile of weights is BLOCK_N gate rows above the BLOCK_N up rows that belong to them, so one product computes both.
    """
    columns = tl.cdiv(F, BLOCK_N)
    steps = tl.cdiv(D, BLOCK_K)
    tl.assume(steps > 0)
    depth = tl.arange(0, BLOCK_K)
    num_tiles = tl.load(first_tile_ptr + E) * columns
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        expert, m, n, start, rows = locate(tile, columns, tile_expert_ptr, first_tile_ptr, offset_ptr)
        row = tl.minimum(m * BLOCK_M + tl.arange(0, BLOCK_M), rows - 1)  # beyond the last: read it again, store nothing
        token = tl.load(pair_ptr + start + row) // K
        x_row = x_ptr + (token.to(tl.int64) * D)[:, None] + depth[None, :]
        product = tl.zeros((BLOCK_M, 2 * BLOCK_N), tl.float32)
        for step in range(steps):
            k = step * BLOCK_K
            x = tl.load(x_row + k) if EVEN else tl.load(x_row + k, mask=(k + depth < D)[None, :], other=0.0)
            w = weights.load([expert, 0, n * BLOCK_N, k]).reshape(2 * BLOCK_N, BLOCK_K)
            product = tl.dot(x, w.T, product, input_precision=PRECISION)
        gate, up = halves(product)
        row = start + m * BLOCK_M
        left = rows - m * BLOCK_M
        if SAVE:
            put(pre_ptr, gate, row, left, n * BLOCK_N, F, 2 * F)
            put(pre_ptr + F, up, row, left, n * BLOCK_N, F, 2 * F)
        put(hidden_ptr, gate * tl.sigmoid(gate) * up, row, left, n * BLOCK_N, F, F)


@triton.jit
def _rows(
    x_ptr, x, pair_ptr, weights, out_ptr, tile_expert_ptr, first_tile_ptr, offset_ptr, D_IN, D_OUT, E,
    K: tl.constexpr, GATHER: tl.constexpr, TRANSPOSED: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[row] = x[row or its token] · W, or · Wᵀ if the expert's matrix is stored [D_OUT, D_IN]."""
    columns = tl.cdiv(D_OUT, BLOCK_N)
    steps = tl.cdiv(D_IN, BLOCK_K)
    tl.assume(steps > 0)
    depth = tl.arange(0, BLOCK_K)
    num_tiles = tl.load(first_tile_ptr + E) * columns
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        expert, m, n, start, rows = locate(tile, columns, tile_expert_ptr, first_tile_ptr, offset_ptr)
        if GATHER:
            row = tl.minimum(m * BLOCK_M + tl.arange(0, BLOCK_M), rows - 1)
            token = tl.load(pair_ptr + start + row) // K
            x_row = x_ptr + (token.to(tl.int64) * D_IN)[:, None] + depth[None, :]
        product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for step in range(steps):
            k = step * BLOCK_K
            if GATHER:
                a = tl.load(x_row + k) if EVEN else tl.load(x_row + k, mask=(k + depth < D_IN)[None, :], other=0.0)
            else:
                a = x.load([start + m * BLOCK_M, k])
            if TRANSPOSED:
                w = weights.load([expert, n * BLOCK_N, k]).reshape(BLOCK_N, BLOCK_K).T
            else:
                w = weights.load([expert, k, n * BLOCK_N]).reshape(BLOCK_K, BLOCK_N)
            product = tl.dot(a, w, product, input_precision=PRECISION)
        left_half, right_half = halves(product)  # stored one after the other: half the staging memory
        row = start + m * BLOCK_M
        left = rows - m * BLOCK_M
        put(out_ptr, left_half, row, left, n * BLOCK_N, D_OUT, D_OUT)
        put(out_ptr, right_half, row, left, n * BLOCK_N + BLOCK_N // 2, D_OUT, D_OUT)


def gate_up(
    x_TD: Tensor, gate_up_E2FD: Tensor, places: ExpertMap, tile: Tile, *, save: bool
) -> tuple[Tensor, Tensor | None]:
    """The first products of all experts with SwiGLU: `hidden_NF`, and with `save` what went into SwiGLU, `pre_N2F`.

    Args:
        x_TD: [T, D] contiguous, in token order. gate_up_E2FD: [E, 2F, D] contiguous, gate rows first.
        places: made with the tile's block_m. tile: from `kernels.tiles`.
    """
    E, F, D = gate_up_E2FD.shape[0], gate_up_E2FD.shape[1] // 2, gate_up_E2FD.shape[2]
    N = len(places.pair_N)
    hidden = x_TD.new_empty(N, F)
    pre = x_TD.new_empty(N, 2 * F) if save else None
    half = tile.block_n // 2
    weights = TensorDescriptor(
        gate_up_E2FD, [E, 2, F, D], [2 * F * D, F * D, D, 1], [1, 2, half, tile.block_k]
    )  # both halves of the fused matrix at once
    grid = programs(tile, len(places.tile_expert) * triton.cdiv(F, half), x_TD.device)
    _gate_up[(grid,)](
        x_TD, places.pair_N, weights, pre, hidden, places.tile_expert, places.first_tile_E1, places.offset_E1, D, F, E,
        K=places.place_TK.shape[1], SAVE=save, EVEN=D % tile.block_k == 0, PRECISION=precision(x_TD),
        BLOCK_M=tile.block_m, BLOCK_N=half, BLOCK_K=tile.block_k, **tile.launch,
    )  # fmt: skip
    return hidden, pre


def rows_times(x: Tensor, weights: Tensor, places: ExpertMap, tile: Tile, *, gather: bool, transposed: bool) -> Tensor:
    """Every row in expert order times its expert's matrix: [N, D_out].

    Args:
        x: [N, D_in] in expert order, or with `gather` [T, D_in] in token order; contiguous.
        weights: [E, D_in, D_out], or with `transposed` [E, D_out, D_in]; contiguous.
        places: made with the tile's block_m. tile: from `kernels.tiles`.
    """
    E, D_in, D_out = weights.shape
    if transposed:
        D_in, D_out = D_out, D_in
    N, k, n = len(places.pair_N), tile.block_k, tile.block_n
    out = x.new_empty(N, D_out)
    dense = None if gather else TensorDescriptor(x, list(x.shape), [D_in, 1], [tile.block_m, k])
    matrices = TensorDescriptor(
        weights, list(weights.shape), list(weights.stride()), [1, n, k] if transposed else [1, k, n]
    )
    grid = programs(tile, len(places.tile_expert) * triton.cdiv(D_out, n), x.device)
    _rows[(grid,)](
        x, dense, places.pair_N, matrices, out, places.tile_expert, places.first_tile_E1, places.offset_E1,
        D_in, D_out, E, K=places.place_TK.shape[1], GATHER=gather, TRANSPOSED=transposed, EVEN=D_in % k == 0,
        PRECISION=precision(x), BLOCK_M=tile.block_m, BLOCK_N=n, BLOCK_K=k, **tile.launch,
    )  # fmt: skip
    return out


def precision(x: Tensor) -> str:
    """How products of float32 are rounded: as torch's own, exact unless `set_float32_matmul_precision` says less."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
