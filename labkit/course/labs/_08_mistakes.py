"""Lab 08: mistakes as a learner makes them. One kernel a task goes wrong in every way, and WRONG says in which."""

from __future__ import annotations

from labkit.course.labs._08_kernels import matmul_bound
from labkit.course.labs._language import tl, triton

# ------------------------------------------------------------------------------------------------------ matmul_bound

Bound = tuple[float, float, str]


def _bound(flops: float, moved: float, peak_flops: float, bandwidth: float) -> Bound:
    computing, moving = flops / peak_flops, moved / bandwidth
    return max(computing, moving), flops / moved, "compute" if computing >= moving else "memory"


def bound_one_flop(M: int, K: int, N: int, itemsize: int, peak: float, bandwidth: float) -> Bound:
    return _bound(M * K * N, itemsize * (M * K + K * N + M * N), peak, bandwidth)


def bound_no_output(M: int, K: int, N: int, itemsize: int, peak: float, bandwidth: float) -> Bound:
    return _bound(2 * M * K * N, itemsize * (M * K + K * N), peak, bandwidth)


def bound_elements(M: int, K: int, N: int, itemsize: int, peak: float, bandwidth: float) -> Bound:
    return _bound(2 * M * K * N, M * K + K * N + M * N, peak, bandwidth)


def bound_weights_only(M: int, K: int, N: int, itemsize: int, peak: float, bandwidth: float) -> Bound:
    return _bound(2 * M * K * N, itemsize * K * N, peak, bandwidth)


def bound_every_use(M: int, K: int, N: int, itemsize: int, peak: float, bandwidth: float) -> Bound:
    return _bound(2 * M * K * N, itemsize * (2 * M * K * N + M * N), peak, bandwidth)


def bound_sum(M: int, K: int, N: int, itemsize: int, peak: float, bandwidth: float) -> Bound:
    _, intensity, which = matmul_bound(M, K, N, itemsize, peak, bandwidth)
    return 2 * M * K * N / peak + itemsize * (M * K + K * N + M * N) / bandwidth, intensity, which


def bound_min(M: int, K: int, N: int, itemsize: int, peak: float, bandwidth: float) -> Bound:
    _, intensity, which = matmul_bound(M, K, N, itemsize, peak, bandwidth)
    return min(2 * M * K * N / peak, itemsize * (M * K + K * N + M * N) / bandwidth), intensity, which


def bound_upside_down(M: int, K: int, N: int, itemsize: int, peak: float, bandwidth: float) -> Bound:
    seconds, intensity, which = matmul_bound(M, K, N, itemsize, peak, bandwidth)
    return seconds, 1 / intensity, which


def bound_swapped(M: int, K: int, N: int, itemsize: int, peak: float, bandwidth: float) -> Bound:
    seconds, intensity, which = matmul_bound(M, K, N, itemsize, peak, bandwidth)
    return seconds, intensity, {"memory": "compute", "compute": "memory"}[which]


def bound_strict(M: int, K: int, N: int, itemsize: int, peak: float, bandwidth: float) -> Bound:
    seconds, intensity, _ = matmul_bound(M, K, N, itemsize, peak, bandwidth)
    return seconds, intensity, "compute" if intensity > peak / bandwidth else "memory"


# -------------------------------------------------------------------------------------------------------- add_kernel


@triton.jit
def add(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr, WRONG: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WRONG == "always_the_first_block":
        at = tl.arange(0, BLOCK)
    if WRONG == "one_apart":
        at = tl.program_id(0) + tl.arange(0, BLOCK)
    inside = at < n
    if WRONG == "one_too_many":
        inside = at <= n
    if WRONG == "bytes":
        at = at * 4
        inside = at < n
    total = tl.load(x_ptr + at, mask=inside) + tl.load(y_ptr + at, mask=inside)
    if WRONG == "whole_blocks_only":
        inside = (tl.program_id(0) + 1) * BLOCK + 0 * at <= n
    if WRONG == "one_argument":
        total = tl.load(x_ptr + at, mask=inside)
    tl.store(out_ptr + at, total, mask=inside)


# ---------------------------------------------------------------------------------------------------- softmax_kernel


@triton.jit
def softmax(x_ptr, out_ptr, x_stride, out_stride, width, BLOCK: tl.constexpr, WRONG: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < width
    if WRONG == "no_mask":
        inside = at < BLOCK
    x_row, out_row = row * x_stride, row * out_stride
    if WRONG == "rows_of_width":
        x_row, out_row = row * width, row * width
    if WRONG == "rows_of_block":
        x_row, out_row = row * BLOCK, row * BLOCK
    if WRONG == "one_stride_for_both":
        out_row = x_row
    fill = float("-inf")
    if WRONG == "padding_counts" or WRONG == "maximum_of_padding":
        fill = 0.0
    x = tl.load(x_ptr + x_row + at, mask=inside, other=fill).to(tl.float32)
    shifted = x - tl.max(x, axis=0)
    if WRONG == "no_maximum":
        shifted = x
    e = tl.exp(shifted)
    if WRONG == "maximum_of_padding":
        e = tl.where(inside, e, 0.0)
    total = tl.sum(e, axis=0)
    y = e / total
    if WRONG == "not_divided":
        y = e
    if WRONG == "logarithm":
        y = shifted - tl.log(total)
    tl.store(out_ptr + out_row + at, y, mask=inside)


# ------------------------------------------------------------------------------------------------------ top_k_kernel


@triton.jit
def top_k(x_ptr, ids_ptr, values_ptr, stride, width, K: tl.constexpr, BLOCK: tl.constexpr, WRONG: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    x_row, out_row = row * stride, row * K
    if WRONG == "rows_of_width":
        x_row = row * width
    if WRONG == "answers_overwritten":
        out_row = 0
    fill = float("-inf")
    if WRONG == "padding_wins":
        fill = 0.0
    x = tl.load(x_ptr + x_row + at, mask=at < width, other=fill).to(tl.float32)
    if WRONG == "smallest_first":
        x = tl.where(at < width, -x, float("-inf"))
    for k in tl.static_range(K):
        best = tl.max(x, axis=0)
        first = tl.min(tl.where(x == best, at, BLOCK), axis=0)
        if WRONG == "ties_to_the_last":
            first = tl.max(tl.where(x == best, at, -1), axis=0)
        slot = k
        if WRONG == "worst_first":
            slot = K - 1 - k
        tl.store(ids_ptr + out_row + slot, first)
        tl.store(values_ptr + out_row + slot, tl.where(WRONG == "smallest_first", -best, best))
        if WRONG == "one_knocks_out_all":
            x = tl.where(x == best, float("-inf"), x)
        elif WRONG == "zero_is_not_out":
            x = tl.where(at == first, 0.0, x)
        elif WRONG != "the_same_again":
            x = tl.where(at == first, float("-inf"), x)


# ----------------------------------------------------------------------------------------------------- router_kernel


@triton.jit
def router(
    logits_ptr, ids_ptr, weights_ptr, stride, E, K: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr,
    WRONG: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0)
    e = tl.arange(0, BLOCK)
    real = e < E
    row = t * stride
    if WRONG == "rows_of_width":
        row = t * E
    fill = float("-inf")
    if WRONG == "padding_counts":
        fill = 0.0
    x = tl.load(logits_ptr + row + e, mask=real, other=fill).to(tl.float32)
    p = tl.exp(x - tl.max(x, axis=0))
    if WRONG == "no_maximum":
        p = tl.exp(x)
    if WRONG != "softmax_not_divided":
        p = p / tl.sum(p, axis=0)
    slot = tl.full([BLOCK], K, tl.int32)
    for k in tl.static_range(K):
        left = real & (slot == K)
        if WRONG == "the_same_again":
            left = real
        best = tl.max(tl.where(left, p, -1.0), axis=0)
        first = tl.min(tl.where(left & (p == best), e, BLOCK), axis=0)
        if WRONG == "ties_to_the_last":
            first = tl.max(tl.where(left & (p == best), e, -1), axis=0)
        slot = tl.where(e == first, k, slot)
        tl.store(ids_ptr + t * K + k, first)
        tl.store(weights_ptr + t * K + k, best)
    chosen = slot < K
    total = tl.sum(tl.where(chosen, p, 0.0), axis=0)
    if WRONG == "divided_by_the_best":
        total = tl.max(p, axis=0)
    if (NORM and WRONG != "not_renormalised") or WRONG == "always_renormalised":
        p = p / total
    if WRONG == "logits_for_weights":
        p = x
    tl.store(weights_ptr + t * K + slot, p, mask=chosen)
