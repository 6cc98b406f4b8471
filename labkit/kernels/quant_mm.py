"""Products over rows in expert order with both sides quantised: FP8 in blocks, or INT8 by rows, after `grouped_mm`.

FP8 (DeepSeek-V3, arXiv 2412.19437, section 3.3): E4M3, a scale for 128 × 128 weights and for 128 values of a row. A
step of the depth is one block: its product comes out of the tensor cores, which add up with few bits, and joins the
float32 sums on the ordinary ones. INT8: whole numbers are summed exactly to the end, and both scales come last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.kernels.grouped_mm import halves, locate, put
from labkit.kernels.language import TensorDescriptor, tl, triton
from labkit.kernels.permute import ExpertMap
from labkit.kernels.quant_rows import BLOCK, fp8_scale, size, to_fp8
from labkit.kernels.tiles import Tile, programs


@triton.jit
def _gate_up_fp8(
    x_ptr, x_scale_ptr, pair_ptr, weights, w_scale_ptr, hidden_ptr, hidden_scale_ptr,
    tile_expert_ptr, first_tile_ptr, offset_ptr, T, D, F, N, E,
    K: tl.constexpr, EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """SiLU(x · gate) · (x · up) of one block of columns, in E4M3 again: a tile is as wide as what shares a scale."""
    columns = F // BLOCK
    blocks = tl.cdiv(D, BLOCK)
    tl.assume(blocks > 0)
    depth = tl.arange(0, BLOCK)
    num_tiles = tl.load(first_tile_ptr + E) * columns
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        expert, m, n, start, rows = locate(tile, columns, tile_expert_ptr, first_tile_ptr, offset_ptr)
        row = tl.minimum(m * BLOCK_M + tl.arange(0, BLOCK_M), rows - 1)
        token = tl.load(pair_ptr + start + row) // K
        x_row = x_ptr + (token.to(tl.int64) * D)[:, None] + depth[None, :]
        gate_scale_ptr = w_scale_ptr + (expert * 2 * columns + n) * blocks
        up_scale_ptr = gate_scale_ptr + columns * blocks
        gate = tl.zeros((BLOCK_M, BLOCK), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK), tl.float32)
        for block in range(blocks):
            k = block * BLOCK
            x_scale = tl.load(x_scale_ptr + block * T + token)
            gate_scale = tl.load(gate_scale_ptr + block)
            up_scale = tl.load(up_scale_ptr + block)
            x = tl.load(x_row + k) if EVEN else tl.load(x_row + k, mask=(k + depth < D)[None, :], other=0.0)
            w_gate = weights.load([expert, n * BLOCK, k]).reshape(BLOCK, BLOCK)
            gate += tl.dot(x, w_gate.T) * (x_scale * gate_scale)[:, None]
            w_up = weights.load([expert, F + n * BLOCK, k]).reshape(BLOCK, BLOCK)
            up += tl.dot(x, w_up.T) * (x_scale * up_scale)[:, None]
        hidden = gate * tl.sigmoid(gate) * up
        scale = fp8_scale(tl.max(size(hidden), 1))
        row = start + m * BLOCK_M
        left = rows - m * BLOCK_M
        put(hidden_ptr, to_fp8(hidden * (1 / scale)[:, None], hidden_ptr.dtype.element_ty), row, left, n * BLOCK, F, F)
        i = tl.arange(0, BLOCK_M)
        tl.store(hidden_scale_ptr + n * N + row + i, scale, mask=i < left)


@triton.jit
def _down_fp8(
    x, x_scale_ptr, weights, w_scale_ptr, out_ptr, tile_expert_ptr, first_tile_ptr, offset_ptr, D_IN, D_OUT, N, E,
    BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[row] = x[row] · Wᵀ of two blocks of columns, side by side."""
    columns = tl.cdiv(D_OUT, 2 * BLOCK)
    blocks = tl.cdiv(D_IN, BLOCK)
    tl.assume(blocks > 0)
    num_tiles = tl.load(first_tile_ptr + E) * columns
    last = tl.cdiv(D_OUT, BLOCK) - 1
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        expert, m, n, start, rows = locate(tile, columns, tile_expert_ptr, first_tile_ptr, offset_ptr)
        row = start + m * BLOCK_M
        left = rows - m * BLOCK_M
        i = tl.minimum(tl.arange(0, BLOCK_M), left - 1)
        left_scale_ptr = w_scale_ptr + (expert * (last + 1) + 2 * n) * blocks
        right_scale_ptr = w_scale_ptr + (expert * (last + 1) + tl.minimum(2 * n + 1, last)) * blocks
        one = tl.zeros((BLOCK_M, BLOCK), tl.float32)
        other = tl.zeros((BLOCK_M, BLOCK), tl.float32)
        for block in range(blocks):
            k = block * BLOCK
            x_scale = tl.load(x_scale_ptr + block * N + row + i)
            left_scale = tl.load(left_scale_ptr + block)
            right_scale = tl.load(right_scale_ptr + block)
            a = x.load([row, k])
            w_left = weights.load([expert, 2 * n * BLOCK, k]).reshape(BLOCK, BLOCK)
            one += tl.dot(a, w_left.T) * (x_scale * left_scale)[:, None]
            w_right = weights.load([expert, (2 * n + 1) * BLOCK, k]).reshape(BLOCK, BLOCK)
            other += tl.dot(a, w_right.T) * (x_scale * right_scale)[:, None]
        put(out_ptr, one, row, left, 2 * n * BLOCK, D_OUT, D_OUT)
        put(out_ptr, other, row, left, (2 * n + 1) * BLOCK, D_OUT, D_OUT)


@triton.jit
def _gate_up_int8(
    x_ptr, x_scale_ptr, pair_ptr, weights, w_scale_ptr, hidden_ptr, tile_expert_ptr, first_tile_ptr, offset_ptr, D, F,
    E, K: tl.constexpr, EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`grouped_mm._gate_up` in whole numbers; a gate and an up column have scales of their own."""
    columns = tl.cdiv(F, BLOCK_N)
    steps = tl.cdiv(D, BLOCK_K)
    tl.assume(steps > 0)
    depth = tl.arange(0, BLOCK_K)
    num_tiles = tl.load(first_tile_ptr + E) * columns
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        expert, m, n, start, rows = locate(tile, columns, tile_expert_ptr, first_tile_ptr, offset_ptr)
        row = tl.minimum(m * BLOCK_M + tl.arange(0, BLOCK_M), rows - 1)
        token = tl.load(pair_ptr + start + row) // K
        x_row = x_ptr + (token.to(tl.int64) * D)[:, None] + depth[None, :]
        product = tl.zeros((BLOCK_M, 2 * BLOCK_N), tl.int32)
        for step in range(steps):
            k = step * BLOCK_K
            x = tl.load(x_row + k) if EVEN else tl.load(x_row + k, mask=(k + depth < D)[None, :], other=0)
            w = weights.load([expert, 0, n * BLOCK_N, k]).reshape(2 * BLOCK_N, BLOCK_K)
            product = tl.dot(x, w.T, product, out_dtype=tl.int32)
        gate, up = halves(product)
        x_scale = tl.load(x_scale_ptr + token)[:, None]
        j = n * BLOCK_N + tl.arange(0, BLOCK_N)
        w_scale = w_scale_ptr + expert * 2 * F + j
        gate = gate.to(tl.float32) * x_scale * tl.load(w_scale, mask=j < F, other=0.0)[None, :]
        up = up.to(tl.float32) * x_scale * tl.load(w_scale + F, mask=j < F, other=0.0)[None, :]
        put(hidden_ptr, gate * tl.sigmoid(gate) * up, start + m * BLOCK_M, rows - m * BLOCK_M, n * BLOCK_N, F, F)


@triton.jit
def _down_int8(
    x, x_scale_ptr, weights, w_scale_ptr, out_ptr, tile_expert_ptr, first_tile_ptr, offset_ptr, D_IN, D_OUT, E,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[row] = x[row] · Wᵀ in whole numbers, then the row's scale times the column's."""
    columns = tl.cdiv(D_OUT, BLOCK_N)
    steps = tl.cdiv(D_IN, BLOCK_K)
    tl.assume(steps > 0)
    num_tiles = tl.load(first_tile_ptr + E) * columns
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        expert, m, n, start, rows = locate(tile, columns, tile_expert_ptr, first_tile_ptr, offset_ptr)
        row = start + m * BLOCK_M
        left = rows - m * BLOCK_M
        product = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
        for step in range(steps):
            k = step * BLOCK_K
            w = weights.load([expert, n * BLOCK_N, k]).reshape(BLOCK_N, BLOCK_K)
            product = tl.dot(x.load([row, k]), w.T, product, out_dtype=tl.int32)
        i = tl.arange(0, BLOCK_M)
        j = n * BLOCK_N + tl.arange(0, BLOCK_N)
        x_scale = tl.load(x_scale_ptr + row + i, mask=i < left, other=0.0)
        w_scale = tl.load(w_scale_ptr + expert * D_OUT + j, mask=j < D_OUT, other=0.0)
        y = product.to(tl.float32) * x_scale[:, None] * w_scale[None, :]
        one, other = halves(y)  # stored one after the other: half the staging memory
        put(out_ptr, one, row, left, n * BLOCK_N, D_OUT, D_OUT)
        put(out_ptr, other, row, left, n * BLOCK_N + BLOCK_N // 2, D_OUT, D_OUT)


def gate_up_fp8(
    x_TD: Tensor, x_scale_Td: Tensor, gate_up_E2FD: Tensor, scale_Efd: Tensor, places: ExpertMap, tile: Tile
) -> tuple[Tensor, Tensor]:
    """Gate, up and SwiGLU of all experts in E4M3: `hidden_NF` and its scales [N, F/128], laid out block by block.

    Args:
        x_TD, x_scale_Td: of `quant_rows.fp8_rows`. gate_up_E2FD: [E, 2F, D] E4M3 contiguous, gate rows first, F a
            multiple of 128. scale_Efd: [E, 2F/128, ⌈D/128⌉] float32 contiguous. places: made with the tile's block_m.
    """
    (T, D), (E, F) = x_TD.shape, (gate_up_E2FD.shape[0], gate_up_E2FD.shape[1] // 2)
    N = len(places.pair_N)
    hidden = x_TD.new_empty(N, F)
    hidden_scale = x_scale_Td.new_empty(F // BLOCK, N)
    weights = TensorDescriptor.from_tensor(gate_up_E2FD, [1, BLOCK, BLOCK])
    grid = programs(tile, len(places.tile_expert) * (F // BLOCK), x_TD.device)
    _gate_up_fp8[(grid,)](
        x_TD, x_scale_Td, places.pair_N, weights, scale_Efd, hidden, hidden_scale,
        places.tile_expert, places.first_tile_E1, places.offset_E1, T, D, F, N, E,
        K=places.place_TK.shape[1], EVEN=D % BLOCK == 0, BLOCK_M=tile.block_m, BLOCK=BLOCK, **tile.launch,
    )  # fmt: skip
    return hidden, hidden_scale.mT


def down_fp8(
    x_NF: Tensor, x_scale_Nf: Tensor, down_EDF: Tensor, scale_Edf: Tensor, places: ExpertMap, tile: Tile,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Every row in expert order times its expert's matrix, both E4M3: [N, D] in `dtype`.

    Args:
        x_NF, x_scale_Nf: of `gate_up_fp8`. down_EDF: [E, D, F] E4M3 contiguous; scale_Edf: [E, ⌈D/128⌉, ⌈F/128⌉].
    """
    (N, F), (E, D, _) = x_NF.shape, down_EDF.shape
    out = x_NF.new_empty(N, D, dtype=dtype)
    rows = TensorDescriptor.from_tensor(x_NF, [tile.block_m, BLOCK])
    weights = TensorDescriptor.from_tensor(down_EDF, [1, BLOCK, BLOCK])
    grid = programs(tile, len(places.tile_expert) * triton.cdiv(D, 2 * BLOCK), x_NF.device)
    _down_fp8[(grid,)](
        rows, x_scale_Nf, weights, scale_Edf, out, places.tile_expert, places.first_tile_E1, places.offset_E1,
        F, D, N, E, BLOCK_M=tile.block_m, BLOCK=BLOCK, **tile.launch,
    )  # fmt: skip
    return out


def gate_up_int8(
    x_TD: Tensor, x_scale_T: Tensor, gate_up_E2FD: Tensor, scale_E2F: Tensor, places: ExpertMap, tile: Tile,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Gate, up and SwiGLU of all experts from INT8 on both sides: `hidden_NF` in `dtype`.

    Args:
        x_TD, x_scale_T: of `quant_rows.int8_rows`. gate_up_E2FD: [E, 2F, D] int8 contiguous, gate rows first;
            scale_E2F: [E, 2F] float32 contiguous. places: made with the tile's block_m.
    """
    (E, F, D), half = (gate_up_E2FD.shape[0], gate_up_E2FD.shape[1] // 2, gate_up_E2FD.shape[2]), tile.block_n // 2
    hidden = x_TD.new_empty(len(places.pair_N), F, dtype=dtype)
    weights = TensorDescriptor(gate_up_E2FD, [E, 2, F, D], [2 * F * D, F * D, D, 1], [1, 2, half, tile.block_k])
    grid = programs(tile, len(places.tile_expert) * triton.cdiv(F, half), x_TD.device)
    _gate_up_int8[(grid,)](
        x_TD, x_scale_T, places.pair_N, weights, scale_E2F, hidden,
        places.tile_expert, places.first_tile_E1, places.offset_E1, D, F, E, K=places.place_TK.shape[1],
        EVEN=D % tile.block_k == 0, BLOCK_M=tile.block_m, BLOCK_N=half, BLOCK_K=tile.block_k, **tile.launch,
    )  # fmt: skip
    return hidden


def down_int8(
    x_NF: Tensor, x_scale_N: Tensor, down_EDF: Tensor, scale_ED: Tensor, places: ExpertMap, tile: Tile,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Every row in expert order times its expert's matrix, both INT8: [N, D] in `dtype`."""
    (N, F), (E, D, _) = x_NF.shape, down_EDF.shape
    out = x_NF.new_empty(N, D, dtype=dtype)
    rows = TensorDescriptor.from_tensor(x_NF, [tile.block_m, tile.block_k])
    weights = TensorDescriptor.from_tensor(down_EDF, [1, tile.block_n, tile.block_k])
    grid = programs(tile, len(places.tile_expert) * triton.cdiv(D, tile.block_n), x_NF.device)
    _down_int8[(grid,)](
        rows, x_scale_N, weights, scale_ED, out, places.tile_expert, places.first_tile_E1, places.offset_E1,
        F, D, E, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, **tile.launch,
    )  # fmt: skip
    return out
