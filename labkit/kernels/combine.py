"""Back to token order: each token adds up the rows of its pairs, weighted by their scores, without atomics."""

from __future__ import annotations

from torch import Tensor

from labkit.kernels.language import tl, triton

BLOCK = 1024  # columns of a program


@triton.jit
def _combine(y_ptr, place_ptr, score_ptr, out_ptr, D, K: tl.constexpr, WEIGHED: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for slot in range(K):
        row = tl.load(place_ptr + token * K + slot).to(tl.int64)  # −1: a dropped pair
        y = tl.load(y_ptr + row * D + column, mask=(column < D) & (row >= 0), other=0.0).to(tl.float32)
        if WEIGHED:
            y *= tl.load(score_ptr + token * K + slot).to(tl.float32)
        total += y
    tl.store(out_ptr + token * D + column, total.to(out_ptr.dtype.element_ty), mask=column < D)


def combine(y_ND: Tensor, place_TK: Tensor, topk_scores_TK: Tensor | None = None) -> Tensor:
    """The sum over each token's pairs, [T, D] in y's dtype, added up in float32.

    Args:
        y_ND: [N, D] contiguous, in expert order. place_TK: [T, K] int32 of `kernels.permute`, −1 for a dropped pair.
        topk_scores_TK: [T, K] contiguous, or None for plain sums.
    """
    (T, K), D = place_TK.shape, y_ND.shape[1]
    out = y_ND.new_empty(T, D)
    if T:
        block = min(BLOCK, triton.next_power_of_2(D))
        grid = (T, triton.cdiv(D, block))
        weighed = topk_scores_TK is not None
        _combine[grid](y_ND, place_TK, topk_scores_TK, out, D, K=K, WEIGHED=weighed, BLOCK=block, num_warps=4)
    return out
