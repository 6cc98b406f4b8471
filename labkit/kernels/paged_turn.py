"""Queries and keys are turned by their positions, and the new entries written, in one launch instead of a dozen.

Rotary positions (Su et al. 2021, arXiv 2104.09864, equations 13 to 16) as `nn.rope.rotate` has them, in float32.

Shape suffixes: T tokens, H query heads, G key heads, r width that turns; A blocks of a store, b positions in each.
"""

from __future__ import annotations

from torch import Tensor

from labkit.kernels.attention_tiles import padded
from labkit.kernels.language import tl, triton
from labkit.kernels.paged_write import refuses as cannot_move


@triton.jit
def _turn(
    from_ptr, to_ptr, cos_ptr, sin_ptr, from_head, to_head,
    HEADS: tl.constexpr, R: tl.constexpr, NEIGHBOURS: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """All heads of one token."""
    head, pair = tl.arange(0, ROWS)[:, None], tl.arange(0, PAIRS)[None, :]
    mask = (head < HEADS) & (pair < R // 2)
    first, second = pair, pair + R // 2
    if NEIGHBOURS:
        first, second = 2 * pair, 2 * pair + 1
    x = tl.load(from_ptr + head.to(tl.int64) * from_head + first, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(from_ptr + head.to(tl.int64) * from_head + second, mask=mask, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + pair, mask=pair < R // 2, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + pair, mask=pair < R // 2, other=0.0).to(tl.float32)
    kind = to_ptr.dtype.element_ty
    tl.store(to_ptr + head.to(tl.int64) * to_head + first, (x * cos - y * sin).to(kind), mask=mask)
    tl.store(to_ptr + head.to(tl.int64) * to_head + second, (y * cos + x * sin).to(kind), mask=mask)


@triton.jit
def _copy(
    from_ptr, to_ptr, from_head, to_head,
    HEADS: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    head, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    mask = (head < HEADS) & (column < D)
    found = tl.load(from_ptr + head.to(tl.int64) * from_head + column, mask=mask, other=0.0)
    tl.store(to_ptr + head.to(tl.int64) * to_head + column, found.to(to_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows_ptr"])
def _turn_and_write(
    q_ptr, k_ptr, v_ptr, q_to, k_to, v_to, cos_ptr, sin_ptr, rows_ptr,
    q_token, q_head, k_token, k_head, v_token, v_head, q_to_token, q_to_head, k_row, k_to_head, v_row, v_to_head,
    H: tl.constexpr, G: tl.constexpr, R: tl.constexpr, D: tl.constexpr, NEIGHBOURS: tl.constexpr,
    ROWS: tl.constexpr, KEY_ROWS: tl.constexpr, PAIRS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One token's queries, keys or values."""
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(rows_ptr + token)
    cos_ptr, sin_ptr = cos_ptr + token * (R // 2), sin_ptr + token * (R // 2)
    if part == 0:
        _turn(
            q_ptr + token * q_token, q_to + token * q_to_token, cos_ptr, sin_ptr, q_head, q_to_head,
            H, R, NEIGHBOURS, ROWS, PAIRS,
        )  # fmt: skip
    elif part == 1:
        _turn(
            k_ptr + token * k_token, k_to + row * k_row, cos_ptr, sin_ptr, k_head, k_to_head,
            G, R, NEIGHBOURS, KEY_ROWS, PAIRS,
        )  # fmt: skip
    else:
        _copy(v_ptr + token * v_token, v_to + row * v_row, v_head, v_to_head, G, D, KEY_ROWS, COLUMNS)


def refuses(
    query_THr: Tensor, stores: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor], turn: tuple[Tensor, Tensor, bool]
) -> str:
    """Why the kernel cannot do it; empty if it can."""
    cos, sin, _ = turn
    if query_THr.stride(-1) != 1 or not cos.is_contiguous() or not sin.is_contiguous():
        return "numbers of a query, and the tables, must lie side by side"
    return cannot_move(stores, fresh)


def turn_and_write(
    query_THr: Tensor, out_THr: Tensor, stores: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor],
    turn: tuple[Tensor, Tensor, bool], rows_T: Tensor,
) -> None:  # fmt: skip
    """Turn queries and the first of the two entries; write both entries into their rows.

    Args:
        query_THr: [T, H, r]; out_THr: where the turned ones go, may be the same.
        stores: of what turns [A, b, G, r], and of what does not [A, b, G, any width]; fresh: [T, …] of both.
        turn: cosines and sines [1, T, r / 2] of `nn.rope.rope_tables`, and whether pairs are neighbours.
        rows_T: of the layout.
    """
    cos, sin, interleaved = turn
    (store, other), (key, value) = stores, fresh
    (T, H, r), (_, G, D) = query_THr.shape, value.shape
    _turn_and_write[(T, 3)](
        query_THr, key, value, out_THr, store, other, cos, sin, rows_T, query_THr.stride(0),
        query_THr.stride(1), key.stride(0), key.stride(1), value.stride(0), value.stride(1), out_THr.stride(0),
        out_THr.stride(1), store.stride(1), store.stride(2), other.stride(1), other.stride(2), H=H, G=G, R=r, D=D,
        NEIGHBOURS=interleaved, ROWS=triton.next_power_of_2(H), KEY_ROWS=triton.next_power_of_2(G),
        PAIRS=padded(r) // 2, COLUMNS=padded(D), num_warps=4,
    )  # fmt: skip
