"""From the router's ids to expert order: who computes what, found by counting instead of sorting.

The N = T·K pairs (token, slot) are laid out expert by expert, inside an expert in the order they came, so the same ids
always give the same layout. Rows of one expert are then cut into tiles of `block_m`; a tile never spans two experts.
An id outside 0 … E − 1 is a dropped pair: it gets no row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from labkit.kernels.language import tl, triton

ONE_HOT = 8_192  # elements of a program's one-hot matrix, pairs × experts: it must fit in registers


class ExpertMap(NamedTuple):
    """Where every pair stands in expert order, and which rows every tile computes; all int32.

    pair_N: [N], the pair (token · K + slot) of each row. place_TK: [T, K], the row of each pair, −1 if dropped.
    offset_E1: [E + 1], where each expert's rows begin, and the number of rows. tile_expert: the expert of each tile,
    longer than needed. first_tile_E1: [E + 1], each expert's first tile, and the number of tiles.
    """

    pair_N: Tensor
    place_TK: Tensor
    offset_E1: Tensor
    tile_expert: Tensor
    first_tile_E1: Tensor


@triton.jit
def _count(ids_ptr, counts_ptr, N, E, BLOCK: tl.constexpr, EXPERTS: tl.constexpr):
    """Pairs of each expert within one block of pairs."""
    block = tl.program_id(0)
    n = block * BLOCK + tl.arange(0, BLOCK)
    expert = tl.arange(0, EXPERTS)
    ids = tl.load(ids_ptr + n, mask=n < N, other=-1)
    counts = tl.sum((ids[:, None] == expert[None, :]).to(tl.int32), 0)
    tl.store(counts_ptr + block * E + expert, counts, mask=expert < E)


@triton.jit
def _scan(counts_ptr, before_ptr, blocks, E, BLOCK: tl.constexpr, EXPERTS: tl.constexpr):
    """Pairs of each expert before each block; the row after the last holds the totals."""
    expert = tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS)
    total = tl.zeros((EXPERTS,), tl.int32)
    for start in range(0, blocks, BLOCK):
        block = start + tl.arange(0, BLOCK)
        mask = (block < blocks)[:, None] & (expert < E)[None, :]
        at = block[:, None] * E + expert[None, :]
        counts = tl.load(counts_ptr + at, mask=mask, other=0)
        tl.store(before_ptr + at, total[None, :] + tl.cumsum(counts, 0) - counts, mask=mask)
        total += tl.sum(counts, 0)
    tl.store(before_ptr + blocks * E + expert, total, mask=expert < E)


@triton.jit
def _place(
    ids_ptr, before_ptr, pair_ptr, place_ptr, offset_ptr, tile_expert_ptr, first_tile_ptr, N, E, slots, blocks,
    ALONE: tl.constexpr, BLOCK: tl.constexpr, EXPERTS: tl.constexpr, SLOTS: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Each pair's row: where its expert begins, plus the expert's pairs in earlier blocks and before it in this one."""
    block = tl.program_id(0)
    n = block * BLOCK + tl.arange(0, BLOCK)
    expert = tl.arange(0, EXPERTS)
    ids = tl.load(ids_ptr + n, mask=n < N, other=-1)
    kept = (ids >= 0) & (ids < E)
    mine = (kept[:, None] & (ids[:, None] == expert[None, :])).to(tl.int32)
    rank = tl.cumsum(mine, 0) - 1
    if ALONE:
        total = tl.sum(mine, 0)
        start = tl.cumsum(total, 0) - total
        base = start
    else:
        total = tl.load(before_ptr + blocks * E + expert, mask=expert < E, other=0)
        start = tl.cumsum(total, 0) - total
        base = start + tl.load(before_ptr + block * E + expert, mask=expert < E, other=0)
    row = tl.sum(mine * (base[None, :] + rank), 1)
    tl.store(place_ptr + n, tl.where(kept, row, -1), mask=n < N)
    tl.store(pair_ptr + row, n, mask=kept)
    tiles = tl.cdiv(total, BLOCK_M)
    next_tile = tl.cumsum(tiles, 0)
    if block == 0:
        tl.store(offset_ptr + expert, start, mask=expert < E)
        tl.store(offset_ptr + E, tl.sum(total, 0))
        tl.store(first_tile_ptr + expert, next_tile - tiles, mask=expert < E)
        tl.store(first_tile_ptr + E, tl.sum(tiles, 0))
    tile = block * SLOTS + tl.arange(0, SLOTS)
    passed = (next_tile[None, :] <= tile[:, None]) & (expert < E)[None, :]
    tl.store(tile_expert_ptr + tile, tl.sum(passed.to(tl.int32), 1), mask=tile < slots)


def max_tiles(pairs: int, num_experts: int, block_m: int) -> int:
    """The most tiles that `pairs` rows of `num_experts` experts can fill, whatever the routing.

    >>> max_tiles(pairs=10, num_experts=3, block_m=4)
    4
    """
    return min(pairs, (pairs + num_experts * (block_m - 1)) // block_m)


def expert_map(topk_ids_TK: Tensor, num_experts: int, block_m: int) -> ExpertMap:
    """Lay the pairs out by expert, and cut every expert's rows into tiles.

    Args:
        topk_ids_TK: [T, K], int32 or int64; ids outside 0 … E − 1 are dropped pairs.
        num_experts: E, at most 8,192. block_m: rows of a tile, a power of two.

    Raises ValueError for other shapes, dtypes and sizes. Nothing here waits for the device.
    """
    if topk_ids_TK.ndim != 2 or topk_ids_TK.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"topk_ids_TK is {tuple(topk_ids_TK.shape)} {topk_ids_TK.dtype}; give [T, K] int64 or int32")
    if num_experts < 1 or num_experts > ONE_HOT:
        raise ValueError(f"num_experts is {num_experts}; give 1 to {ONE_HOT}")
    if block_m < 1 or block_m & (block_m - 1):
        raise ValueError(f"block_m is {block_m}; give a power of two")
    ids = topk_ids_TK.contiguous()
    N, E = ids.numel(), num_experts
    if N + E * block_m >= 2**31:
        raise ValueError(f"there are {N} pairs of tokens and experts; split the batch, rows are counted in 32 bits")
    experts = triton.next_power_of_2(E)
    block = min(max(16, ONE_HOT // experts), max(16, triton.next_power_of_2(N)))
    blocks = max(1, triton.cdiv(N, block))
    slots = max_tiles(N, E, block_m)
    sizes = (N, N, E + 1, slots, E + 1, blocks * E, (blocks + 1) * E)
    pair, place, offset, tile_expert, first_tile, counts, before = (
        torch.empty(size, dtype=torch.int32, device=ids.device) for size in sizes
    )
    if blocks > 1:
        _count[(blocks,)](ids, counts, N, E, BLOCK=block, EXPERTS=experts)
        some = min(4, experts)
        rows = min(1024, triton.next_power_of_2(blocks))
        _scan[(triton.cdiv(E, some),)](counts, before, blocks, E, BLOCK=rows, EXPERTS=some)
    per_block = triton.next_power_of_2(max(1, triton.cdiv(slots, blocks)))
    _place[(blocks,)](
        ids, before, pair, place, offset, tile_expert, first_tile, N, E, slots, blocks,
        ALONE=blocks == 1, BLOCK=block, EXPERTS=experts, SLOTS=per_block, BLOCK_M=block_m, num_warps=8,
    )  # fmt: skip
    return ExpertMap(pair, place.view(topk_ids_TK.shape), offset, tile_expert, first_tile)
