"""Several new tokens a sequence over a paged store: chunks of prompts, each behind what was computed before.

A program takes a tile of one sequence's tokens, with all heads that share a key head, and walks over the entries that
its last token sees. Which tile is which program's it finds in the layout itself: sequence n's first program is
⌊tokens before it / tile⌋ + n, which needs no list of tiles and leaves at most one idle program a sequence.
FlashAttention-2 (Dao 2023, arXiv 2307.08691) with a block table; chunked prefill: Agrawal et al. 2024 (arXiv
2403.02310), section 4.1.

Shape suffixes: T tokens, N sequences, H query heads, G key and value heads, d head width, v value width; A blocks of a
store, b positions in each; M blocks of a table.
"""

from __future__ import annotations

from torch import Tensor

from labkit.kernels.attention_tiles import LOG2E, Block
from labkit.kernels.grouped_mm import precision
from labkit.kernels.language import tl, triton
from labkit.kernels.paged_layout import Layout
from labkit.kernels.paged_tiles import Heads, before_any_key, block, load_queries, store_rows, walk


@triton.jit
def _sequence_of(starts_ptr, program, skip, N, QUERIES: tl.constexpr):
    """The sequence whose tile a program takes: the last one whose first program is not after it."""
    low, high = skip, N
    while high - low > 1:
        middle = (low + high) // 2
        first = (tl.load(starts_ptr + middle) - skip) // QUERIES + middle - skip
        low, high = tl.where(first <= program, middle, low), tl.where(first <= program, high, middle)
    return low


@triton.jit(do_not_specialize=["table_ptr", "starts_ptr", "length_ptr", "M", "N", "skip", "window"])
def _prefill(
    q_ptr, k_ptr, v_ptr, table_ptr, starts_ptr, length_ptr, sinks_ptr, out_ptr,
    q_token, q_head, M, N, skip, window, scale,
    G: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, ROPE: tl.constexpr, B: tl.constexpr,
    WIDTH: tl.constexpr, TURNED: tl.constexpr, SLIDES: tl.constexpr, HEADS: tl.constexpr, QUERIES: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """QUERIES tokens of one sequence times HEADS heads of one group; the last tiles, which see most, come first."""
    TILES: tl.constexpr = (SHARED + HEADS - 1) // HEADS
    program = tl.num_programs(1) - 1 - tl.program_id(1)
    n = _sequence_of(starts_ptr, program, skip, N, QUERIES)
    start, length = tl.load(starts_ptr + n), tl.load(length_ptr + n)
    fresh = tl.load(starts_ptr + n + 1) - start
    first_query = (program - (start - skip) // QUERIES - n + skip) * QUERIES
    if first_query >= fresh:
        return
    row = tl.arange(0, ROWS)
    query, place = first_query + row // HEADS, tl.program_id(0) % TILES * HEADS + row % HEADS
    group = tl.program_id(0) // TILES
    head, valid = group * SHARED + place, (query < fresh) & (row < QUERIES * HEADS) & (place < SHARED)
    token, position = start + query, length - fresh + query
    q = load_queries(q_ptr, token, head, valid, q_token, q_head, D, WIDTH)
    turned = q
    if ROPE:
        turned = load_queries(q_ptr + D, token, head, valid, q_token, q_head, ROPE, TURNED)
    top, total = before_any_key(sinks_ptr, head, valid, ROWS)
    out = tl.zeros((ROWS, WIDTH), tl.float32)
    k_ptr, v_ptr, table_ptr = k_ptr + group * D, v_ptr + group * D, table_ptr + n.to(tl.int64) * M
    STRIDE: tl.constexpr = G * (D + ROPE)
    lowest = length - fresh + first_query  # the position of the tile's first token
    last = tl.maximum(tl.minimum(lowest + QUERIES, length), 0)
    whole = 0
    if SLIDES:
        whole = tl.maximum(lowest - window + 1, 0) // KEYS * KEYS
    else:
        whole = tl.maximum(lowest + 1, 0) // KEYS * KEYS
        top, total, out = walk(
            q, turned, k_ptr, v_ptr, table_ptr, 0, whole, position, window, scale, top, total, out, False, False,
            PRECISION, KEYS, STAGES, STRIDE, D, ROPE, B, WIDTH, TURNED,
        )  # fmt: skip
    top, total, out = walk(
        q, turned, k_ptr, v_ptr, table_ptr, whole, last, position, window, scale, top, total, out, True, SLIDES,
        PRECISION, KEYS, STAGES, STRIDE, D, ROPE, B, WIDTH, TURNED,
    )  # fmt: skip
    out = out / tl.where(total > 0, total, 1.0)[:, None]
    store_rows(out_ptr, token, head, valid, out, G * SHARED, D, WIDTH)


def prefill(
    out_THv: Tensor, query_THd: Tensor, key_AbGd: Tensor, value_AbGv: Tensor, layout: Layout, *, scale: float,
    window: int, sinks: Tensor | None, tile: Block | None = None,
) -> None:  # fmt: skip
    """Fill the rows of the output that `layout.decodes` leaves.

    Args:
        out_THv: [T, H, v], contiguous. The others as `paged_attention.attend` has checked them.
        tile: what is taken instead of the table's choice, for measurements.

    Nothing waits for the device, and a graph can hold the call.
    """
    heads, skip, N = Heads.of(query_THd, key_AbGd, value_AbGv), layout.decodes, len(layout.lengths_N)
    tile = tile or block(query_THd, heads, decode=False)
    together = min(heads.shared, tile.queries)
    queries = tile.queries // together
    across = heads.groups * triton.cdiv(heads.shared, together)
    programs = (len(query_THd) - skip) // queries + N - skip
    _prefill[(across, programs)](
        query_THd, key_AbGd, value_AbGv, layout.tables_NM, layout.starts_N, layout.lengths_N, sinks, out_THv,
        query_THd.stride(0), query_THd.stride(1), layout.tables_NM.stride(0), N, skip, window, scale * LOG2E,
        **heads.constants, SLIDES=window > 0, HEADS=together, QUERIES=queries,
        PRECISION=precision(query_THd), ROWS=tile.queries, KEYS=tile.keys, STAGES=tile.stages,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
