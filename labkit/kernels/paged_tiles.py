"""What the kernels over a paged store share: the walk along a sequence's entries, and how large the tiles are.

Shape suffixes: T tokens, H query heads, G key and value heads, d head width; A blocks of a store, b positions in each.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.kernels.attention_tiles import Block, padded
from labkit.kernels.language import INTERPRETED, tl, triton, unsupported

WIDEST = 256  # of a head
RANK, ROPE = 512, 128  # of a latent, and of the turned key beside it
LOWEST = tl.constexpr(-3.4e38)  # a finite start of the running maximum: −∞ − −∞ is no number


@dataclass(frozen=True)
class Heads:
    """How the heads of a call are laid out, as the kernels' compile-time arguments.

    Args:
        groups: G; shared: query heads of each, H / G.
        width: of a value, and of the part of a key that is as wide; rope: what a latent's key has beside it, or 0.
        block_size: b.
    """

    groups: int
    shared: int
    width: int
    rope: int
    block_size: int

    @classmethod
    def of(cls, query_THd: Tensor, key_AbGd: Tensor, value_AbGv: Tensor) -> Heads:
        """The layout of these tensors."""
        b, G, d = key_AbGd.shape[1:]
        width = value_AbGv.shape[-1]
        return cls(G, query_THd.shape[1] // G, width, d - width, b)

    @property
    def constants(self) -> dict[str, int]:
        """What a kernel's launch takes."""
        return {
            "G": self.groups, "SHARED": self.shared, "D": self.width, "ROPE": self.rope, "B": self.block_size,
            "WIDTH": padded(self.width), "TURNED": padded(self.rope) if self.rope else 0,
        }  # fmt: skip


def latent(key_AbGd: Tensor, value_AbGv: Tensor) -> bool:
    """Whether the values are the first numbers of the keys themselves."""
    return key_AbGd.data_ptr() == value_AbGv.data_ptr() and key_AbGd.stride() == value_AbGv.stride()


def refuses(query_THd: Tensor, key_AbGd: Tensor, value_AbGv: Tensor) -> str:
    """Why the kernels cannot attend with these; empty if they can."""
    if why_not := unsupported(query_THd.dtype, query_THd.device.type):
        return why_not
    if query_THd.dtype != key_AbGd.dtype or value_AbGv.dtype != key_AbGd.dtype:
        return (
            f"queries are {query_THd.dtype}, keys {key_AbGd.dtype} and values {value_AbGv.dtype}; they want one dtype"
        )
    if query_THd.stride(-1) != 1 or not key_AbGd.is_contiguous() or value_AbGv.stride() != key_AbGd.stride():
        return "stores must be contiguous, and so must each query"
    d, v = key_AbGd.shape[-1], value_AbGv.shape[-1]
    if latent(key_AbGd, value_AbGv) and d > v:
        wide = v > RANK or d - v > ROPE or key_AbGd.shape[2] != 1
        return f"a latent of {v} with {d - v} beside it; tiles hold {RANK} and {ROPE}, of one head" if wide else ""
    return f"keys are {d} and values {v} wide; a tile holds equal widths up to {WIDEST}" if d != v or d > WIDEST else ""


# By width, for operands of two bytes on Hopper: rows (queries times heads), keys, warps, stages.
_DECODE = {64: Block(16, 128, 4, 3), 128: Block(16, 64, 4, 3), 256: Block(16, 32, 4, 3), 512: Block(16, 32, 4, 3)}
_PREFILL = {64: Block(128, 64, 4, 3), 128: Block(128, 64, 8, 3), 256: Block(128, 32, 8, 2), 512: Block(64, 32, 8, 2)}
# Exact products of float32 have no tensor cores, and all of a tile's depth in registers: right, and slow.
_SINGLE = {64: Block(16, 32, 4, 1), 128: Block(16, 32, 4, 1), 256: Block(16, 16, 8, 1), 512: Block(16, 16, 8, 1)}
_INTERPRETED = Block(16, 32, 4, 1)


def block(query_THd: Tensor, heads: Heads, *, decode: bool) -> Block:
    """The tile for this dtype and width; looked up, never searched for during a call."""
    if INTERPRETED:
        return _INTERPRETED
    table = _SINGLE if query_THd.dtype == torch.float32 else _DECODE if decode else _PREFILL
    return table[max(64, padded(heads.width))]


@functools.cache
def multiprocessors(index: int) -> int:
    """Of a GPU; where there is none, of an H200."""
    return torch.cuda.get_device_properties(index).multi_processor_count if torch.cuda.is_available() else 132


@triton.jit
def rows_of(table_ptr, first, last, B: tl.constexpr, KEYS: tl.constexpr):
    """Rows of the store for the positions from `first` on, and which of them stand before `last`."""
    position = first + tl.arange(0, KEYS)
    there = position < last
    block = tl.load(table_ptr + position // B, mask=there, other=0)
    return block.to(tl.int64) * B + position % B, there


@triton.jit
def load_rows(ptr, row, there, stride, D: tl.constexpr, WIDTH: tl.constexpr):
    """[rows, WIDTH] of a store; zeros for rows that are not there, and beyond the width D."""
    column = tl.arange(0, WIDTH)
    mask = there[:, None]
    if D < WIDTH:
        mask = mask & (column < D)[None, :]
    return tl.load(ptr + row[:, None] * stride + column[None, :], mask=mask, other=0.0)


@triton.jit
def walk(
    q, turned, k_ptr, v_ptr, table_ptr, first, last, position, window, scale, top, total, out,
    MASK: tl.constexpr, SLIDES: tl.constexpr, PRECISION: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
    STRIDE: tl.constexpr, D: tl.constexpr, ROPE: tl.constexpr, B: tl.constexpr,
    WIDTH: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """Online softmax over the positions from `first` to `last` − 1; with MASK, a row sees those up to its own.

    Dao 2023, FlashAttention-2 (arXiv 2307.08691), algorithm 1, lines 6 to 11. A latent (ROPE) is loaded once and is the
    value too.
    """
    for key in tl.range(first, last, KEYS, num_stages=STAGES):
        row, there = rows_of(table_ptr, key, last, B, KEYS)
        k = load_rows(k_ptr, row, there, STRIDE, D, WIDTH)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        if ROPE:
            beside = load_rows(k_ptr + D, row, there, STRIDE, ROPE, TURNED)
            scores = tl.dot(turned, beside.T, scores, input_precision=PRECISION)
            v = k
        else:
            v = load_rows(v_ptr, row, there, STRIDE, D, WIDTH)
        if MASK:
            column = key + tl.arange(0, KEYS)
            seen = there[None, :] & (column[None, :] <= position[:, None])
            if SLIDES:
                seen = seen & (column[None, :] > position[:, None] - window)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1) * scale)
        powers = tl.exp2(scores * scale - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(powers, 1)
        out = tl.dot(powers.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
        top = higher
    return top, total, out


@triton.jit
def load_queries(ptr, token, head, valid, q_token, q_head, D: tl.constexpr, WIDTH: tl.constexpr):
    """[rows, WIDTH]: a query for each pair of token and head."""
    column = tl.arange(0, WIDTH)
    at = token.to(tl.int64) * q_token + head.to(tl.int64) * q_head
    return tl.load(ptr + at[:, None] + column[None, :], mask=valid[:, None] & (column < D)[None, :], other=0.0)


@triton.jit
def before_any_key(sinks_ptr, head, valid, ROWS: tl.constexpr):
    """The running maximum and sum before the first key: of nothing, or of each head's sink."""
    top = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + head, mask=valid, other=0.0).to(tl.float32) * 1.4426950408889634
        top, total = tl.where(valid, sink, top), tl.where(valid, 1.0, total)
    return top, total


@triton.jit
def store_rows(ptr, token, head, valid, out, H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """Into [T, H, D]."""
    column = tl.arange(0, WIDTH)
    at = (token.to(tl.int64) * H + head)[:, None] * D + column[None, :]
    tl.store(ptr + at, out.to(ptr.dtype.element_ty), mask=valid[:, None] & (column < D)[None, :])
