"""Answers to lab 09 as learners might write them: wrong ones with the mistake to be found, and right ones."""

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


# ------------------------------------------------------------------------------------------------------------ gather


@triton.jit
def gather_forgets_to(
    x_ptr, token_ptr, weights_ptr, out_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, W,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    rows = m < tl.load(offset_ptr + e + 1)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x_ptr + m[:, None] * D + k[None, :], mask=rows[:, None] & (k < D)[None, :], other=0.0)
        b = tl.load(
            weights_ptr + e * W * D + n[None, :] * D + k[:, None], mask=(n < W)[None, :] & (k < D)[:, None], other=0.0
        )
        acc += tl.dot(a, b)
    tl.store(out_ptr + m[:, None] * W + n[None, :], acc, mask=rows[:, None] & (n < W)[None, :])


@triton.jit
def gather_scatters_back(
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
        b = tl.load(
            weights_ptr + e * W * D + n[None, :] * D + k[:, None], mask=(n < W)[None, :] & (k < D)[:, None], other=0.0
        )
        acc += tl.dot(a, b)
    tl.store(out_ptr + t[:, None] * W + n[None, :], acc, mask=rows[:, None] & (n < W)[None, :])


@triton.jit
def gather_stores_whole_tiles(
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
        b = tl.load(
            weights_ptr + e * W * D + n[None, :] * D + k[:, None], mask=(n < W)[None, :] & (k < D)[:, None], other=0.0
        )
        acc += tl.dot(a, b)
    tl.store(out_ptr + m[:, None] * W + n[None, :], acc, mask=(n < W)[None, :])


@triton.jit
def gather_counts_one_more(
    x_ptr, token_ptr, weights_ptr, out_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, W,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    end = tl.load(offset_ptr + e + 1)
    t = tl.load(token_ptr + m, mask=m < end, other=0)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x_ptr + t[:, None] * D + k[None, :], mask=(m < end)[:, None] & (k < D)[None, :], other=0.0)
        b = tl.load(
            weights_ptr + e * W * D + n[None, :] * D + k[:, None], mask=(n < W)[None, :] & (k < D)[:, None], other=0.0
        )
        acc += tl.dot(a, b)
    tl.store(out_ptr + m[:, None] * W + n[None, :], acc, mask=(m <= end)[:, None] & (n < W)[None, :])


@triton.jit
def gather_forgets_the_expert(
    x_ptr, token_ptr, weights_ptr, out_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, W,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    rows = m < tl.load(offset_ptr + tl.load(expert_ptr + pid) + 1)
    t = tl.load(token_ptr + m, mask=rows, other=0)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x_ptr + t[:, None] * D + k[None, :], mask=rows[:, None] & (k < D)[None, :], other=0.0)
        b = tl.load(weights_ptr + n[None, :] * D + k[:, None], mask=(n < W)[None, :] & (k < D)[:, None], other=0.0)
        acc += tl.dot(a, b)
    tl.store(out_ptr + m[:, None] * W + n[None, :], acc, mask=rows[:, None] & (n < W)[None, :])


@triton.jit
def gather_reads_the_matrix_as_x_w(
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
        b = tl.load(
            weights_ptr + e * W * D + n[None, :] + k[:, None] * W, mask=(n < W)[None, :] & (k < D)[:, None], other=0.0
        )
        acc += tl.dot(a, b)
    tl.store(out_ptr + m[:, None] * W + n[None, :], acc, mask=rows[:, None] & (n < W)[None, :])


@triton.jit
def gather_masks_no_load(
    x_ptr, token_ptr, weights_ptr, out_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, W,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    rows = m < tl.load(offset_ptr + e + 1)
    t = tl.load(token_ptr + m)
    t = tl.where(rows, t, 0)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x_ptr + t[:, None] * D + k[None, :], mask=(k < D)[None, :], other=0.0)
        b = tl.load(
            weights_ptr + e * W * D + n[None, :] * D + k[:, None], mask=(n < W)[None, :] & (k < D)[:, None], other=0.0
        )
        acc += tl.dot(a, b)
    tl.store(out_ptr + m[:, None] * W + n[None, :], acc, mask=rows[:, None] & (n < W)[None, :])


@triton.jit
def gather_overwrites_its_sum(
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
        b = tl.load(
            weights_ptr + e * W * D + n[None, :] * D + k[:, None], mask=(n < W)[None, :] & (k < D)[:, None], other=0.0
        )
        acc = tl.dot(a, b)
    tl.store(out_ptr + m[:, None] * W + n[None, :], acc, mask=rows[:, None] & (n < W)[None, :])


@triton.jit
def gather_in_float16(
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
        b = tl.load(
            weights_ptr + e * W * D + n[None, :] * D + k[:, None], mask=(n < W)[None, :] & (k < D)[:, None], other=0.0
        )
        acc += tl.dot(a, b)
    out = acc.to(x_ptr.dtype.element_ty)
    tl.store(out_ptr + m[:, None] * W + n[None, :], out, mask=rows[:, None] & (n < W)[None, :])


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
def _halves(
    x_ptr, token_ptr, gate_up_ptr, offset_ptr, e, m, n, gate_row, up_row, D, F,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Two products over the same rows: what all answers below share."""
    rows = m < tl.load(offset_ptr + e + 1)
    t = tl.load(token_ptr + m, mask=rows, other=0)
    g = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    u = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x_ptr + t[:, None] * D + k[None, :], mask=rows[:, None] & (k < D)[None, :], other=0.0)
        inside = (n < F)[None, :] & (k < D)[:, None]
        g += tl.dot(a, tl.load(gate_up_ptr + gate_row[None, :] * D + k[:, None], mask=inside, other=0.0))
        u += tl.dot(a, tl.load(gate_up_ptr + up_row[None, :] * D + k[:, None], mask=inside, other=0.0))
    return g, u, rows[:, None] & (n < F)[None, :]


@triton.jit
def swiglu_activates_up(
    x_ptr, token_ptr, gate_up_ptr, pre_ptr, hidden_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, F,
    SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    top = e * 2 * F + n
    g, u, mask = _halves(
        x_ptr, token_ptr, gate_up_ptr, offset_ptr, e, m, n, top, top + F, D, F, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if SAVE:
        tl.store(pre_ptr + m[:, None] * 2 * F + n[None, :], g, mask=mask)
        tl.store(pre_ptr + m[:, None] * 2 * F + F + n[None, :], u, mask=mask)
    tl.store(hidden_ptr + m[:, None] * F + n[None, :], u * tl.sigmoid(u) * g, mask=mask)


@triton.jit
def swiglu_up_rows_first(
    x_ptr, token_ptr, gate_up_ptr, pre_ptr, hidden_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, F,
    SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    top = e * 2 * F + n
    g, u, mask = _halves(
        x_ptr, token_ptr, gate_up_ptr, offset_ptr, e, m, n, top + F, top, D, F, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if SAVE:
        tl.store(pre_ptr + m[:, None] * 2 * F + n[None, :], g, mask=mask)
        tl.store(pre_ptr + m[:, None] * 2 * F + F + n[None, :], u, mask=mask)
    tl.store(hidden_ptr + m[:, None] * F + n[None, :], g * tl.sigmoid(g) * u, mask=mask)


@triton.jit
def swiglu_is_glu(
    x_ptr, token_ptr, gate_up_ptr, pre_ptr, hidden_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, F,
    SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    top = e * 2 * F + n
    g, u, mask = _halves(
        x_ptr, token_ptr, gate_up_ptr, offset_ptr, e, m, n, top, top + F, D, F, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if SAVE:
        tl.store(pre_ptr + m[:, None] * 2 * F + n[None, :], g, mask=mask)
        tl.store(pre_ptr + m[:, None] * 2 * F + F + n[None, :], u, mask=mask)
    tl.store(hidden_ptr + m[:, None] * F + n[None, :], u / (1 + tl.exp(-g)), mask=mask)


@triton.jit
def swiglu_block_further(
    x_ptr, token_ptr, gate_up_ptr, pre_ptr, hidden_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, F,
    SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    top = e * 2 * F + n
    g, u, mask = _halves(
        x_ptr, token_ptr, gate_up_ptr, offset_ptr, e, m, n, top, top + BLOCK_N, D, F, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if SAVE:
        tl.store(pre_ptr + m[:, None] * 2 * F + n[None, :], g, mask=mask)
        tl.store(pre_ptr + m[:, None] * 2 * F + F + n[None, :], u, mask=mask)
    tl.store(hidden_ptr + m[:, None] * F + n[None, :], g * tl.sigmoid(g) * u, mask=mask)


@triton.jit
def swiglu_saves_the_activated(
    x_ptr, token_ptr, gate_up_ptr, pre_ptr, hidden_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, F,
    SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    top = e * 2 * F + n
    g, u, mask = _halves(
        x_ptr, token_ptr, gate_up_ptr, offset_ptr, e, m, n, top, top + F, D, F, BLOCK_M, BLOCK_N, BLOCK_K
    )
    g = g * tl.sigmoid(g)
    if SAVE:
        tl.store(pre_ptr + m[:, None] * 2 * F + n[None, :], g, mask=mask)
        tl.store(pre_ptr + m[:, None] * 2 * F + F + n[None, :], u, mask=mask)
    tl.store(hidden_ptr + m[:, None] * F + n[None, :], g * u, mask=mask)


@triton.jit
def swiglu_saves_anyway(
    x_ptr, token_ptr, gate_up_ptr, pre_ptr, hidden_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, F,
    SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    top = e * 2 * F + n
    g, u, mask = _halves(
        x_ptr, token_ptr, gate_up_ptr, offset_ptr, e, m, n, top, top + F, D, F, BLOCK_M, BLOCK_N, BLOCK_K
    )
    tl.store(pre_ptr + m[:, None] * 2 * F + n[None, :], g, mask=mask)
    tl.store(pre_ptr + m[:, None] * 2 * F + F + n[None, :], u, mask=mask)
    tl.store(hidden_ptr + m[:, None] * F + n[None, :], g * tl.sigmoid(g) * u, mask=mask)


@triton.jit
def swiglu_saves_side_by_side(
    x_ptr, token_ptr, gate_up_ptr, pre_ptr, hidden_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, F,
    SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    top = e * 2 * F + n
    g, u, mask = _halves(
        x_ptr, token_ptr, gate_up_ptr, offset_ptr, e, m, n, top, top + F, D, F, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if SAVE:
        tl.store(pre_ptr + m[:, None] * 2 * F + 2 * n[None, :], g, mask=mask)
        tl.store(pre_ptr + m[:, None] * 2 * F + 2 * n[None, :] + 1, u, mask=mask)
    tl.store(hidden_ptr + m[:, None] * F + n[None, :], g * tl.sigmoid(g) * u, mask=mask)


@triton.jit
def swiglu_narrow_activation(
    x_ptr, token_ptr, gate_up_ptr, pre_ptr, hidden_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, F,
    SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    top = e * 2 * F + n
    g, u, mask = _halves(
        x_ptr, token_ptr, gate_up_ptr, offset_ptr, e, m, n, top, top + F, D, F, BLOCK_M, BLOCK_N, BLOCK_K
    )
    if SAVE:
        tl.store(pre_ptr + m[:, None] * 2 * F + n[None, :], g, mask=mask)
        tl.store(pre_ptr + m[:, None] * 2 * F + F + n[None, :], u, mask=mask)
    g, u = g.to(x_ptr.dtype.element_ty).to(tl.float32), u.to(x_ptr.dtype.element_ty).to(tl.float32)
    tl.store(hidden_ptr + m[:, None] * F + n[None, :], g * tl.sigmoid(g) * u, mask=mask)


@triton.jit
def swiglu_by_exponential(
    x_ptr, token_ptr, gate_up_ptr, pre_ptr, hidden_ptr, expert_ptr, row_ptr, column_ptr, offset_ptr, D, F,
    SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """SiLU written out, and a row of `pre` reached by another sum."""
    pid = tl.program_id(0)
    e = tl.load(expert_ptr + pid)
    m = tl.load(row_ptr + pid) + tl.arange(0, BLOCK_M)
    n = tl.load(column_ptr + pid) + tl.arange(0, BLOCK_N)
    top = 2 * e * F + n
    g, u, mask = _halves(
        x_ptr, token_ptr, gate_up_ptr, offset_ptr, e, m, n, top, F + top, D, F, BLOCK_M, BLOCK_N, BLOCK_K
    )
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
def gradient_skips_the_empty(
    x_ptr, y_ptr, token_ptr, offset_ptr, out_ptr, D, W, d_stride, w_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0)
    i = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin, end = tl.load(offset_ptr + e), tl.load(offset_ptr + e + 1)
    if begin < end:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(begin, end, BLOCK_K):
            r = start + tl.arange(0, BLOCK_K)
            t = tl.load(token_ptr + r, mask=r < end, other=0)
            a = tl.load(x_ptr + t[None, :] * D + i[:, None], mask=(r < end)[None, :] & (i < D)[:, None], other=0.0)
            b = tl.load(y_ptr + r[:, None] * W + j[None, :], mask=(r < end)[:, None] & (j < W)[None, :], other=0.0)
            acc += tl.dot(a, b)
        at = out_ptr + e * D * W + i[:, None] * d_stride + j[None, :] * w_stride
        tl.store(at, acc, mask=(i < D)[:, None] & (j < W)[None, :])


@triton.jit
def gradient_masks_by_all_rows(
    x_ptr, y_ptr, token_ptr, offset_ptr, out_ptr, D, W, d_stride, w_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0)
    i = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin, end = tl.load(offset_ptr + e), tl.load(offset_ptr + e + 1)
    N = tl.load(offset_ptr + tl.num_programs(0))
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(begin, end, BLOCK_K):
        r = start + tl.arange(0, BLOCK_K)
        t = tl.load(token_ptr + r, mask=r < N, other=0)
        a = tl.load(x_ptr + t[None, :] * D + i[:, None], mask=(r < N)[None, :] & (i < D)[:, None], other=0.0)
        b = tl.load(y_ptr + r[:, None] * W + j[None, :], mask=(r < N)[:, None] & (j < W)[None, :], other=0.0)
        acc += tl.dot(a, b)
    at = out_ptr + e * D * W + i[:, None] * d_stride + j[None, :] * w_stride
    tl.store(at, acc, mask=(i < D)[:, None] & (j < W)[None, :])


@triton.jit
def gradient_of_the_first_block(
    x_ptr, y_ptr, token_ptr, offset_ptr, out_ptr, D, W, d_stride, w_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0)
    i = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin, end = tl.load(offset_ptr + e), tl.load(offset_ptr + e + 1)
    r = begin + tl.arange(0, BLOCK_K)
    t = tl.load(token_ptr + r, mask=r < end, other=0)
    a = tl.load(x_ptr + t[None, :] * D + i[:, None], mask=(r < end)[None, :] & (i < D)[:, None], other=0.0)
    b = tl.load(y_ptr + r[:, None] * W + j[None, :], mask=(r < end)[:, None] & (j < W)[None, :], other=0.0)
    at = out_ptr + e * D * W + i[:, None] * d_stride + j[None, :] * w_stride
    tl.store(at, tl.dot(a, b), mask=(i < D)[:, None] & (j < W)[None, :])


@triton.jit
def gradient_drops_the_rest(
    x_ptr, y_ptr, token_ptr, offset_ptr, out_ptr, D, W, d_stride, w_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0)
    i = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin, end = tl.load(offset_ptr + e), tl.load(offset_ptr + e + 1)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(0, (end - begin) // BLOCK_K):
        r = begin + step * BLOCK_K + tl.arange(0, BLOCK_K)
        t = tl.load(token_ptr + r)
        a = tl.load(x_ptr + t[None, :] * D + i[:, None], mask=(i < D)[:, None], other=0.0)
        b = tl.load(y_ptr + r[:, None] * W + j[None, :], mask=(j < W)[None, :], other=0.0)
        acc += tl.dot(a, b)
    at = out_ptr + e * D * W + i[:, None] * d_stride + j[None, :] * w_stride
    tl.store(at, acc, mask=(i < D)[:, None] & (j < W)[None, :])


@triton.jit
def gradient_contiguous_only(
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
        t = tl.load(token_ptr + r, mask=r < end, other=0)
        a = tl.load(x_ptr + t[None, :] * D + i[:, None], mask=(r < end)[None, :] & (i < D)[:, None], other=0.0)
        b = tl.load(y_ptr + r[:, None] * W + j[None, :], mask=(r < end)[:, None] & (j < W)[None, :], other=0.0)
        acc += tl.dot(a, b)
    at = out_ptr + (e * D + i[:, None]) * W + j[None, :]
    tl.store(at, acc, mask=(i < D)[:, None] & (j < W)[None, :])


@triton.jit
def gradient_takes_rows_as_tokens(
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
        a = tl.load(x_ptr + r[None, :] * D + i[:, None], mask=(r < end)[None, :] & (i < D)[:, None], other=0.0)
        b = tl.load(y_ptr + r[:, None] * W + j[None, :], mask=(r < end)[:, None] & (j < W)[None, :], other=0.0)
        acc += tl.dot(a, b)
    at = out_ptr + e * D * W + i[:, None] * d_stride + j[None, :] * w_stride
    tl.store(at, acc, mask=(i < D)[:, None] & (j < W)[None, :])


@triton.jit
def gradient_gathers_both(
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
        t = tl.load(token_ptr + r, mask=r < end, other=0)
        a = tl.load(x_ptr + t[None, :] * D + i[:, None], mask=(r < end)[None, :] & (i < D)[:, None], other=0.0)
        b = tl.load(y_ptr + t[:, None] * W + j[None, :], mask=(r < end)[:, None] & (j < W)[None, :], other=0.0)
        acc += tl.dot(a, b)
    at = out_ptr + e * D * W + i[:, None] * d_stride + j[None, :] * w_stride
    tl.store(at, acc, mask=(i < D)[:, None] & (j < W)[None, :])


@triton.jit
def gradient_all_at_the_start(
    x_ptr, y_ptr, token_ptr, offset_ptr, out_ptr, D, W, d_stride, w_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0)
    i = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.load(offset_ptr + e + 1) - tl.load(offset_ptr + e)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, rows, BLOCK_K):
        r = start + tl.arange(0, BLOCK_K)
        t = tl.load(token_ptr + r, mask=r < rows, other=0)
        a = tl.load(x_ptr + t[None, :] * D + i[:, None], mask=(r < rows)[None, :] & (i < D)[:, None], other=0.0)
        b = tl.load(y_ptr + r[:, None] * W + j[None, :], mask=(r < rows)[:, None] & (j < W)[None, :], other=0.0)
        acc += tl.dot(a, b)
    at = out_ptr + e * D * W + i[:, None] * d_stride + j[None, :] * w_stride
    tl.store(at, acc, mask=(i < D)[:, None] & (j < W)[None, :])


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
    "09.gather": [
        (gather_forgets_to, "not_gathered"),
        (gather_scatters_back, "by_token"),
        (gather_stores_whole_tiles, "into_the_next_expert"),
        (gather_counts_one_more, "one_row_too_many"),
        (gather_forgets_the_expert, "one_expert_for_all"),
        (gather_reads_the_matrix_as_x_w, "not_transposed"),
        (gather_masks_no_load, "reads_beyond"),
        (gather_overwrites_its_sum, "last_step_only"),
        (gather_in_float16, "rounded_early"),
    ],
    "09.swiglu_epilogue": [
        (swiglu_activates_up, "silu_of_up"),
        (swiglu_up_rows_first, "halves_swapped"),
        (swiglu_is_glu, "sigmoid_only"),
        (swiglu_block_further, "next_block_is_up"),
        (swiglu_saves_the_activated, "activated_saved"),
        (swiglu_saves_anyway, "always_saved"),
        (swiglu_saves_side_by_side, "pre_misplaced"),
        (swiglu_narrow_activation, "rounded_early"),
    ],
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
    "09.weight_gradient": [
        (gradient_skips_the_empty, "empty_left_out"),
        (gradient_masks_by_all_rows, "into_the_next_expert"),
        (gradient_of_the_first_block, "first_block_only"),
        (gradient_drops_the_rest, "whole_blocks_only"),
        (gradient_contiguous_only, "strides_ignored"),
        (gradient_takes_rows_as_tokens, "not_gathered"),
        (gradient_gathers_both, "y_gathered_too"),
        (gradient_all_at_the_start, "always_the_first_rows"),
        (in_torch, "no_kernel"),
    ],
}
RIGHT_ANSWERS = {
    "09.tile_map": [map_by_searching, map_from_rows, map_moved_afterwards],
    "09.gather": [gather_clamps],
    "09.swiglu_epilogue": [swiglu_by_exponential],
    "09.tile_order": [order_by_making_all],
    "09.weight_gradient": [gradient_turned],
}
