"""Lab 09: right answers, as `reveal` shows them."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.course.labs._language import tl, triton


def tile_map(tokens_per_expert_E: Tensor, block_m: int) -> tuple[Tensor, Tensor]:
    tiles_E = (tokens_per_expert_E + block_m - 1) // block_m
    first_row_E = tokens_per_expert_E.cumsum(0) - tokens_per_expert_E
    first_tile_E = tiles_E.cumsum(0) - tiles_E
    experts_E = torch.arange(len(tiles_E), device=tiles_E.device)
    expert_M = experts_E.repeat_interleave(tiles_E)
    within_M = torch.arange(len(expert_M), device=tiles_E.device) - first_tile_E[expert_M]
    return expert_M, first_row_E[expert_M] + within_M * block_m


@triton.jit
def gather(
    x_ptr, token_ptr, weights_ptr, out_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, W,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0)
    expert = tl.load(expert_ptr + p).to(tl.int64)
    row = tl.load(row_ptr + p) + tl.arange(0, BLOCK_M)
    column = tl.load(column_ptr + p) + tl.arange(0, BLOCK_N)
    mine = row < tl.load(offset_ptr + expert + 1)
    token = tl.load(token_ptr + row, mask=mine, other=0).to(tl.int64)
    x_row = x_ptr + token[:, None] * D
    w_row = weights_ptr + (expert * W + column)[None, :] * D
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_row + k[None, :], mask=mine[:, None] & (k < D)[None, :], other=0.0)
        w = tl.load(w_row + k[:, None], mask=(column < W)[None, :] & (k < D)[:, None], other=0.0)
        product = tl.dot(x, w, product)
    at = row.to(tl.int64)[:, None] * W + column[None, :]
    tl.store(out_ptr + at, product, mask=mine[:, None] & (column < W)[None, :])


@triton.jit
def swiglu_epilogue(
    x_ptr, token_ptr, gate_up_ptr, pre_ptr, hidden_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, F,
    SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0)
    expert = tl.load(expert_ptr + p).to(tl.int64)
    row = tl.load(row_ptr + p) + tl.arange(0, BLOCK_M)
    column = tl.load(column_ptr + p) + tl.arange(0, BLOCK_N)
    mine = row < tl.load(offset_ptr + expert + 1)
    token = tl.load(token_ptr + row, mask=mine, other=0).to(tl.int64)
    x_row = x_ptr + token[:, None] * D
    gate_row = gate_up_ptr + (expert * 2 * F + column)[None, :] * D
    up_row = gate_up_ptr + (expert * 2 * F + F + column)[None, :] * D
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (column < F)[None, :] & (k < D)[:, None]
        x = tl.load(x_row + k[None, :], mask=mine[:, None] & (k < D)[None, :], other=0.0)
        gate = tl.dot(x, tl.load(gate_row + k[:, None], mask=inside, other=0.0), gate)
        up = tl.dot(x, tl.load(up_row + k[:, None], mask=inside, other=0.0), up)
    keep = mine[:, None] & (column < F)[None, :]
    wide = row.to(tl.int64)[:, None]
    if SAVE:
        tl.store(pre_ptr + wide * 2 * F + column[None, :], gate, mask=keep)
        tl.store(pre_ptr + wide * 2 * F + F + column[None, :], up, mask=keep)
    tl.store(hidden_ptr + wide * F + column[None, :], gate * tl.sigmoid(gate) * up, mask=keep)


def tile_order(tile_M: Tensor, rows: int, columns: int, group: int) -> tuple[Tensor, Tensor]:
    first_M = tile_M // (group * columns) * group
    size_M = (rows - first_M).clamp(max=group)
    within_M = tile_M % (group * columns)
    return first_M + within_M % size_M, within_M // size_M


@triton.jit
def weight_gradient(
    x_ptr, y_ptr, token_ptr, offset_ptr, out_ptr, D, W, d_stride, w_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    w = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    first, end = tl.load(offset_ptr + expert), tl.load(offset_ptr + expert + 1)
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, end, BLOCK_K):
        row = start + tl.arange(0, BLOCK_K)
        mine = row < end
        token = tl.load(token_ptr + row, mask=mine, other=0).to(tl.int64)
        x = tl.load(x_ptr + token[:, None] * D + d[None, :], mask=mine[:, None] & (d < D)[None, :], other=0.0)
        y_at = row.to(tl.int64)[:, None] * W + w[None, :]
        y = tl.load(y_ptr + y_at, mask=mine[:, None] & (w < W)[None, :], other=0.0)
        product = tl.dot(tl.trans(x), y, product)
    at = expert * D * W + d[:, None] * d_stride + w[None, :] * w_stride
    tl.store(out_ptr + at, product, mask=(d < D)[:, None] & (w < W)[None, :])


for _kernel in (gather, swiglu_epilogue, weight_gradient):
    if hasattr(_kernel, "fn"):
        _kernel.__wrapped__ = _kernel.fn  # so that inspect finds its source and its signature
