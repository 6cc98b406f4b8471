"""Lab 09: mistakes as a learner makes them. One kernel a task goes wrong in every way, and WRONG says in which."""

from __future__ import annotations

from labkit.course.labs._language import tl, triton

# ------------------------------------------------------------------------------------------------------------ gather


@triton.jit
def gather(
    x_ptr, token_ptr, weights_ptr, out_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, W,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WRONG: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0)
    expert = tl.load(expert_ptr + p)
    first = tl.load(row_ptr + p)
    if WRONG == "rows_by_program":
        first = p * BLOCK_M
    row = first + tl.arange(0, BLOCK_M)
    column = tl.load(column_ptr + p) + tl.arange(0, BLOCK_N)
    if WRONG == "first_columns_only":
        column = tl.arange(0, BLOCK_N)
    end = tl.load(offset_ptr + expert + 1)
    mine = row < end
    if WRONG == "one_row_too_many":
        mine = row <= end
    if WRONG == "into_the_next_expert":
        mine = row < first + BLOCK_M
    token = tl.load(token_ptr + row, mask=row < end, other=0)
    if WRONG == "not_gathered":
        token = row
    own = expert
    if WRONG == "one_expert_for_all":
        own = expert * 0
    w_row = weights_ptr + (own * W + column)[None, :] * D
    if WRONG == "expert_too_near":
        w_row = weights_ptr + (expert + column)[None, :] * D
    stride = 1
    if WRONG == "not_transposed":
        w_row = weights_ptr + own * W * D + column[None, :]
        stride = W
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        deep = k < D
        if WRONG == "depth_not_masked":
            deep = k < D + BLOCK_K
        there = row < end
        if WRONG == "not_gathered":
            there = row < end * 0 + 1_000_000
        x = tl.load(x_ptr + token[:, None] * D + k[None, :], mask=there[:, None] & deep[None, :], other=0.0)
        w = tl.load(w_row + k[:, None] * stride, mask=(column < W)[None, :] & deep[:, None], other=0.0)
        product = tl.dot(x, w) if WRONG == "last_step_only" else tl.dot(x, w, product)
    if WRONG == "rounded_early":
        product = product.to(x_ptr.dtype.element_ty).to(tl.float32)
    at = row[:, None] * W + column[None, :]
    if WRONG == "by_token":
        at = token[:, None] * W + column[None, :]
    tl.store(out_ptr + at, product, mask=mine[:, None] & (column < W)[None, :])


# --------------------------------------------------------------------------------------------------- swiglu_epilogue


@triton.jit
def swiglu_epilogue(
    x_ptr, token_ptr, gate_up_ptr, pre_ptr, hidden_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, F,
    SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WRONG: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0)
    expert = tl.load(expert_ptr + p)
    row = tl.load(row_ptr + p) + tl.arange(0, BLOCK_M)
    column = tl.load(column_ptr + p) + tl.arange(0, BLOCK_N)
    mine = row < tl.load(offset_ptr + expert + 1)
    token = tl.load(token_ptr + row, mask=mine, other=0)
    gate_row = expert * 2 * F + column
    up_row = gate_row + F
    if WRONG == "interleaved":
        gate_row = expert * 2 * F + 2 * column
        up_row = gate_row + 1
    if WRONG == "halves_swapped":
        gate_row = up_row
        up_row = gate_row - F
    if WRONG == "up_is_gate":
        up_row = gate_row
    if WRONG == "next_block_is_up":
        up_row = gate_row + BLOCK_N
    if WRONG == "expert_too_near":
        gate_row = expert * F + column
        up_row = gate_row + F
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (column < F)[None, :] & (k < D)[:, None]
        x = tl.load(x_ptr + token[:, None] * D + k[None, :], mask=mine[:, None] & (k < D)[None, :], other=0.0)
        gate = tl.dot(x, tl.load(gate_up_ptr + gate_row[None, :] * D + k[:, None], mask=inside, other=0.0), gate)
        up = tl.dot(x, tl.load(gate_up_ptr + up_row[None, :] * D + k[:, None], mask=inside, other=0.0), up)
    silu = gate * tl.sigmoid(gate)
    if WRONG == "sigmoid_only":
        silu = tl.sigmoid(gate)
    if WRONG == "no_activation":
        silu = gate
    hidden = silu * up
    if WRONG == "silu_of_up":
        hidden = gate * up * tl.sigmoid(up)
    if WRONG == "silu_of_product":
        hidden = gate * up * tl.sigmoid(gate * up)
    if WRONG == "added":
        hidden = silu + up
    if WRONG == "rounded_early":
        kind = x_ptr.dtype.element_ty
        rounded = gate.to(kind).to(tl.float32)
        hidden = rounded * tl.sigmoid(rounded) * up.to(kind).to(tl.float32)
    first, second = gate, up
    if WRONG == "activated_saved":
        first = silu
    if WRONG == "up_saved_first":
        first = up
        second = gate
    keep = mine[:, None] & (column < F)[None, :]
    if SAVE and WRONG != "never_saved":
        at = row[:, None] * 2 * F + column[None, :]
        tl.store(pre_ptr + at, first, mask=keep)
        tl.store(pre_ptr + at + F, second, mask=keep)
    tl.store(hidden_ptr + row[:, None] * F + column[None, :], hidden, mask=keep)


# --------------------------------------------------------------------------------------------------- weight_gradient


@triton.jit
def weight_gradient(
    x_ptr, y_ptr, token_ptr, offset_ptr, out_ptr, D, W, d_stride, w_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WRONG: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    w = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    first, end = tl.load(offset_ptr + expert), tl.load(offset_ptr + expert + 1)
    last = end
    if WRONG == "whole_blocks_only":
        last = first + (end - first) // BLOCK_K * BLOCK_K
    if WRONG == "first_block_only":
        last = tl.minimum(end, first + BLOCK_K)
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, last, BLOCK_K):
        row = start + tl.arange(0, BLOCK_K)
        if WRONG == "always_the_first_rows":
            row = start - first + tl.arange(0, BLOCK_K)
        mine = row < end
        if WRONG == "always_the_first_rows":
            mine = row < end - first
        if WRONG == "into_the_next_expert":
            mine = row < tl.load(offset_ptr + tl.num_programs(0))
        token = tl.load(token_ptr + row, mask=mine, other=0)
        if WRONG == "not_gathered":
            token = row
        y_row = row
        if WRONG == "y_gathered_too":
            y_row = token
        x = tl.load(x_ptr + token[:, None] * D + d[None, :], mask=mine[:, None] & (d < D)[None, :], other=0.0)
        y = tl.load(y_ptr + y_row[:, None] * W + w[None, :], mask=mine[:, None] & (w < W)[None, :], other=0.0)
        product = tl.dot(tl.trans(x), y) if WRONG == "last_step_only" else tl.dot(tl.trans(x), y, product)
    if WRONG == "mean":
        product = product / tl.maximum(end - first, 1)
    if WRONG == "rounded_early":
        product = product.to(x_ptr.dtype.element_ty).to(tl.float32)
    at = d[:, None] * d_stride + w[None, :] * w_stride
    if WRONG == "strides_ignored":
        at = d[:, None] * W + w[None, :]
    keep = (d < D)[:, None] & (w < W)[None, :]
    if WRONG == "empty_left_out":
        keep = keep & (end > first)
    if WRONG == "all_into_one":
        expert = 0
    tl.store(out_ptr + expert * D * W + at, product, mask=keep)
