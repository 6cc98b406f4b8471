"""The two FP8 products of `quant_mm` for Hopper, with warps that have different jobs; in Gluon, Triton's lower level.

A program has twelve warps. One, the producer, only asks the tensor memory accelerator for blocks of rows and weights.
Eight, two groups of four (Hopper's warpgroups), only multiply: each computes 64 of a tile's 128 rows. They meet at
barriers in shared memory, two for each of the stages that hold a block: `full`, which the copies themselves count down
when their bytes have arrived, and `empty`, at which both groups say that they have read it. A wait names the barrier's
phase, the parity of how often it was used. So the producer runs up to four blocks ahead, across tiles too, and no warp
that multiplies spends instructions on addresses or copies.

Why: a block of 128 columns is one product on the tensor cores, after which its sums are scaled and added on the
ordinary ones. In a plain Triton loop all warps do all of it in step: the tensor cores wait while every warp scales, and
the scaling waits for them. Here one group scales while the other multiplies. Fewer registers go to addresses, so the
three tiles of sums (two that last, one that is being computed: 192 registers a thread) stay in registers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from labkit.kernels.grouped_mm import locate
from labkit.kernels.permute import ExpertMap
from labkit.kernels.quant_rows import INFINITY, TINY
from labkit.kernels.tiles import Tile, programs

TILE = Tile(128, 256, 128, 4, 4)
"""Rows, columns, depth; four warps a group; blocks that shared memory holds. One program a multiprocessor."""
BLOCK = gl.constexpr(128)
HALF = gl.constexpr(64)  # rows of a warpgroup
PRODUCER_REGISTERS = gl.constexpr(40)
GROUP_REGISTERS = gl.constexpr(232)  # 4 · 40 + 8 · 232 warps' worth: all that a multiprocessor has


@gluon.jit
def _produce(
    x_boxes, w_boxes, shared, map_ptrs, columns, blocks, step, second, E, STAGES: gl.constexpr, BLOCK_M: gl.constexpr
):  # fmt: skip
    """One warp: tile after tile, block after block, as soon as a stage is empty."""
    x_shared, w_shared, full, empty = shared
    tile_expert_ptr, first_tile_ptr, offset_ptr = map_ptrs
    num_tiles = gl.load(first_tile_ptr + E) * columns
    bytes: gl.constexpr = x_boxes.block_type.nbytes + 2 * w_boxes.block_type.nbytes
    turn = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        expert, m, n, start, _ = locate(tile, columns, tile_expert_ptr, first_tile_ptr, offset_ptr)
        row = start + m * BLOCK_M
        for block in range(blocks):
            stage, k = turn % STAGES, block * BLOCK
            arrived = full.index(stage)
            mbarrier.wait(empty.index(stage), turn // STAGES & 1 ^ 1)
            mbarrier.expect(arrived, bytes)
            tma.async_copy_global_to_shared(x_boxes, [row, k], arrived, x_shared.index(stage))
            w = [expert, n * step * BLOCK, k]
            tma.async_copy_global_to_shared(w_boxes, w, arrived, w_shared.index(2 * stage))
            w = [expert, (n * step + second) * BLOCK, k]
            tma.async_copy_global_to_shared(w_boxes, w, arrived, w_shared.index(2 * stage + 1))
            turn += 1


@gluon.jit
def _multiply(
    shared, given, map_ptrs, columns, blocks, step, second, last, T, N, WIDTH, E,
    K: gl.constexpr, WARPGROUP: gl.constexpr, GATED: gl.constexpr, STAGES: gl.constexpr, BLOCK_M: gl.constexpr,
):  # fmt: skip
    """Four warps: the products of 64 rows with two blocks of weights each, scaled block by block."""
    x_shared, w_shared, full, empty = shared
    x_scale_ptr, pair_ptr, w_scale_ptr, out_ptr, out_scale_ptr = given
    tile_expert_ptr, first_tile_ptr, offset_ptr = map_ptrs
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 32])
    num_tiles = gl.load(first_tile_ptr + E) * columns
    i = gl.arange(0, HALF, gl.SliceLayout(1, sums))
    part = gl.zeros([HALF, BLOCK], gl.float32, sums)
    turn = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        expert, m, n, start, rows = locate(tile, columns, tile_expert_ptr, first_tile_ptr, offset_ptr)
        row = m * BLOCK_M + WARPGROUP * HALF
        left = rows - row
        row += start
        scale_row = gl.minimum(row + i, start + rows - 1)
        if GATED:  # rows in expert order, their scales in token order
            scale_row = gl.load(pair_ptr + scale_row) // K
        x_scale_at = x_scale_ptr + scale_row
        one_scale_ptr = w_scale_ptr + (expert * (last + 1) + n * step) * blocks
        two_scale_ptr = w_scale_ptr + (expert * (last + 1) + gl.minimum(n * step + second, last)) * blocks
        x_scale, one_scale, two_scale = gl.load(x_scale_at), gl.load(one_scale_ptr), gl.load(two_scale_ptr)
        one = gl.zeros([HALF, BLOCK], gl.float32, sums)
        two = gl.zeros([HALF, BLOCK], gl.float32, sums)
        for block in range(blocks):
            stage = turn % STAGES
            after = gl.minimum(block + 1, blocks - 1)
            x_scale_next = gl.load(x_scale_at + after * (T if GATED else N))
            one_scale_next, two_scale_next = gl.load(one_scale_ptr + after), gl.load(two_scale_ptr + after)
            mbarrier.wait(full.index(stage), turn // STAGES & 1)
            x = x_shared.index(stage).slice(WARPGROUP * HALF, HALF, 0)
            w = w_shared.index(2 * stage).reshape([BLOCK, BLOCK]).permute([1, 0])
            part = warpgroup_mma(x, w, part, use_acc=False, is_async=True)
            part = warpgroup_mma_wait(0, deps=[part])
            one += part * gl.expand_dims(x_scale * one_scale, 1)
            w = w_shared.index(2 * stage + 1).reshape([BLOCK, BLOCK]).permute([1, 0])
            part = warpgroup_mma(x, w, part, use_acc=False, is_async=True)
            part = warpgroup_mma_wait(0, deps=[part])
            mbarrier.arrive(empty.index(stage), count=1)
            two += part * gl.expand_dims(x_scale * two_scale, 1)
            x_scale, one_scale, two_scale = x_scale_next, one_scale_next, two_scale_next
            turn += 1
        if GATED:
            hidden = one * two / (1.0 + gl.exp(-one))
            size = gl.where(gl.abs(hidden) < INFINITY, gl.abs(hidden), INFINITY)
            largest = gl.max(size, 1)
            scale = gl.maximum(largest / 448.0, TINY) + 0 * largest
            codes = (hidden * gl.expand_dims(1.0 / scale, 1)).to(out_ptr.dtype.element_ty)
            _put(out_ptr, codes, row, left, n * BLOCK, WIDTH, 16)
            gl.store(out_scale_ptr + n * N + row + i, scale, mask=i < left)
        else:
            _put(out_ptr, one, row, left, 2 * n * BLOCK, WIDTH, 8)
            _put(out_ptr, two, row, left, (2 * n + 1) * BLOCK, WIDTH, 8)


@gluon.jit
def _put(ptr, block, row, left, column, width, VALUES: gl.constexpr):
    """Store a block without what lies beyond its rows or its width, VALUES a thread at once."""
    ACROSS: gl.constexpr = BLOCK // VALUES
    layout: gl.constexpr = gl.BlockedLayout([1, VALUES], [32 // ACROSS, ACROSS], [4, 1], [1, 0])
    block = gl.convert_layout(block.to(ptr.dtype.element_ty), layout)
    i = gl.arange(0, HALF, gl.SliceLayout(1, layout))
    j = gl.arange(0, BLOCK, gl.SliceLayout(0, layout))
    at = ptr + row.to(gl.int64) * width + column
    mask = (i < left)[:, None] & (column + j < width)[None, :]
    gl.store(at + i[:, None] * width + j[None, :], block, mask=mask)


@gluon.jit
def _product_fp8(
    x_boxes, w_boxes, x_scale_ptr, pair_ptr, w_scale_ptr, out_ptr, out_scale_ptr,
    tile_expert_ptr, first_tile_ptr, offset_ptr, columns, blocks, step, second, last, T, N, WIDTH, E,
    K: gl.constexpr, GATED: gl.constexpr, STAGES: gl.constexpr, BLOCK_M: gl.constexpr,
):  # fmt: skip
    """Tile (m, n) holds two blocks of columns: n·step, and `second` further on, of which `last` is the matrix's last.

    GATED: gate and up of the same columns, of which the hidden block is made, in E4M3. Else neighbours.
    """
    x_shared = gl.allocate_shared_memory(x_boxes.dtype, [STAGES, BLOCK_M, BLOCK], x_boxes.layout)
    w_shared = gl.allocate_shared_memory(w_boxes.dtype, [2 * STAGES, 1, BLOCK, BLOCK], w_boxes.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    map_ptrs = tile_expert_ptr, first_tile_ptr, offset_ptr
    shared = x_shared, w_shared, full, empty
    given = x_scale_ptr, pair_ptr, w_scale_ptr, out_ptr, out_scale_ptr
    gl.warp_specialize(
        [
            (_multiply, (shared, given, map_ptrs, columns, blocks, step, second, last, T, N, WIDTH, E,
                         K, 0, GATED, STAGES, BLOCK_M)),
            (_multiply, (shared, given, map_ptrs, columns, blocks, step, second, last, T, N, WIDTH, E,
                         K, 1, GATED, STAGES, BLOCK_M)),
            (_produce, (x_boxes, w_boxes, shared, map_ptrs, columns, blocks, step, second, E, STAGES, BLOCK_M)),
        ],
        [4, 1],
        [GROUP_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


def gate_up_fp8(
    x_ND: Tensor, x_scale_Td: Tensor, gate_up_E2FD: Tensor, scale_Efd: Tensor, places: ExpertMap
) -> tuple[Tensor, Tensor]:
    """`quant_mm.gate_up_fp8` of rows that are in expert order already: `hidden_NF` and its scales [N, F/128].

    Args:
        x_ND, x_scale_Td: of `quant_rows.fp8_rows_in_order`. places: made with `TILE.block_m`. The rest as there.
    """
    (N, D), E, F, T = x_ND.shape, gate_up_E2FD.shape[0], gate_up_E2FD.shape[1] // 2, x_scale_Td.shape[0]
    hidden, hidden_scale = x_ND.new_empty(N, F), x_scale_Td.new_empty(F // BLOCK, N)
    columns = F // BLOCK
    _product_fp8[(programs(TILE, len(places.tile_expert) * columns, x_ND.device),)](
        _boxes(x_ND, [TILE.block_m, BLOCK]), _boxes(gate_up_E2FD, [1, BLOCK, BLOCK]), x_scale_Td, places.pair_N,
        scale_Efd, hidden, hidden_scale, places.tile_expert, places.first_tile_E1, places.offset_E1,
        columns, -(-D // BLOCK), 1, columns, 2 * columns - 1, T, N, F, E,
        K=places.place_TK.shape[1], GATED=True, STAGES=TILE.stages, BLOCK_M=TILE.block_m, num_warps=TILE.warps,
    )  # fmt: skip
    return hidden, hidden_scale.mT


def down_fp8(
    x_NF: Tensor, x_scale_Nf: Tensor, down_EDF: Tensor, scale_Edf: Tensor, places: ExpertMap, dtype: torch.dtype
) -> Tensor:
    """`quant_mm.down_fp8`: [N, D] in `dtype`; places made with `TILE.block_m`."""
    (N, F), (E, D, _) = x_NF.shape, down_EDF.shape
    out = x_NF.new_empty(N, D, dtype=dtype)
    columns = -(-D // (2 * BLOCK))
    _product_fp8[(programs(TILE, len(places.tile_expert) * columns, x_NF.device),)](
        _boxes(x_NF, [TILE.block_m, BLOCK]), _boxes(down_EDF, [1, BLOCK, BLOCK]), x_scale_Nf, places.pair_N,
        scale_Edf, out, x_scale_Nf, places.tile_expert, places.first_tile_E1, places.offset_E1,
        columns, -(-F // BLOCK), 2, 1, -(-D // BLOCK) - 1, 0, N, D, E,
        K=1, GATED=False, STAGES=TILE.stages, BLOCK_M=TILE.block_m, num_warps=TILE.warps,
    )  # fmt: skip
    return out


def _boxes(tensor: Tensor, box: list[int]) -> TensorDescriptor:
    box = [int(size) for size in box]
    return TensorDescriptor.from_tensor(tensor, box, gl.NVMMASharedLayout.get_default_for(box, gl.float8e4nv))
