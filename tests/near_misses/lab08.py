"""Answers to lab 08 as learners might write them: wrong ones with the mistake to be found, and right ones."""

from labkit.kernels.language import tl, triton

# ------------------------------------------------------------------------------------------------------ matmul_bound


def bound_multiply_add_is_one(M, K, N, itemsize, peak_flops, bandwidth):
    flops, moved = M * N * K, itemsize * (M * K + K * N + M * N)
    seconds = max(flops / peak_flops, moved / bandwidth)
    return seconds, flops / moved, "memory" if moved / bandwidth > flops / peak_flops else "compute"


def bound_result_is_free(M, K, N, itemsize, peak_flops, bandwidth):
    flops = 2 * M * N * K
    moved = K * (M + N) * itemsize
    ridge, intensity = peak_flops / bandwidth, flops / moved
    return max(flops / peak_flops, moved / bandwidth), intensity, "compute" if intensity >= ridge else "memory"


def bound_numbers_for_bytes(M, K, N, itemsize, peak_flops, bandwidth):
    flops, moved = 2 * M * N * K, M * K + K * N + M * N
    a, b = flops / peak_flops, moved / bandwidth
    return max(a, b), flops / moved, "compute" if a >= b else "memory"


def bound_one_after_the_other(M, K, N, itemsize, peak_flops, bandwidth):
    flops, moved = 2 * M * N * K, itemsize * (M * K + K * N + M * N)
    a, b = flops / peak_flops, moved / bandwidth
    return a + b, flops / moved, "compute" if a >= b else "memory"


def bound_bytes_per_flop(M, K, N, itemsize, peak_flops, bandwidth):
    flops, moved = 2 * M * N * K, itemsize * (M * K + K * N + M * N)
    a, b = flops / peak_flops, moved / bandwidth
    return max(a, b), moved / flops, "compute" if a >= b else "memory"


def bound_other_word(M, K, N, itemsize, peak_flops, bandwidth):
    flops, moved = 2 * M * N * K, itemsize * (M * K + K * N + M * N)
    a, b = flops / peak_flops, moved / bandwidth
    return max(a, b), flops / moved, "compute" if a < b else "memory"


def bound_by_the_ridge(M, K, N, itemsize, peak_flops, bandwidth):
    numbers = sum(rows * columns for rows, columns in ((M, K), (K, N), (M, N)))
    intensity = 2 * M * N * K / (numbers * itemsize)
    attainable = min(peak_flops, intensity * bandwidth)
    kind = "memory" if intensity * bandwidth < peak_flops else "compute"
    return 2 * M * N * K / attainable, intensity, kind


# -------------------------------------------------------------------------------------------------------- add_kernel


@triton.jit
def add_no_mask(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    start = tl.program_id(axis=0) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y = tl.load(y_ptr + offsets)
    tl.store(out_ptr + offsets, x + y)


@triton.jit
def add_masks_the_store_only(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(axis=0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(x_ptr + offsets) + tl.load(y_ptr + offsets)
    tl.store(out_ptr + offsets, total, mask=offsets < n)


@triton.jit
def add_masks_the_loads_only(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(axis=0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < n, other=0.0)
    y = tl.load(y_ptr + offsets, mask=offsets < n, other=0.0)
    tl.store(out_ptr + offsets, x + y)


@triton.jit
def add_mask_with_equals(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK) + BLOCK * tl.program_id(0)
    mask = n >= offsets
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets, mask) + tl.load(y_ptr + offsets, mask), mask)


@triton.jit
def add_without_program_id(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i, i < n) + tl.load(y_ptr + i, i < n), i < n)


@triton.jit
def add_block_forgotten(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    i = pid + tl.arange(0, BLOCK)
    keep = i < n
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=keep) + tl.load(y_ptr + i, mask=keep), mask=keep)


@triton.jit
def add_goes_far(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = (tl.program_id(0) + 1) * BLOCK * 1_000_000 + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i) + tl.load(y_ptr + i))


def add_in_torch(x, y, out, n, BLOCK):
    return x + y


@triton.jit
def add_by_blocks_of_pointers(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    first = tl.program_id(0) * BLOCK
    lanes = tl.arange(0, BLOCK)
    left = n - first
    a = tl.load(x_ptr + first + lanes, mask=lanes < left, other=0)
    b = tl.load(y_ptr + first + lanes, mask=lanes < left, other=0)
    tl.store(out_ptr + first + lanes, b + a, mask=lanes < left)


@triton.jit
def add_with_a_loop(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """However many programs there are: each takes every so-manieth block."""
    for block in range(tl.program_id(0), (n + BLOCK - 1) // BLOCK, tl.num_programs(0)):
        at = block * BLOCK + tl.arange(0, BLOCK)
        tl.store(out_ptr + at, tl.load(x_ptr + at, at < n) + tl.load(y_ptr + at, at < n), at < n)


# ---------------------------------------------------------------------------------------------------- softmax_kernel


@triton.jit
def softmax_raw_exponentials(x_ptr, out_ptr, x_stride, out_stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_stride + col, mask=col < width, other=-float("inf")).to(tl.float32)
    num = tl.exp(x)
    tl.store(out_ptr + row * out_stride + col, num / tl.sum(num, axis=0), mask=col < width)


@triton.jit
def softmax_zeros_beyond(x_ptr, out_ptr, x_stride, out_stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_stride + col, mask=col < width, other=0.0).to(tl.float32)
    x -= tl.max(x, axis=0)
    num = tl.exp(x)
    tl.store(out_ptr + row * out_stride + col, num / tl.sum(num, axis=0), mask=col < width)


@triton.jit
def softmax_zero_in_the_maximum(x_ptr, out_ptr, x_stride, out_stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_stride + col, mask=col < width, other=0.0).to(tl.float32)
    num = tl.where(col < width, tl.exp(x - tl.max(x, axis=0)), 0.0)
    tl.store(out_ptr + row * out_stride + col, num / tl.sum(num, axis=0), mask=col < width)


@triton.jit
def softmax_as_if_contiguous(x_ptr, out_ptr, x_stride, out_stride, width, BLOCK: tl.constexpr):
    start = tl.program_id(0) * width
    col = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + start + col, mask=col < width, other=float("-inf")).to(tl.float32)
    num = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + start + col, num / tl.sum(num, 0), mask=col < width)


@triton.jit
def softmax_one_stride(x_ptr, out_ptr, x_stride, out_stride, width, BLOCK: tl.constexpr):
    col = tl.arange(0, BLOCK)
    at = tl.program_id(0) * x_stride + col
    x = tl.load(x_ptr + at, mask=col < width, other=float("-inf")).to(tl.float32)
    num = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + at, num / tl.sum(num, 0), mask=col < width)


@triton.jit
def softmax_unmasked(x_ptr, out_ptr, x_stride, out_stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_stride + col).to(tl.float32)
    num = tl.exp(x - tl.max(x, axis=0))
    tl.store(out_ptr + row * out_stride + col, num / tl.sum(num, axis=0))


@triton.jit
def softmax_store_unmasked(x_ptr, out_ptr, x_stride, out_stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_stride + col, col < width, other=float("-inf")).to(tl.float32)
    num = tl.exp(x - tl.max(x, axis=0))
    tl.store(out_ptr + row * out_stride + col, num / tl.sum(num, axis=0))


@triton.jit
def softmax_never_divided(x_ptr, out_ptr, x_stride, out_stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_stride + col, col < width, other=float("-inf")).to(tl.float32)
    tl.store(out_ptr + row * out_stride + col, tl.exp(x - tl.max(x, axis=0)), col < width)


@triton.jit
def softmax_by_logarithm(x_ptr, out_ptr, x_stride, out_stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    pointers = x_ptr + row * x_stride + col
    x = tl.load(pointers, mask=col < width, other=0.0).to(tl.float32)
    top = tl.max(tl.where(col < width, x, -1e30), axis=0)
    total = tl.sum(tl.where(col < width, tl.exp(x - top), 0.0), axis=0)
    tl.store(out_ptr + row * out_stride + col, tl.exp(x - top - tl.log(total)), mask=col < width)


@triton.jit
def softmax_with_a_running_maximum(x_ptr, out_ptr, x_stride, out_stride, width, BLOCK: tl.constexpr):
    """Element by element with a running maximum: no vector at all."""
    row = tl.program_id(0)
    top = tl.load(x_ptr + row * x_stride).to(tl.float32)
    total = top * 0.0 + 1.0
    for i in range(1, width):
        x = tl.load(x_ptr + row * x_stride + i).to(tl.float32)
        higher = tl.maximum(top, x)
        total = total * tl.exp(top - higher) + tl.exp(x - higher)
        top = higher
    for i in range(0, width):
        x = tl.load(x_ptr + row * x_stride + i).to(tl.float32)
        tl.store(out_ptr + row * out_stride + i, tl.exp(x - top) / total)


# ------------------------------------------------------------------------------------------------------ top_k_kernel


@triton.jit
def top_k_last_of_equals(x_ptr, ids_ptr, values_ptr, stride, width, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + col, mask=col < width, other=float("-inf"))
    for k in range(K):
        best = tl.max(x, axis=0)
        place = tl.argmax(x, axis=0, tie_break_left=False)
        tl.store(ids_ptr + row * K + k, place)
        tl.store(values_ptr + row * K + k, best)
        x = tl.where(col == place, float("-inf"), x)


@triton.jit
def top_k_equals_go_too(x_ptr, ids_ptr, values_ptr, stride, width, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + col, mask=col < width, other=float("-inf"))
    for k in range(K):
        best = tl.max(x, axis=0)
        tl.store(ids_ptr + row * K + k, tl.argmax(x, axis=0))
        tl.store(values_ptr + row * K + k, best)
        x = tl.where(x == best, float("-inf"), x)


@triton.jit
def top_k_padding_is_zero(x_ptr, ids_ptr, values_ptr, stride, width, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + col, mask=col < width, other=0.0)
    for k in range(K):
        place = tl.argmax(x, axis=0)
        tl.store(ids_ptr + row * K + k, place)
        tl.store(values_ptr + row * K + k, tl.max(x, axis=0))
        x = tl.where(col == place, float("-inf"), x)


@triton.jit
def top_k_taken_is_zero(x_ptr, ids_ptr, values_ptr, stride, width, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + col, mask=col < width, other=float("-inf"))
    for k in range(K):
        place = tl.argmax(x, axis=0)
        tl.store(ids_ptr + row * K + k, place)
        tl.store(values_ptr + row * K + k, tl.max(x, axis=0))
        x = tl.where(col == place, 0.0, x)


@triton.jit
def top_k_one_and_the_same(x_ptr, ids_ptr, values_ptr, stride, width, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + col, mask=col < width, other=float("-inf"))
    for k in range(K):
        tl.store(ids_ptr + row * K + k, tl.argmax(x, axis=0))
        tl.store(values_ptr + row * K + k, tl.max(x, axis=0))


@triton.jit
def top_k_outputs_by_block(x_ptr, ids_ptr, values_ptr, stride, width, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + col, mask=col < width, other=float("-inf"))
    for k in range(K):
        place = tl.argmax(x, axis=0)
        tl.store(ids_ptr + row * BLOCK + k, place)
        tl.store(values_ptr + row * BLOCK + k, tl.max(x, axis=0))
        x = tl.where(col == place, float("-inf"), x)


@triton.jit
def top_k_load_unmasked(x_ptr, ids_ptr, values_ptr, stride, width, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.where(col < width, tl.load(x_ptr + row * stride + col), float("-inf"))
    for k in range(K):
        place = tl.argmax(x, axis=0)
        tl.store(ids_ptr + row * K + k, place)
        tl.store(values_ptr + row * K + k, tl.max(x, axis=0))
        x = tl.where(col == place, float("-inf"), x)


@triton.jit
def top_k_by_rank(x_ptr, ids_ptr, values_ptr, stride, width, K: tl.constexpr, BLOCK: tl.constexpr):
    """Counts who beats whom; whoever is beaten by fewer than K writes itself."""
    row = tl.program_id(0)
    a, b = tl.arange(0, BLOCK), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + a, mask=a < width, other=float("-inf"))
    y = tl.load(x_ptr + row * stride + b, mask=b < width, other=float("-inf"))
    beats = (y[None, :] > x[:, None]) | ((y[None, :] == x[:, None]) & (b[None, :] < a[:, None]))
    rank = tl.sum(tl.where(beats, 1, 0), axis=1)
    tl.store(ids_ptr + row * K + rank, a, mask=(rank < K) & (a < width))
    tl.store(values_ptr + row * K + rank, x, mask=(rank < K) & (a < width))


# ----------------------------------------------------------------------------------------------------- router_kernel


@triton.jit
def router_norm_left_out(
    logits_ptr, ids_ptr, weights_ptr, stride, E, K: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr
):
    t = tl.program_id(0)
    e = tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + t * stride + e, mask=e < E, other=float("-inf")).to(tl.float32)
    p = tl.exp(x - tl.max(x, axis=0))
    p = p / tl.sum(p, axis=0)
    for k in tl.static_range(K):
        i = tl.argmax(p, axis=0)
        tl.store(ids_ptr + t * K + k, i)
        tl.store(weights_ptr + t * K + k, tl.max(p, axis=0))
        p = tl.where(e == i, -1.0, p)


@triton.jit
def router_softmax_of_the_chosen(
    logits_ptr, ids_ptr, weights_ptr, stride, E, K: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr
):
    t = tl.program_id(0)
    e = tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + t * stride + e, mask=e < E, other=float("-inf")).to(tl.float32)
    top = tl.max(x, axis=0)
    rest = x
    for k in tl.static_range(K):
        i = tl.argmax(rest, axis=0)
        tl.store(ids_ptr + t * K + k, i)
        rest = tl.where(e == i, float("-inf"), rest)
    taken = (e < E) & (rest == float("-inf"))
    total = tl.sum(tl.where(taken, tl.exp(x - top), 0.0), axis=0)
    rest = x
    for k in tl.static_range(K):
        i = tl.argmax(rest, axis=0)
        tl.store(weights_ptr + t * K + k, tl.exp(tl.max(rest, axis=0) - top) / total)
        rest = tl.where(e == i, float("-inf"), rest)


@triton.jit
def router_scores_not_divided(
    logits_ptr, ids_ptr, weights_ptr, stride, E, K: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr
):
    t = tl.program_id(0)
    e = tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + t * stride + e, mask=e < E, other=float("-inf")).to(tl.float32)
    p = tl.exp(x - tl.max(x, axis=0))
    left, total = p, 0.0
    for k in tl.static_range(K):
        total += tl.max(left, axis=0)
        left = tl.where(e == tl.argmax(left, axis=0), -1.0, left)
    left = p
    for k in tl.static_range(K):
        i = tl.argmax(left, axis=0)
        tl.store(ids_ptr + t * K + k, i)
        tl.store(weights_ptr + t * K + k, tl.max(left, axis=0) / (total if NORM else 1.0))
        left = tl.where(e == i, -1.0, left)


@triton.jit
def _pick(p, e, ids_ptr, weights_ptr, t, K: tl.constexpr, NORM: tl.constexpr):
    """A right second half: two rounds, the first for the sum."""
    left, total = p, 0.0
    for k in tl.static_range(K):
        total += tl.max(left, axis=0)
        left = tl.where(e == tl.argmax(left, axis=0), -1.0, left)
    left = p
    if NORM:
        left = p / total
    for k in tl.static_range(K):
        i = tl.argmax(left, axis=0)
        tl.store(ids_ptr + t * K + k, i)
        tl.store(weights_ptr + t * K + k, tl.max(left, axis=0))
        left = tl.where(e == i, -1.0, left)


@triton.jit
def router_overflows(
    logits_ptr, ids_ptr, weights_ptr, stride, E, K: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr
):
    t = tl.program_id(0)
    e = tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + t * stride + e, mask=e < E, other=float("-inf")).to(tl.float32)
    p = tl.exp(x)
    p = p / tl.sum(p, axis=0)
    total = 0.0
    slot = tl.full([BLOCK], K, tl.int32)
    for k in tl.static_range(K):
        left = (e < E) & (slot == K)
        best = tl.max(tl.where(left, p, -1.0), axis=0)
        first = tl.min(tl.where(left & (p == best), e, BLOCK), axis=0)
        slot = tl.where(e == first, k, slot)
        total += best
    if NORM:
        p = p / total
    tl.store(ids_ptr + t * K + slot, e, mask=slot < K)
    tl.store(weights_ptr + t * K + slot, p, mask=slot < K)


@triton.jit
def router_empty_lanes_count(
    logits_ptr, ids_ptr, weights_ptr, stride, E, K: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr
):
    t = tl.program_id(0)
    e = tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + t * stride + e, mask=e < E, other=0.0).to(tl.float32)
    p = tl.exp(x - tl.max(x, axis=0))
    p = tl.where(e < E, p / tl.sum(p, axis=0), -1.0)
    _pick(p, e, ids_ptr, weights_ptr, t, K, NORM)


@triton.jit
def router_rows_touch(
    logits_ptr, ids_ptr, weights_ptr, stride, E, K: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr
):
    t = tl.program_id(0)
    e = tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + t * E + e, mask=e < E, other=float("-inf")).to(tl.float32)
    p = tl.exp(x - tl.max(x, axis=0))
    _pick(p / tl.sum(p, axis=0), e, ids_ptr, weights_ptr, t, K, NORM)


@triton.jit
def router_best_is_one(
    logits_ptr, ids_ptr, weights_ptr, stride, E, K: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr
):
    t = tl.program_id(0)
    e = tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + t * stride + e, mask=e < E, other=float("-inf")).to(tl.float32)
    p = tl.exp(x - tl.max(x, axis=0))
    if not NORM:
        p = p / tl.sum(p, axis=0)
    for k in tl.static_range(K):
        i = tl.argmax(p, axis=0)
        tl.store(ids_ptr + t * K + k, i)
        tl.store(weights_ptr + t * K + k, tl.max(p, axis=0))
        p = tl.where(e == i, -1.0, p)


@triton.jit
def router_by_logits(
    logits_ptr, ids_ptr, weights_ptr, stride, E, K: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr
):
    """Chooses by logit, keeps a running sum, and writes the weights at the end."""
    t = tl.program_id(0)
    e = tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + t * stride + e, mask=e < E, other=float("-inf")).to(tl.float32)
    top = tl.max(x, axis=0)
    every = tl.sum(tl.exp(x - top), axis=0)
    left, some = x, 0.0
    for k in tl.static_range(K):
        some += tl.exp(tl.max(left, axis=0) - top)
        left = tl.where(e == tl.argmax(left, axis=0), float("-inf"), left)
    left = x
    for k in tl.static_range(K):
        i = tl.argmax(left, axis=0)
        tl.store(ids_ptr + t * K + k, i)
        tl.store(weights_ptr + t * K + k, tl.exp(tl.max(left, axis=0) - top) / (some if NORM else every))
        left = tl.where(e == i, float("-inf"), left)


NEAR_MISSES = {
    "08.matmul_bound": [
        (bound_multiply_add_is_one, "one_flop"),
        (bound_result_is_free, "no_output"),
        (bound_numbers_for_bytes, "elements"),
        (bound_one_after_the_other, "added_up"),
        (bound_bytes_per_flop, "upside_down"),
        (bound_other_word, "swapped"),
    ],
    "08.add_kernel": [
        (add_no_mask, "no_mask"),
        (add_masks_the_store_only, "reads_beyond"),
        (add_masks_the_loads_only, "writes_beyond"),
        (add_mask_with_equals, "one_too_many"),
        (add_without_program_id, "always_the_first_block"),
        (add_block_forgotten, "one_apart"),
        (add_goes_far, "far_away"),
        (add_in_torch, "no_kernel"),
    ],
    "08.softmax_kernel": [
        (softmax_raw_exponentials, "no_maximum"),
        (softmax_zeros_beyond, "padding_counts"),
        (softmax_zero_in_the_maximum, "maximum_of_padding"),
        (softmax_as_if_contiguous, "rows_of_width"),
        (softmax_one_stride, "one_stride_for_both"),
        (softmax_unmasked, "no_mask"),
        (softmax_store_unmasked, "writes_beyond"),
        (softmax_never_divided, "not_divided"),
    ],
    "08.top_k_kernel": [
        (top_k_last_of_equals, "ties_to_the_last"),
        (top_k_equals_go_too, "one_knocks_out_all"),
        (top_k_padding_is_zero, "padding_wins"),
        (top_k_taken_is_zero, "zero_is_not_out"),
        (top_k_one_and_the_same, "the_same_again"),
        (top_k_outputs_by_block, "writes_beyond"),
        (top_k_load_unmasked, "reads_beyond"),
    ],
    "08.router_kernel": [
        (router_norm_left_out, "not_renormalised"),
        (router_softmax_of_the_chosen, "always_renormalised"),
        (router_scores_not_divided, "softmax_not_divided"),
        (router_overflows, "no_maximum"),
        (router_empty_lanes_count, "padding_counts"),
        (router_rows_touch, "rows_of_width"),
        (router_best_is_one, "divided_by_the_best"),
    ],
}
RIGHT_ANSWERS = {
    "08.matmul_bound": [bound_by_the_ridge],
    "08.add_kernel": [add_by_blocks_of_pointers, add_with_a_loop],
    "08.softmax_kernel": [softmax_by_logarithm, softmax_with_a_running_maximum],
    "08.top_k_kernel": [top_k_by_rank],
    "08.router_kernel": [router_by_logits],
}
