"""One new token for each of many sequences: attention that is split along the context, then put together.

A program takes the heads that share one key head, so that keys are read once, and a share of the sequence's entries. It
leaves a softmax of its share and the logarithm of its sum; a second kernel weighs the shares. How many shares there can
be is a number of the host, so that a graph can hold the call; how long they are follows from the length on the device.
Flash-decoding (Dao, Haziza, Massa, Sizov 2023); Kwon et al. 2023, PagedAttention (arXiv 2309.06180), section 5.1.

Shape suffixes: N sequences, one token each; H query heads, G key and value heads, d head width, v value width; A blocks
of a store, b positions in each; M blocks of a table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.kernels.attention_tiles import LOG2E, Block
from labkit.kernels.grouped_mm import precision
from labkit.kernels.language import tl, triton
from labkit.kernels.paged_layout import Layout
from labkit.kernels.paged_tiles import (
    Heads,
    before_any_key,
    block,
    load_queries,
    multiprocessors,
    store_rows,
    walk,
)

MOST_SHARES = 64
ENOUGH = 4  # programs a multiprocessor; with fewer, contexts are split as finely as tiles allow
LONG = 512  # positions; with enough programs, no share is shorter
UNEVEN = 2048  # positions; so long a context is split even then, so that it does not run on alone


def shares(programs: int, longest_context: int, keys: int, device_index: int = 0) -> tuple[int, int]:
    """Into how many shares contexts are split at most, and the least tiles of a share.

    Args:
        programs: without splitting; longest_context: in positions; keys: positions of a tile.

    >>> shares(programs=4096, longest_context=1024, keys=64), shares(programs=16, longest_context=4096, keys=64)
    ((1, 8), (33, 1))
    """
    enough = ENOUGH * multiprocessors(device_index)
    tiles = -(-longest_context // keys)
    if programs >= enough:
        return min(MOST_SHARES, max(1, longest_context // UNEVEN)), max(1, LONG // keys)
    return min(MOST_SHARES, tiles, -(-enough // programs)), 1


@triton.jit
def _share(length, window, split, splits, least, SLIDES: tl.constexpr, KEYS: tl.constexpr):
    """First and last + 1 position of a share, and how many shares there are."""
    begin = 0
    if SLIDES:
        begin = tl.maximum(length - window, 0)
    tiles = tl.cdiv(length - begin, KEYS)
    each = tl.maximum(tl.cdiv(tiles, splits), least)
    first = begin + split * each * KEYS
    return first, tl.minimum(first + each * KEYS, length), tl.cdiv(tiles, each)


@triton.jit(do_not_specialize=["table_ptr", "length_ptr", "M", "window", "splits", "least"])
def _decode(
    q_ptr, k_ptr, v_ptr, table_ptr, length_ptr, sinks_ptr, out_ptr, part_ptr, sum_ptr,
    q_token, q_head, M, window, splits, least, scale,
    G: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, ROPE: tl.constexpr, B: tl.constexpr,
    WIDTH: tl.constexpr, TURNED: tl.constexpr, SLIDES: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Up to ROWS heads of one sequence over one share of its entries."""
    H: tl.constexpr = G * SHARED
    TILES: tl.constexpr = (SHARED + ROWS - 1) // ROWS
    split, n = tl.program_id(1), tl.program_id(2)
    group = tl.program_id(0) // TILES
    length = tl.load(length_ptr + n)
    first, last, used = _share(length, window, split, splits, least, SLIDES, KEYS)
    if split > 0 and first >= length:
        return
    place = tl.program_id(0) % TILES * ROWS + tl.arange(0, ROWS)
    head, valid = group * SHARED + place, place < SHARED
    token = tl.zeros((ROWS,), tl.int32) + n
    q = load_queries(q_ptr, token, head, valid, q_token, q_head, D, WIDTH)
    turned = q
    if ROPE:
        turned = load_queries(q_ptr + D, token, head, valid, q_token, q_head, ROPE, TURNED)
    top, total = before_any_key(sinks_ptr, head, valid & (split == 0), ROWS)
    out = tl.zeros((ROWS, WIDTH), tl.float32)
    position = tl.zeros((ROWS,), tl.int32) + length - 1
    STRIDE: tl.constexpr = G * (D + ROPE)
    top, total, out = walk(
        q, turned, k_ptr + group * D, v_ptr + group * D, table_ptr + n.to(tl.int64) * M, first, last, position, window,
        scale, top, total, out, True, False, PRECISION, KEYS, STAGES, STRIDE, D, ROPE, B, WIDTH, TURNED,
    )  # fmt: skip
    total = tl.where(total > 0, total, 1.0)  # an empty place gives zeros
    out = out / total[:, None]
    if used <= 1:
        store_rows(out_ptr, token, head, valid, out, H, D, WIDTH)
    else:
        store_rows(part_ptr, token * splits + split, head, valid, out, H, D, WIDTH)
        at = (token.to(tl.int64) * splits + split) * H + head
        tl.store(sum_ptr + at, top + tl.log2(total), mask=valid)


@triton.jit(do_not_specialize=["length_ptr", "window", "splits", "least"])
def _combine(
    part_ptr, sum_ptr, length_ptr, out_ptr, window, splits, least,
    H: tl.constexpr, D: tl.constexpr, SLIDES: tl.constexpr, KEYS: tl.constexpr, PADDED: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """COLUMNS numbers of one head of one sequence, from all its shares; nothing to do where there is one."""
    head, n = tl.program_id(0), tl.program_id(2)
    _, _, used = _share(tl.load(length_ptr + n), window, 0, splits, least, SLIDES, KEYS)
    if used <= 1:
        return
    split = tl.arange(0, PADDED)
    at = (n.to(tl.int64) * splits + split) * H + head
    sums = tl.load(sum_ptr + at, mask=split < used, other=float("-inf"))
    weight = tl.exp2(sums - tl.max(sums, 0))
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (split < used)[:, None] & (column < D)[None, :]
    part = tl.load(part_ptr + at[:, None] * D + column[None, :], mask=mask, other=0.0)
    out = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out_ptr + (n.to(tl.int64) * H + head) * D + column, out.to(out_ptr.dtype.element_ty), mask=column < D)


def decode(
    out_THv: Tensor, query_THd: Tensor, key_AbGd: Tensor, value_AbGv: Tensor, layout: Layout, *, scale: float,
    window: int, sinks: Tensor | None, tile: Block | None = None, split: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Fill the first `layout.decodes` rows of the output: sequence n's one token is token n.

    Args:
        out_THv: [T, H, v], contiguous. The others as `paged_attention.attend` has checked them.
        tile, split: what is taken instead of the tables' choice and of `shares`, for measurements.

    Nothing waits for the device, and a graph can hold the call.
    """
    N, heads = layout.decodes, Heads.of(query_THd, key_AbGd, value_AbGv)
    H, tile = query_THd.shape[1], tile or block(query_THd, heads, decode=True)
    across = heads.groups * triton.cdiv(heads.shared, tile.queries)
    splits, least = split or shares(N * across, layout.longest_context, tile.keys, query_THd.device.index or 0)
    part, sums = out_THv, out_THv  # not touched where nothing is split
    if splits > 1:
        part = out_THv.new_empty((N, splits, H, heads.width), dtype=torch.float32)
        sums = out_THv.new_empty((N, splits, H), dtype=torch.float32)
    common = {"SLIDES": window > 0, "KEYS": tile.keys}
    _decode[(across, splits, N)](
        query_THd, key_AbGd, value_AbGv, layout.tables_NM, layout.lengths_N, sinks, out_THv, part, sums,
        query_THd.stride(0), query_THd.stride(1), layout.tables_NM.stride(0), window, splits, least, scale * LOG2E,
        **heads.constants, **common, PRECISION=precision(query_THd), ROWS=tile.queries, STAGES=tile.stages,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if splits > 1:
        many = triton.next_power_of_2(splits)
        columns = min(heads.constants["WIDTH"], max(16, 4096 // many))
        _combine[(H, triton.cdiv(heads.width, columns), N)](
            part, sums, layout.lengths_N, out_THv, window, splits, least, H=H, D=heads.width, **common, PADDED=many,
            COLUMNS=columns, num_warps=4,
        )  # fmt: skip
