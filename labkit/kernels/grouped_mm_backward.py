"""What the backward pass adds to `kernels.grouped_mm`: SwiGLU's gradient, and the gradients of the experts' matrices.

Only the pre-activation was saved. One pass over it makes everything again that the products need: the gradient of the
pre-activation, the weighted hidden rows, and the gradient of every pair's score (SonicMoE; Guo et al. 2025).
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.tools.ragged_tma import create_ragged_descriptor, load_ragged

from labkit.kernels.grouped_mm import halves, precision
from labkit.kernels.language import TensorDescriptor, tl, triton
from labkit.kernels.permute import ExpertMap
from labkit.kernels.tiles import Tile


@triton.jit
def _swiglu_backward(
    grad_ptr, pre_ptr, score_ptr, pair_ptr, offset_ptr, grad_pre_ptr, weighed_ptr, grad_score_ptr, F, E,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row in expert order, with a = SiLU(g)·u and the gradient d of a before it is weighed.

    The score's gradient is Σ d·a; the gradients of g and u are s·d·u·SiLU′(g) and s·d·SiLU(g).
    """
    row = tl.program_id(0).to(tl.int64)
    if row < tl.load(offset_ptr + E):
        pair = tl.load(pair_ptr + row)
        score = tl.load(score_ptr + pair).to(tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, F, BLOCK):
            column = first + tl.arange(0, BLOCK)
            mask = column < F
            gate = tl.load(pre_ptr + row * 2 * F + column, mask=mask, other=0.0).to(tl.float32)
            up = tl.load(pre_ptr + row * 2 * F + F + column, mask=mask, other=0.0).to(tl.float32)
            grad = tl.load(grad_ptr + row * F + column, mask=mask, other=0.0).to(tl.float32)
            sigmoid = tl.sigmoid(gate)
            silu = gate * sigmoid
            total += grad * silu * up
            grad *= score
            kind = grad_pre_ptr.dtype.element_ty
            tl.store(weighed_ptr + row * F + column, (score * silu * up).to(kind), mask=mask)
            slope = sigmoid + silu * (1 - sigmoid)
            tl.store(grad_pre_ptr + row * 2 * F + column, (grad * up * slope).to(kind), mask=mask)
            tl.store(grad_pre_ptr + row * 2 * F + F + column, (grad * silu).to(kind), mask=mask)
        tl.store(grad_score_ptr + pair, tl.sum(total, 0))


def swiglu_backward(
    grad_NF: Tensor, pre_N2F: Tensor, topk_scores_TK: Tensor, places: ExpertMap
) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of the unweighed hidden rows to `grad_pre_N2F`, `weighed_NF` and `grad_scores_TK` (float32).

    `weighed_NF` are the hidden rows times their scores, which the gradient of the down matrices multiplies.
    """
    N, F = grad_NF.shape
    grad_pre, weighed = torch.empty_like(pre_N2F), torch.empty_like(grad_NF)
    grad_scores = topk_scores_TK.new_zeros(topk_scores_TK.shape, dtype=torch.float32)
    _swiglu_backward[(N,)](
        grad_NF, pre_N2F, topk_scores_TK, places.pair_N, places.offset_E1, grad_pre, weighed, grad_scores,
        F, len(places.offset_E1) - 1, BLOCK=min(1024, triton.next_power_of_2(F)), num_warps=4,
    )  # fmt: skip
    return grad_pre, weighed, grad_scores


@triton.jit
def _weight_gradient(
    x_ptr, rows_desc, out, pair_ptr, offset_ptr, D, W, columns,
    K: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[expert] = Σ x[token]ᵀ · y[row] over the expert's rows: a product whose depth is the number of rows.

    Token rows are gathered as they are loaded. The descriptor stops at the expert's last row and gives zeros after it,
    so the gathered rows need no mask. An expert without rows gets zeros.
    """
    tiles = tl.cdiv(D, BLOCK_M)
    tile = tl.program_id(0)
    expert = tile // (tiles * columns)
    m = tile % tiles  # whole token rows are gathered by neighbours, then again for the next columns of y
    n = tile // tiles % columns
    start = tl.load(offset_ptr + expert)
    rows = tl.load(offset_ptr + expert + 1) - start
    column = m * BLOCK_M + tl.arange(0, BLOCK_M)
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, rows, BLOCK_K):
        row = tl.minimum(k + tl.arange(0, BLOCK_K), rows - 1)
        token = tl.load(pair_ptr + start + row) // K
        x = tl.load(x_ptr + (token.to(tl.int64) * D)[:, None] + column[None, :], mask=(column < D)[None, :], other=0.0)
        y = load_ragged(rows_desc, start, rows, [k, n * BLOCK_N])
        product = tl.dot(x.T, y, product, input_precision=PRECISION)
    left, right = halves(product.to(out.dtype))
    if TRANSPOSED:
        out.store([expert, n * BLOCK_N, m * BLOCK_M], left.T.reshape(1, BLOCK_N // 2, BLOCK_M))
        out.store([expert, n * BLOCK_N + BLOCK_N // 2, m * BLOCK_M], right.T.reshape(1, BLOCK_N // 2, BLOCK_M))
    else:
        out.store([expert, m * BLOCK_M, n * BLOCK_N], left.reshape(1, BLOCK_M, BLOCK_N // 2))
        out.store([expert, m * BLOCK_M, n * BLOCK_N + BLOCK_N // 2], right.reshape(1, BLOCK_M, BLOCK_N // 2))


def weight_gradient(x_TD: Tensor, y_NW: Tensor, places: ExpertMap, tile: Tile, *, transposed: bool) -> Tensor:
    """For every expert the sum over its rows of x[token]ᵀ · y[row]: [E, D, W], or with `transposed` [E, W, D].

    Args:
        x_TD: [T, D] in token order; y_NW: [N, W] in expert order; contiguous, one dtype, which the result has too.
        places: of the rows. tile: from `kernels.tiles`.
    """
    E, D, W = len(places.offset_E1) - 1, x_TD.shape[1], y_NW.shape[1]
    m, n = tile.block_m, tile.block_n
    gradient = x_TD.new_empty((E, W, D) if transposed else (E, D, W))
    box = [1, n // 2, m] if transposed else [1, m, n // 2]
    out = TensorDescriptor(gradient, list(gradient.shape), list(gradient.stride()), box)
    columns = triton.cdiv(W, n)
    _weight_gradient[(E * triton.cdiv(D, m) * columns,)](
        x_TD, create_ragged_descriptor(y_NW, [tile.block_k, n]), out, places.pair_N, places.offset_E1, D, W, columns,
        K=places.place_TK.shape[1], TRANSPOSED=transposed, PRECISION=precision(x_TD),
        BLOCK_M=m, BLOCK_N=n, BLOCK_K=tile.block_k, **tile.launch,
    )  # fmt: skip
    return gradient
