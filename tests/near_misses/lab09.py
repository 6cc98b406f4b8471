"""Answers to lab 09 as learners might write them: wrong ones with the mistake to be found, and right ones."""

import inspect
import linecache

import torch

from labkit.kernels.language import tl, triton

# ---------------------------------------------------------------------------------------------------------- tile_map


def map_rounds_down(counts, block_m):
    expert, row, start = [], [], 0
    for e, count in enumerate(counts.tolist()):
        for tile in range(count // block_m):
            expert.append(e)
            row.append(start + tile * block_m)
        start += count
    return torch.tensor(expert, dtype=torch.int64), torch.tensor(row, dtype=torch.int64)


def map_floor_and_one(counts, block_m):
    tiles = torch.div(counts, block_m, rounding_mode="floor") + 1
    expert = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), tiles)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
    firsts = torch.cat([tiles.new_zeros(1), tiles.cumsum(0)[:-1]])
    return expert, starts[expert] + (torch.arange(len(expert), device=counts.device) - firsts[expert]) * block_m


def map_at_least_one(counts, block_m):
    tiles = torch.ceil(counts / block_m).long().clamp(min=1)
    expert = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), tiles)
    firsts = tiles.cumsum(0) - tiles
    return expert, (counts.cumsum(0) - counts)[expert] + (
        torch.arange(len(expert), device=counts.device) - firsts[expert]
    ) * block_m


def map_rows_as_if_padded(counts, block_m):
    tiles = torch.ceil(counts / block_m).long()
    expert = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), tiles)
    return expert, torch.arange(int(tiles.sum()), device=counts.device) * block_m


def map_start_forgotten(counts, block_m):
    rows = [torch.arange(0, int(count), block_m, device=counts.device) for count in counts]
    expert = torch.cat([torch.full_like(own, e) for e, own in enumerate(rows)])
    return expert, torch.cat(rows)


def map_inclusive_sum(counts, block_m):
    tiles = (counts + block_m - 1) // block_m
    expert = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), tiles)
    within = torch.arange(len(expert), device=counts.device) - (tiles.cumsum(0) - tiles)[expert]
    return expert, counts.cumsum(0)[expert] + within * block_m


def map_start_of_the_expert(counts, block_m):
    tiles = (counts + block_m - 1) // block_m
    expert = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), tiles)
    return expert, torch.repeat_interleave(counts.cumsum(0) - counts, tiles)


def map_of_those_present(counts, block_m):
    present = counts[counts != 0]
    tiles = (present + block_m - 1) // block_m
    expert = torch.repeat_interleave(torch.arange(len(present), device=counts.device), tiles)
    within = torch.arange(len(expert), device=counts.device) - (tiles.cumsum(0) - tiles)[expert]
    return expert, (present.cumsum(0) - present)[expert] + within * block_m


def map_cut_first(counts, block_m):
    expert_of_row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    row = torch.arange(0, len(expert_of_row), block_m, device=counts.device)
    return expert_of_row[row], row


def map_by_searching(counts, block_m):
    """Whose is tile m? The first expert whose tiles end after m."""
    tiles = torch.div(counts + (block_m - 1), block_m, rounding_mode="floor")
    ends = tiles.cumsum(0)
    m = torch.arange(int(ends[-1]), device=counts.device)
    expert = torch.searchsorted(ends, m, right=True)
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return expert, starts[expert] + (m - (ends - tiles)[expert]) * block_m


def map_from_rows(counts, block_m):
    """A tile begins at every row whose number within its expert is a multiple of block_m."""
    expert = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    within = torch.arange(len(expert), device=counts.device) - (counts.cumsum(0) - counts)[expert]
    row = (within % block_m == 0).nonzero().flatten()
    return expert[row], row


def map_of_swapped_pairs(counts, block_m):
    expert, row = map_by_searching(counts, block_m)
    return row, expert


def map_counts_all_tiles(counts, block_m):
    tiles = (counts + block_m - 1) // block_m
    expert = torch.arange(len(counts), device=counts.device).repeat_interleave(tiles)
    return expert, (counts.cumsum(0) - counts)[expert] + torch.arange(len(expert), device=counts.device) * block_m


def map_subtracts_the_wrong_sum(counts, block_m):
    tiles = (counts + block_m - 1) // block_m
    expert = torch.arange(len(counts), device=counts.device).repeat_interleave(tiles)
    within = torch.arange(len(expert), device=counts.device) - tiles.cumsum(0)[expert]
    return expert, (counts.cumsum(0) - counts)[expert] + within * block_m


def map_steps_of_one_row(counts, block_m):
    tiles = (counts + block_m - 1) // block_m
    expert = torch.arange(len(counts), device=counts.device).repeat_interleave(tiles)
    within = torch.arange(len(expert), device=counts.device) - (tiles.cumsum(0) - tiles)[expert]
    return expert, (counts.cumsum(0) - counts)[expert] + within


def map_without_a_sum(counts, block_m):
    tiles = (counts + block_m - 1) // block_m
    expert = torch.arange(len(counts), device=counts.device).repeat_interleave(tiles)
    within = torch.arange(len(expert), device=counts.device) - (tiles.cumsum(0) - tiles)[expert]
    return expert, torch.nn.functional.pad(counts, (1, -1))[expert] + within * block_m


def map_searches_to_the_left(counts, block_m):
    tiles = torch.div(counts + (block_m - 1), block_m, rounding_mode="floor")
    ends = tiles.cumsum(0)
    m = torch.arange(int(ends[-1]), device=counts.device)
    expert = torch.searchsorted(ends, m)
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return expert, starts[expert] + (m - (ends - tiles)[expert]) * block_m


def map_of_a_rectangle(counts, block_m):
    most = int(torch.ceil(counts / block_m).max())
    expert = torch.arange(len(counts), device=counts.device).repeat_interleave(most)
    within = torch.arange(most, device=counts.device).repeat(len(counts))
    return expert, (counts.cumsum(0) - counts)[expert] + within * block_m


def map_on_the_cpu(counts, block_m):
    tiles = (counts + block_m - 1) // block_m
    expert = torch.arange(len(counts)).repeat_interleave(tiles)
    within = torch.arange(len(expert)) - (tiles.cumsum(0) - tiles)[expert]
    return expert, (counts.cumsum(0) - counts)[expert] + within * block_m


def map_moved_afterwards(counts, block_m):
    """What is made on the default device, and then moved to the counts', is right; so is repeat_interleave alone."""
    tiles = torch.ceil(counts / block_m).long()
    expert = torch.repeat_interleave(tiles)
    within = torch.arange(len(expert)).to(counts.device) - (tiles.cumsum(0) - tiles)[expert]
    return expert, (counts.cumsum(0) - counts)[expert] + within * block_m


# ----------------------------------------------------------------------------------------------------------- kernels


def edited(right, mistakes):
    """Wrong kernels, each with its mistake's name: `right` after one exchange of its source, or after several."""
    made = []
    for mistake, exchanges in mistakes.items():
        source, name = inspect.getsource(right.fn), f"{right.fn.__name__}_{mistake}"
        for old, new in [exchanges] if isinstance(exchanges[0], str) else exchanges:
            assert source.count(old) == 1, f"{mistake}: {old!r} is there {source.count(old)} times"
            source = source.replace(old, new)
        source = source.replace(f"def {right.fn.__name__}(", f"def {name}(")
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # Triton reads it again
        exec(compile(source, name, "exec"), found := {"tl": tl, "triton": triton})
        made.append((found[name], mistake))
    return made


# ------------------------------------------------------------------------------------------------------------ gather


@triton.jit
def gather(
    x_ptr, token_ptr, weights_ptr, out_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, W,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    rows = m < tl.load(offset_ptr + e + 1)
    t = tl.load(token_ptr + m, mask=rows, other=0)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x_ptr + t[:, None] * D + k[None, :], mask=rows[:, None] & (k < D)[None, :], other=0.0)
        deep = (n < W)[None, :] & (k < D)[:, None]
        b = tl.load(weights_ptr + (e * W + n)[None, :] * D + k[:, None], mask=deep, other=0.0)
        acc += tl.dot(a, b)
    tl.store(out_ptr + m[:, None] * W + n[None, :], acc, mask=rows[:, None] & (n < W)[None, :])


GATHER = {
    "not_gathered": ("x_ptr + t[", "x_ptr + m["),
    "by_token": ("out_ptr + m[", "out_ptr + t["),
    "into_the_next_expert": ("acc, mask=rows[:, None] &", "acc, mask="),
    "one_row_too_many": ("acc, mask=rows[", "acc, mask=(m <= tl.load(offset_ptr + e + 1))["),
    "one_expert_for_all": ("(e * W + n)[", "n["),
    "not_transposed": ("(e * W + n)[None, :] * D + k[:, None]", "(e * D + k[:, None]) * W + n[None, :]"),
    "reads_beyond": [
        ("tl.load(token_ptr + m, mask=rows, other=0)", "tl.where(rows, tl.load(token_ptr + m), 0)"),
        ("mask=rows[:, None] & (k", "mask=(k"),
    ],
    "last_step_only": ("acc += ", "acc = "),
    "rounded_early": ("tl.dot(a, b)", "tl.dot(a, b).to(x_ptr.dtype.element_ty)"),
    "row_is_a_tile_number": ("tl.load(row_ptr + pid)", "tl.load(row_ptr + pid) * BLOCK_M"),
    "same_step_again": ("k = start + ", "k = "),
    "step_numbers": ("range(0, D, BLOCK_K)", "range(tl.cdiv(D, BLOCK_K))"),
    "whole_steps_only": ("range(0, D, BLOCK_K)", "range(0, D // BLOCK_K * BLOCK_K, BLOCK_K)"),
    "counted_twice": ("tl.dot(a, b)", "tl.dot(a, b, acc)"),
    "transposed_twice": ("tl.dot(a, b)", "tl.dot(a, tl.trans(b))"),
    "tokens_of_the_first_rows": ("token_ptr + m", "token_ptr + tl.arange(0, BLOCK_M)"),
    "expert_of_the_program": ("tl.load(expert_ptr + pid)", "pid"),
    "ends_where_it_begins": ("offset_ptr + e + 1", "offset_ptr + e"),
    "x_row_too_wide": ("t[:, None] * D", "t[:, None] * W"),
    "blocks_mixed_up": ("range(0, D, BLOCK_K)", "range(0, D, BLOCK_N)"),
}


@triton.jit
def gather_clamps(
    x_ptr, token_ptr, weights_ptr, out_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, W,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows beyond the last read the last one again, as labkit's own kernel does; the weights come as [N, K]."""
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    first = tl.load(row_ptr + pid)
    left = tl.load(offset_ptr + e + 1) - first
    m, n = tl.arange(0, BLOCK_M), tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    t = tl.load(token_ptr + first + tl.minimum(m, left - 1))
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for start in range(0, tl.cdiv(D, BLOCK_K)):
        k = start * BLOCK_K + tl.arange(0, BLOCK_K)
        a = tl.load(x_ptr + t[None, :] * D + k[:, None], mask=(k < D)[:, None], other=0.0)
        b = tl.load(
            weights_ptr + (e * W + n[:, None]) * D + k[None, :], mask=(n < W)[:, None] & (k < D)[None, :], other=0
        )
        acc = tl.dot(b, a, acc)
    tl.store(
        out_ptr + (first + m)[:, None] * W + n[None, :], tl.trans(acc), mask=(m < left)[:, None] & (n < W)[None, :]
    )


# --------------------------------------------------------------------------------------------------- swiglu_epilogue


@triton.jit
def swiglu(
    x_ptr, token_ptr, gate_up_ptr, pre_ptr, hidden_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, F,
    SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    rows = m < tl.load(offset_ptr + e + 1)
    t = tl.load(token_ptr + m, mask=rows, other=0)
    top = e * 2 * F + n
    g = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    u = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x_ptr + t[:, None] * D + k[None, :], mask=rows[:, None] & (k < D)[None, :], other=0.0)
        deep = (n < F)[None, :] & (k < D)[:, None]
        g += tl.dot(a, tl.load(gate_up_ptr + top[None, :] * D + k[:, None], mask=deep, other=0.0))
        u += tl.dot(a, tl.load(gate_up_ptr + (top + F)[None, :] * D + k[:, None], mask=deep, other=0.0))
    mask = rows[:, None] & (n < F)[None, :]
    hidden = g * tl.sigmoid(g) * u
    if SAVE:
        left = pre_ptr + m[:, None] * 2 * F + n[None, :]
        tl.store(left, g, mask=mask)
        tl.store(left + F, u, mask=mask)
    tl.store(hidden_ptr + m[:, None] * F + n[None, :], hidden, mask=mask)


SILU = "g * tl.sigmoid(g) * u"
SWIGLU = {
    "silu_of_up": (SILU, "u * tl.sigmoid(u) * g"),
    "halves_swapped": [("* F + n\n", "* F + F + n\n"), ("(top + F)", "(top - F)")],
    "sigmoid_only": (SILU, "u / (1 + tl.exp(-g))"),
    "next_block_is_up": ("top + F", "top + BLOCK_N"),
    "activated_saved": (f"hidden = {SILU}", "g *= tl.sigmoid(g)\n    hidden = g * u"),
    "always_saved": ("if SAVE:", "if True:"),
    "pre_misplaced": [("* 2 * F + n[", "* 2 * F + 2 * n["), ("left + F", "left + 1")],
    "rounded_early": [
        (SILU, f"({SILU}).to(x_ptr.dtype.element_ty)"),
        ("left, g,", "left, g.to(x_ptr.dtype.element_ty),"),
        ("left + F, u,", "left + F, u.to(x_ptr.dtype.element_ty),"),
    ],
    "hidden_saved": ("left + F, u,", "left + F, hidden,"),
    "gate_saved_twice": ("left + F, u,", "left + F, g,"),
    "up_not_saved": ("        tl.store(left + F, u, mask=mask)\n", ""),
    "silu_every_step": [(SILU, "g * u"), ("    mask = ", "        g *= tl.sigmoid(g)\n    mask = ")],
    "f_elements_further": ("(top + F)[None, :] * D", "top[None, :] * D + F"),
    "last_step_only": [("g += ", "g = "), ("u += ", "u = ")],
    "up_overwritten": ("u += ", "u = "),
    "up_onto_gate": ("u += ", "u = g + "),
    "not_gathered": ("x_ptr + t[", "x_ptr + m["),
    "by_token": [("pre_ptr + m[", "pre_ptr + t["), ("hidden_ptr + m[", "hidden_ptr + t[")],
    "one_expert_for_all": ("top = e * 2 * F + n", "top = n"),
    "not_transposed": [
        ("top[None, :] * D + k[:, None]", "(e * D + k[:, None]) * 2 * F + n[None, :]"),
        ("(top + F)[None, :] * D + k[:, None]", "(e * D + k[:, None]) * 2 * F + F + n[None, :]"),
    ],
    "sigmoid_turned": (SILU, "g / (1 + tl.exp(g)) * u"),
    "gelu": ("tl.sigmoid(g)", "tl.sigmoid(1.702 * g)"),
    "relu": (SILU, "tl.where(g > 0, g, 0.0) * u"),
    "writes_beyond": ("mask = rows[", "mask = (m >= 0)["),
    "blocks_mixed_up": ("range(0, D, BLOCK_K)", "range(0, D, BLOCK_N)"),
}


@triton.jit
def swiglu_by_exponential(
    x_ptr, token_ptr, gate_up_ptr, pre_ptr, hidden_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, F,
    SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """SiLU written out, hidden stored first, and a row of `pre` reached by another sum; x is read as [K, M]."""
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    rows = m < tl.load(offset_ptr + e + 1)
    t = tl.load(token_ptr + m, mask=rows, other=0)
    g, u = tl.zeros((BLOCK_N, BLOCK_M), tl.float32), tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x_ptr + t[None, :] * D + k[:, None], mask=rows[None, :] & (k < D)[:, None], other=0.0)
        at = gate_up_ptr + (2 * e * F + n[:, None]) * D + k[None, :]
        deep = (n < F)[:, None] & (k < D)[None, :]
        g = tl.dot(tl.load(at, mask=deep, other=0.0), a, g)
        u = tl.dot(tl.load(at + F * D, mask=deep, other=0.0), a, u)
    g, u, mask = tl.trans(g), tl.trans(u), rows[:, None] & (n < F)[None, :]
    tl.store(hidden_ptr + m[:, None] * F + n[None, :], u * (g / (1 + tl.exp(-g))), mask=mask)
    if SAVE:
        left = pre_ptr + 2 * F * m[:, None] + n[None, :]
        tl.store(left, g, mask=mask)
        tl.store(left + F, u, mask=mask)


# -------------------------------------------------------------------------------------------------------- tile_order


def order_divmod(tile, rows, columns, group):
    return torch.div(tile, columns, rounding_mode="floor"), tile.remainder(columns)


def order_down_everything(tile, rows, columns, group):
    return tile % rows, torch.div(tile, rows, rounding_mode="floor")


def order_of_whole_groups(tile, rows, columns, group):
    number, within = tile // (group * columns), tile % (group * columns)
    return number * group + within % group, within // group


def order_group_left_out(tile, rows, columns, group):
    number, within = tile // (group * columns), tile % (group * columns)
    size = torch.minimum(rows - number * group, torch.tensor(group))
    return within % size, within // size


def order_columns_then_rows(tile, rows, columns, group):
    number, within = tile // (group * columns), tile % (group * columns)
    size = torch.minimum(rows - number * group, torch.tensor(group))
    return within // size, number * group + within % size


def order_along_columns(tile, rows, columns, group):
    number, within = tile // (group * rows), tile % (group * rows)
    size = torch.minimum(columns - number * group, torch.tensor(group))
    return within // size, number * group + within % size


def order_number_added(tile, rows, columns, group):
    number, within = tile // (group * columns), tile % (group * columns)
    size = torch.minimum(rows - number * group, torch.tensor(group))
    return number + within % size, within // size


def order_as_triton_teaches(tile, rows, columns, group):
    """Triton's tutorial, whose sizes always divide."""
    in_group = group * columns
    first = tile // in_group * group
    size = torch.clamp(rows - first, max=group)
    return first + tile % size, (tile % in_group) // size


def order_of_the_whole_grid(tile, rows, columns, group):
    first = tile // (group * columns) * group
    size = torch.clamp(rows - first, max=group)
    return first + tile % size, tile // size % columns


def order_divides_by_columns(tile, rows, columns, group):
    number, within = tile // (group * columns), tile % (group * columns)
    size = (rows - number * group).clamp(max=group)
    return number * group + within % size, within // columns


def order_of_so_many_groups(tile, rows, columns, group):
    height = (rows + group - 1) // group
    first = tile // (height * columns) * height
    size = (rows - first).clamp(max=height)
    within = tile % (height * columns)
    return first + within % size, within // size


def order_counts_rows_in_a_group(tile, rows, columns, group):
    first = tile // (group * rows) * group
    size = (rows - first).clamp(min=1, max=group)
    within = tile % (group * rows)
    return first + within % size, within // size


def order_back_again(tile, rows, columns, group):
    row, column = tile // columns, tile % columns
    first = row - row % group
    number = first * columns + column * torch.clamp(rows - first, max=group) + row % group
    return torch.div(number, columns, rounding_mode="floor"), number % columns


def order_clamps_rows(tile, rows, columns, group):
    number, within = tile // (group * columns), tile % (group * columns)
    return torch.clamp(number * group + within % group, max=rows - 1), within // group


def order_up_and_down(tile, rows, columns, group):
    number, within = tile // (group * columns), tile % (group * columns)
    size = (rows - number * group).clamp(max=group)
    row, column = within % size, within // size
    return number * group + torch.where(column % 2 == 0, row, size - row - 1), column


def order_by_making_all(tile, rows, columns, group):
    """Every tile of the grid in its order, then those asked for."""
    made = [
        (row, column)
        for first in range(0, rows, group)
        for column in range(columns)
        for row in range(first, min(first + group, rows))
    ]
    made = torch.tensor(made)
    return made[tile, 0], made[tile, 1]


# --------------------------------------------------------------------------------------------------- weight_gradient


@triton.jit
def gradient(
    x_ptr, y_ptr, token_ptr, offset_ptr, out_ptr, D, W, d_stride, w_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0)
    i = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin, end = tl.load(offset_ptr + e), tl.load(offset_ptr + e + 1)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(begin, end, BLOCK_K):
        r = start + tl.arange(0, BLOCK_K)
        there = r < end
        t = tl.load(token_ptr + r, mask=there, other=0)
        a = tl.load(x_ptr + t[:, None] * D + i[None, :], mask=there[:, None] & (i < D)[None, :], other=0.0)
        b = tl.load(y_ptr + r[:, None] * W + j[None, :], mask=there[:, None] & (j < W)[None, :], other=0.0)
        acc += tl.dot(tl.trans(a), b)
    at = out_ptr + e * D * W + i[:, None] * d_stride + j[None, :] * w_stride
    tl.store(at, acc, mask=(i < D)[:, None] & (j < W)[None, :])


GRADIENT = {
    "empty_left_out": ("    tl.store(", "    if begin < end:\n        tl.store("),
    "into_the_next_expert": ("r < end", "r < tl.load(offset_ptr + tl.num_programs(0))"),
    "first_block_only": ("range(begin, end, BLOCK_K)", "range(begin, begin + 1, BLOCK_K)"),
    "whole_blocks_only": ("range(begin, end, BLOCK_K)", "range(begin, end - BLOCK_K + 1, BLOCK_K)"),
    "strides_ignored": ("i[:, None] * d_stride + j[None, :] * w_stride", "i[:, None] * W + j[None, :]"),
    "not_gathered": ("x_ptr + t[", "x_ptr + r["),
    "y_gathered_too": ("y_ptr + r[", "y_ptr + t["),
    "always_the_first_rows": ("    acc = ", "    begin, end = begin - begin, end - begin\n    acc = "),
    "one_row_too_many": ("r < end", "r <= end"),
    "same_block_again": ("r = start + ", "r = begin + "),
    "from_the_first_row": ("range(begin, end, BLOCK_K)", "range(0, end, BLOCK_K)"),
    "wrong_one_gathered": [("x_ptr + t[", "x_ptr + r["), ("y_ptr + r[", "y_ptr + t[")],
    "tokens_from_the_first_row": ("token_ptr + r", "token_ptr + r - begin"),
    "y_from_the_first_row": ("y_ptr + r[", "y_ptr + (r - begin)["),
    "x_not_turned": ("tl.trans(a)", "a"),
    "y_turned": ("tl.trans(a), b", "a, tl.trans(b)"),
    "programs_swapped": [("id(1) * BLOCK_M", "id(2) * BLOCK_M"), ("id(2) * BLOCK_N", "id(1) * BLOCK_N")],
    "strides_swapped": ("d_stride + j[None, :] * w_stride", "w_stride + j[None, :] * d_stride"),
    "expert_by_stride": ("e * D * W", "e * D * d_stride"),
    "x_row_too_wide": ("t[:, None] * D", "t[:, None] * W"),
    "rounded_early": ("tl.dot(tl.trans(a), b)", "tl.dot(tl.trans(a), b).to(x_ptr.dtype.element_ty)"),
    "blocks_mixed_up": ("range(begin, end, BLOCK_K)", "range(begin, end, BLOCK_M)"),
}


@triton.jit
def gradient_turned(
    x_ptr, y_ptr, token_ptr, offset_ptr, out_ptr, D, W, d_stride, w_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The transposed product, yᵀ · x, with rows clamped instead of masked on one side."""
    e = tl.program_id(0)
    i = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = tl.load(offset_ptr + e)
    rows = tl.load(offset_ptr + e + 1) - begin
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(0, tl.cdiv(rows, BLOCK_K)):
        r = step * BLOCK_K + tl.arange(0, BLOCK_K)
        t = tl.load(token_ptr + begin + tl.minimum(r, rows - 1))
        a = tl.load(x_ptr + t[:, None] * D + i[None, :], mask=(i < D)[None, :], other=0.0)
        at = y_ptr + (begin + r)[None, :] * W + j[:, None]
        b = tl.load(at, mask=(r < rows)[None, :] & (j < W)[:, None], other=0.0)
        acc = tl.dot(b, a, acc)
    at = out_ptr + e * D * W + i[None, :] * d_stride + j[:, None] * w_stride
    tl.store(at, acc, mask=(i < D)[None, :] & (j < W)[:, None])


def in_torch(*arguments, **constants):
    return arguments[0]


NEAR_MISSES = {
    "09.tile_map": [
        (map_rounds_down, "full_tiles_only"),
        (map_floor_and_one, "one_tile_too_many"),
        (map_at_least_one, "a_tile_for_nobody"),
        (map_rows_as_if_padded, "rows_with_padding"),
        (map_start_forgotten, "counted_from_the_expert"),
        (map_inclusive_sum, "begins_where_it_ends"),
        (map_start_of_the_expert, "the_same_tile_again"),
        (map_of_those_present, "renumbered"),
        (map_cut_first, "across_experts"),
        (map_of_swapped_pairs, "swapped"),
        (map_counts_all_tiles, "tile_number_of_all"),
        (map_subtracts_the_wrong_sum, "before_the_expert"),
        (map_steps_of_one_row, "next_row"),
        (map_without_a_sum, "one_before_only"),
        (map_searches_to_the_left, "edge_of_the_search"),
        (map_of_a_rectangle, "as_many_as_the_busiest"),
        (map_on_the_cpu, "other_device"),
    ],
    "09.gather": edited(gather, GATHER),
    "09.swiglu_epilogue": edited(swiglu, SWIGLU),
    "09.tile_order": [
        (order_divmod, "row_by_row"),
        (order_down_everything, "column_by_column"),
        (order_of_whole_groups, "last_group_is_full"),
        (order_group_left_out, "never_leaves_the_first_group"),
        (order_columns_then_rows, "swapped"),
        (order_along_columns, "groups_of_columns"),
        (order_number_added, "group_number_for_row"),
        (order_as_triton_teaches, "number_in_the_grid"),
        (order_of_the_whole_grid, "both_in_the_grid"),
        (order_divides_by_columns, "divided_by_columns"),
        (order_of_so_many_groups, "that_many_groups"),
        (order_counts_rows_in_a_group, "groups_of_rows_times_rows"),
        (order_back_again, "the_other_way"),
        (order_clamps_rows, "pushed_back"),
        (order_up_and_down, "snake"),
    ],
    "09.weight_gradient": [*edited(gradient, GRADIENT), (in_torch, "no_kernel")],
}
RIGHT_ANSWERS = {
    "09.tile_map": [map_by_searching, map_from_rows, map_moved_afterwards],
    "09.gather": [gather, gather_clamps],
    "09.swiglu_epilogue": [swiglu, swiglu_by_exponential],
    "09.tile_order": [order_by_making_all],
    "09.weight_gradient": [gradient, gradient_turned],
}
