"""Lab 08: right answers, as `reveal` shows them."""

from __future__ import annotations

from labkit.course.labs._language import tl, triton


def matmul_bound(
    M: int, K: int, N: int, itemsize: int, peak_flops: float, bandwidth: float
) -> tuple[float, float, str]:
    flops = 2 * M * N * K
    moved = itemsize * (M * K + K * N + M * N)
    computing, moving = flops / peak_flops, moved / bandwidth
    return max(computing, moving), flops / moved, "compute" if computing >= moving else "memory"


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside)
    y = tl.load(y_ptr + at, mask=inside)
    tl.store(out_ptr + at, x + y, mask=inside)


@triton.jit
def softmax_kernel(x_ptr, out_ptr, x_stride, out_stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    x = tl.load(x_ptr + row * x_stride + at, mask=inside, other=float("-inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, axis=0))
    tl.store(out_ptr + row * out_stride + at, e / tl.sum(e, axis=0), mask=inside)


@triton.jit
def top_k_kernel(x_ptr, ids_ptr, values_ptr, stride, width, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    left = at < width
    x = tl.load(x_ptr + row * stride + at, mask=left, other=float("-inf")).to(tl.float32)
    for k in tl.static_range(K):
        best = tl.max(tl.where(left, x, float("-inf")), axis=0)
        first = tl.min(tl.where(left & (x == best), at, BLOCK), axis=0)
        tl.store(ids_ptr + row * K + k, first)
        tl.store(values_ptr + row * K + k, best)
        left = left & (at != first)


@triton.jit
def router_kernel(
    logits_ptr, ids_ptr, weights_ptr, stride, E, K: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr
):
    t = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK)
    real = e < E
    x = tl.load(logits_ptr + t * stride + e, mask=real, other=float("-inf")).to(tl.float32)
    p = tl.exp(x - tl.max(x, axis=0))
    p = p / tl.sum(p, axis=0)
    slot = tl.full([BLOCK], K, tl.int32)  # where in the answer an expert stands; K: nowhere yet
    for k in tl.static_range(K):
        left = real & (slot == K)
        best = tl.max(tl.where(left, p, -1.0), axis=0)
        first = tl.min(tl.where(left & (p == best), e, BLOCK), axis=0)
        slot = tl.where(e == first, k, slot)
    chosen = slot < K
    if NORM:
        p = p / tl.sum(tl.where(chosen, p, 0.0), axis=0)
    tl.store(ids_ptr + t * K + slot, e, mask=chosen)
    tl.store(weights_ptr + t * K + slot, p, mask=chosen)


for _kernel in (add_kernel, softmax_kernel, top_k_kernel, router_kernel):
    if hasattr(_kernel, "fn"):
        _kernel.__wrapped__ = _kernel.fn  # so that inspect finds its source and its signature
