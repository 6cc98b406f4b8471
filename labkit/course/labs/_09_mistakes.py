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
    expert = p if WRONG == "expert_of_the_program" else tl.load(expert_ptr + p)
    first = tl.load(row_ptr + p)
    if WRONG == "rows_by_program":
        first = p * BLOCK_M
    if WRONG == "row_is_a_tile_number":
        first = first * BLOCK_M
    row = first + tl.arange(0, BLOCK_M)
    column = tl.load(column_ptr + p) + tl.arange(0, BLOCK_N)
    if WRONG == "first_columns_only":
        column = tl.arange(0, BLOCK_N)
    end = tl.load(offset_ptr + expert + (0 if WRONG == "ends_where_it_begins" else 1))
    mine = row < end
    if WRONG == "one_row_too_many":
        mine = row <= end
    if WRONG == "into_the_next_expert":
        mine = row < first + BLOCK_M
    token = tl.load(token_ptr + row, mask=row < end, other=0)
    if WRONG == "not_gathered":
        token = row
    if WRONG == "tokens_of_the_first_rows":
        token = tl.load(token_ptr + row - first, mask=row < end, other=0)
    width = W if WRONG == "x_row_too_wide" else D
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
    last = D // BLOCK_K * BLOCK_K if WRONG == "whole_steps_only" else D
    step = BLOCK_K
    if WRONG == "step_numbers":
        last = tl.cdiv(D, BLOCK_K)
        step = 1
    for start in range(0, last, step):
        k = (0 if WRONG == "same_step_again" else start) + tl.arange(0, BLOCK_K)
        deep = k < D
        if WRONG == "depth_not_masked":
            deep = k < D + BLOCK_K
        there = row < end
        if WRONG == "not_gathered":
            there = row < end * 0 + 1_000_000
        x = tl.load(x_ptr + token[:, None] * width + k[None, :], mask=there[:, None] & deep[None, :], other=0.0)
        w = tl.load(w_row + k[:, None] * stride, mask=(column < W)[None, :] & deep[:, None], other=0.0)
        w = tl.trans(w) if WRONG == "transposed_twice" else w
        more = tl.dot(x, w) if WRONG == "last_step_only" else tl.dot(x, w, product)
        product = product + more if WRONG == "counted_twice" else more
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
    token = row if WRONG == "not_gathered" else tl.load(token_ptr + row, mask=mine, other=0)
    own = expert * 0 if WRONG == "one_expert_for_all" else expert
    gate_row = own * 2 * F + column
    up_row = gate_row + F
    if WRONG == "interleaved":
        gate_row = own * 2 * F + 2 * column
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
    gate_at, up_at = gate_row[None, :] * D, up_row[None, :] * D
    if WRONG == "f_elements_further":
        up_at = gate_at + F
    deep = 1
    if WRONG == "not_transposed":
        gate_at, up_at = own * 2 * F * D + column[None, :], own * 2 * F * D + F + column[None, :]
        deep = 2 * F
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (column < F)[None, :] & (k < D)[:, None]
        x = tl.load(x_ptr + token[:, None] * D + k[None, :], mask=mine[:, None] & (k < D)[None, :], other=0.0)
        gate_w = tl.load(gate_up_ptr + gate_at + k[:, None] * deep, mask=inside, other=0.0)
        up_w = tl.load(gate_up_ptr + up_at + k[:, None] * deep, mask=inside, other=0.0)
        gate = tl.dot(x, gate_w) if WRONG == "last_step_only" else tl.dot(x, gate_w, gate)
        if WRONG == "last_step_only" or WRONG == "up_overwritten":
            up = tl.dot(x, up_w)
        else:
            up = tl.dot(x, up_w, gate if WRONG == "up_onto_gate" else up)
        if WRONG == "silu_every_step":
            gate = gate * tl.sigmoid(gate)
    silu = gate * tl.sigmoid(gate)
    if WRONG == "sigmoid_only":
        silu = tl.sigmoid(gate)
    if WRONG == "sigmoid_turned":
        silu = gate * tl.sigmoid(-gate)
    if WRONG == "gelu":
        silu = gate * tl.sigmoid(1.702 * gate)
    if WRONG == "relu":
        silu = tl.maximum(gate, 0.0)
    if WRONG == "no_activation" or WRONG == "silu_every_step":
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
    if WRONG == "hidden_saved":
        second = hidden
    if WRONG == "gate_saved_twice":
        second = gate
    to = token if WRONG == "by_token" else row
    keep = mine[:, None] & (column < F)[None, :]
    if SAVE and WRONG != "never_saved":
        at = to[:, None] * 2 * F + column[None, :]
        tl.store(pre_ptr + at, first, mask=keep)
        if WRONG != "up_not_saved":
            tl.store(pre_ptr + at + F, second, mask=keep)
    tl.store(hidden_ptr + to[:, None] * F + column[None, :], hidden, mask=keep)


# --------------------------------------------------------------------------------------------------- weight_gradient


@triton.jit
def weight_gradient(
    x_ptr, y_ptr, token_ptr, offset_ptr, out_ptr, D, W, d_stride, w_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WRONG: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(0)
    d = tl.program_id(2 if WRONG == "programs_swapped" else 1) * BLOCK_M + tl.arange(0, BLOCK_M)
    w = tl.program_id(1 if WRONG == "programs_swapped" else 2) * BLOCK_N + tl.arange(0, BLOCK_N)
    first, end = tl.load(offset_ptr + expert), tl.load(offset_ptr + expert + 1)
    last = end
    if WRONG == "whole_blocks_only":
        last = first + (end - first) // BLOCK_K * BLOCK_K
    if WRONG == "first_block_only":
        last = tl.minimum(end, first + BLOCK_K)
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    begin = first * 0 if WRONG == "from_the_first_row" else first
    for start in range(begin, last, BLOCK_K):
        row = (first if WRONG == "same_block_again" else start) + tl.arange(0, BLOCK_K)
        if WRONG == "always_the_first_rows":
            row = start - first + tl.arange(0, BLOCK_K)
        mine = row < end
        if WRONG == "always_the_first_rows":
            mine = row < end - first
        if WRONG == "into_the_next_expert":
            mine = row < tl.load(offset_ptr + tl.num_programs(0))
        if WRONG == "one_row_too_many":
            mine = row <= end
        token_row = row - first if WRONG == "tokens_from_the_first_row" else row
        token = tl.load(token_ptr + token_row, mask=mine & (row < tl.load(offset_ptr + tl.num_programs(0))), other=0)
        y_row = row
        if WRONG == "y_gathered_too" or WRONG == "wrong_one_gathered":
            y_row = token
        if WRONG == "y_from_the_first_row":
            y_row = row - first
        if WRONG == "not_gathered" or WRONG == "wrong_one_gathered":
            token = row
        width = W if WRONG == "x_row_too_wide" else D
        x = tl.load(x_ptr + token[:, None] * width + d[None, :], mask=mine[:, None] & (d < D)[None, :], other=0.0)
        y = tl.load(y_ptr + y_row[:, None] * W + w[None, :], mask=mine[:, None] & (w < W)[None, :], other=0.0)
        a = x if WRONG == "x_not_turned" or WRONG == "y_turned" else tl.trans(x)
        b = tl.trans(y) if WRONG == "y_turned" else y
        product = tl.dot(a, b) if WRONG == "last_step_only" else tl.dot(a, b, product)
    if WRONG == "mean":
        product = product / tl.maximum(end - first, 1)
    if WRONG == "rounded_early":
        product = product.to(x_ptr.dtype.element_ty).to(tl.float32)
    at = d[:, None] * d_stride + w[None, :] * w_stride
    if WRONG == "strides_ignored":
        at = d[:, None] * W + w[None, :]
    if WRONG == "strides_swapped":
        at = d[:, None] * w_stride + w[None, :] * d_stride
    keep = (d < D)[:, None] & (w < W)[None, :]
    if WRONG == "empty_left_out":
        keep = keep & (end > first)
    if WRONG == "all_into_one":
        expert = 0
    size = D * d_stride if WRONG == "expert_by_stride" else D * W
    tl.store(out_ptr + expert * size + at, product, mask=keep)
