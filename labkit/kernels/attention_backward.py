"""The gradients of flash attention: the scores are computed again, tile by tile, from the inputs and the saved sums.

With P the probabilities, exp(scaled scores − saved logarithm of their sum), and g the gradient of the output
(FlashAttention-2, Dao 2023, arXiv 2307.08691, algorithm 2):

    dV = Pᵀ · g      dS = P ∘ (g · Vᵀ − δ),  δ = Σ g ∘ out, one number a query      dQ = dS · K,  dK = dSᵀ · Q

Algorithm 2 adds up dQ with atomics, in any order. Here one kernel walks over the queries for dK and dV, another over
the keys for dQ: seven products instead of five, equal bits every time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.kernels.attention_tiles import LOG2E, Block, blocks, descriptor, merged, padded, place, tile
from labkit.kernels.grouped_mm import precision
from labkit.kernels.language import tl, triton

# For dK and dV a program keeps `keys` rows and walks over `queries`; for dQ it is the other way round. Both keep two
# tiles and two sums, so they take smaller tiles than the forward pass.
_HALF_KEYS = {
    9: {64: Block(64, 128, 8, 2), 128: Block(64, 128, 8, 2), 256: Block(32, 64, 8, 2)},
    8: {64: Block(32, 64, 4, 2), 128: Block(32, 64, 8, 1), 256: Block(16, 32, 8, 1)},
    7: {64: Block(32, 64, 4, 1), 128: Block(32, 32, 4, 1), 256: Block(16, 16, 4, 1)},
}
_HALF_QUERIES = {
    9: {64: Block(128, 64, 8, 2), 128: Block(128, 64, 8, 2), 256: Block(64, 32, 8, 2)},
    8: {64: Block(64, 32, 4, 2), 128: Block(64, 32, 8, 1), 256: Block(32, 16, 8, 1)},
    7: {64: Block(64, 32, 4, 1), 128: Block(32, 32, 4, 1), 256: Block(16, 16, 4, 1)},
}
_SINGLE = {64: Block(16, 16, 8, 1), 128: Block(16, 16, 8, 1), 256: Block(16, 16, 8, 1)}


@triton.jit
def _delta(grad_ptr, out_ptr, delta_ptr, S, H, d, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Σ gradient · output over a head's width: what the softmax's gradient subtracts from every key of a query."""
    tiles = tl.cdiv(S, ROWS)
    head, first = tl.program_id(0) // tiles, tl.program_id(0) % tiles * ROWS
    offset, mask = place(head, first, S, d, H, WIDTH, ROWS)
    grad = tl.load(grad_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    out = tl.load(out_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    row = first + tl.arange(0, ROWS)
    tl.store(delta_ptr + head.to(tl.int64) * S + row, tl.sum(grad * out, 1), mask=row < S)


@triton.jit
def _walk_queries(
    k, v, q_desc, grad_desc, lse_ptr, delta_ptr, batch, head, first, last, column, shift, S, H, scale, grad_k, grad_v,
    MASK: tl.constexpr, PRECISION: tl.constexpr, QUERIES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Adds what the queries from `first` to `last` of one head give to dK and dV. Scores stand [keys, queries]."""
    numbers = (batch * H + head).to(tl.int64) * S
    for query in tl.range(first, last, QUERIES):
        row = query + tl.arange(0, QUERIES)
        lse = tl.load(lse_ptr + numbers + row, mask=row < S, other=float("inf"))  # no query: its powers are zero
        delta = tl.load(delta_ptr + numbers + row, mask=row < S, other=0.0)
        q = tile(q_desc, batch, head, query, QUERIES, WIDTH)
        powers = tl.dot(k, q.T, input_precision=PRECISION) * scale - (lse * 1.4426950408889634)[None, :]
        if MASK:
            ahead = column - (query + shift)
            powers = tl.where(ahead[:, None] <= tl.arange(0, QUERIES)[None, :], powers, float("-inf"))
        powers = tl.exp2(powers)
        grad = tile(grad_desc, batch, head, query, QUERIES, WIDTH)
        grad_v = tl.dot(powers.to(grad.dtype), grad, grad_v, input_precision=PRECISION)
        slope = powers * tl.dot(v, grad.T, tl.zeros_like(powers) - delta[None, :], input_precision=PRECISION)
        grad_k = tl.dot(slope.to(q.dtype), q, grad_k, input_precision=PRECISION)
    return grad_k, grad_v


@triton.jit
def _key_gradients(
    q_desc, k_desc, v_desc, grad_desc, lse_ptr, delta_ptr, grad_k_ptr, grad_v_ptr, S, K, G, d, scale, factor,
    SHARED: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of keys: over every query head that shares it, over every query that sees it."""
    tiles = tl.cdiv(K, KEYS)
    pair, first_key = tl.program_id(0) // tiles, tl.program_id(0) % tiles * KEYS
    batch, group = pair // G, pair % G
    column = first_key + tl.arange(0, KEYS)
    shift = K - S
    k = tile(k_desc, batch, group, first_key, KEYS, WIDTH)
    v = tile(v_desc, batch, group, first_key, KEYS, WIDTH)
    grad_k = tl.zeros((KEYS, WIDTH), tl.float32)
    grad_v = tl.zeros((KEYS, WIDTH), tl.float32)
    first, whole = 0, 0
    if CAUSAL:
        first = tl.maximum(first_key - shift, 0) // QUERIES * QUERIES
        whole = tl.minimum(tl.cdiv(tl.maximum(first_key + KEYS - 1 - shift, 0), QUERIES) * QUERIES, S)
    for share in range(SHARED):
        head = group * SHARED + share
        if CAUSAL:
            grad_k, grad_v = _walk_queries(
                k, v, q_desc, grad_desc, lse_ptr, delta_ptr, batch, head, first, whole, column, shift, S, G * SHARED,
                scale, grad_k, grad_v, True, PRECISION, QUERIES, WIDTH,
            )  # fmt: skip
        grad_k, grad_v = _walk_queries(
            k, v, q_desc, grad_desc, lse_ptr, delta_ptr, batch, head, whole, S, column, shift, S, G * SHARED,
            scale, grad_k, grad_v, False, PRECISION, QUERIES, WIDTH,
        )  # fmt: skip
    offset, mask = place(pair, first_key, K, d, G, WIDTH, KEYS)
    tl.store(grad_k_ptr + offset, (grad_k * factor).to(grad_k_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_v_ptr + offset, grad_v.to(grad_v_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _walk_keys(
    q, grad, k_desc, v_desc, lse, delta, batch, group, first, last, row, shift, K, scale, grad_q,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Adds what the keys from `first` to `last` give to dQ."""
    for key in tl.range(first, last, KEYS):
        k = tile(k_desc, batch, group, key, KEYS, WIDTH)
        powers = tl.dot(q, k.T, input_precision=PRECISION) * scale - lse[:, None]
        if MASK:
            column = key + tl.arange(0, KEYS)
            seen = (column < K)[None, :]
            if CAUSAL:
                seen = seen & (column[None, :] <= row[:, None] + shift)
            powers = tl.where(seen, powers, float("-inf"))
        powers = tl.exp2(powers)
        v = tile(v_desc, batch, group, key, KEYS, WIDTH)
        slope = powers * (tl.dot(grad, v.T, input_precision=PRECISION) - delta[:, None])
        grad_q = tl.dot(slope.to(k.dtype), k, grad_q, input_precision=PRECISION)
    return grad_q


@triton.jit
def _query_gradients(
    q_desc, k_desc, v_desc, grad_desc, lse_ptr, delta_ptr, grad_q_ptr, S, K, H, d, scale, factor,
    SHARED: tl.constexpr, CAUSAL: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dQ of one tile of queries, over every key that it sees, as the forward pass walks."""
    tiles = tl.cdiv(S, QUERIES)
    head = tl.program_id(0) // tiles
    first_row = (tiles - 1 - tl.program_id(0) % tiles) * QUERIES
    batch, group = head // H, head % H // SHARED
    row = first_row + tl.arange(0, QUERIES)
    shift = K - S
    numbers = head.to(tl.int64) * S + row
    lse = tl.load(lse_ptr + numbers, mask=row < S, other=float("inf")) * 1.4426950408889634
    delta = tl.load(delta_ptr + numbers, mask=row < S, other=0.0)
    q = tile(q_desc, batch, head % H, first_row, QUERIES, WIDTH)
    grad = tile(grad_desc, batch, head % H, first_row, QUERIES, WIDTH)
    grad_q = tl.zeros((QUERIES, WIDTH), tl.float32)
    whole = K // KEYS * KEYS
    last = K
    if CAUSAL:
        whole = tl.minimum(whole, tl.maximum(first_row + shift + 1, 0) // KEYS * KEYS)
        last = tl.minimum(K, tl.maximum(first_row + QUERIES + shift, 0))
    grad_q = _walk_keys(
        q, grad, k_desc, v_desc, lse, delta, batch, group, 0, whole, row, shift, K, scale, grad_q,
        False, CAUSAL, PRECISION, KEYS, WIDTH,
    )  # fmt: skip
    if CAUSAL or not EVEN:
        grad_q = _walk_keys(
            q, grad, k_desc, v_desc, lse, delta, batch, group, whole, last, row, shift, K, scale, grad_q,
            True, CAUSAL, PRECISION, KEYS, WIDTH,
        )  # fmt: skip
    offset, mask = place(head, first_row, S, d, H, WIDTH, QUERIES)
    tl.store(grad_q_ptr + offset, (grad_q * factor).to(grad_q_ptr.dtype.element_ty), mask=mask)


def gradients(
    grad_BHSd: Tensor, q_BHSd: Tensor, k_BGKd: Tensor, v_BGKd: Tensor, out_BHSd: Tensor, lse_BHS: Tensor,
    *, causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `attention` in queries, keys and values.

    Args:
        grad_BHSd: of the output. q_BHSd, k_BGKd, v_BGKd: its inputs; out_BHSd, lse_BHS: what it gave and saved.
        causal, scale: as it was called.
    """
    (B, H, S, d), (G, K) = q_BHSd.shape, k_BGKd.shape[1:3]
    grad_q, grad_k, grad_v = (merged(tensor) for tensor in (q_BHSd, k_BGKd, v_BGKd))
    if not (q_BHSd.numel() and k_BGKd.numel()):
        return grad_q.zero_(), grad_k.zero_(), grad_v.zero_()
    grad_BHSd, out_BHSd = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (grad_BHSd, out_BHSd))
    delta, width = torch.empty_like(lse_BHS), padded(d)
    _delta[(triton.cdiv(S, 32) * B * H,)](grad_BHSd, out_BHSd, delta, S, H, d, ROWS=32, WIDTH=width)
    how = {"SHARED": H // G, "CAUSAL": causal, "PRECISION": precision(q_BHSd), "WIDTH": width}
    numbers = lse_BHS, delta

    block = blocks(_HALF_KEYS, _SINGLE, q_BHSd)
    q, grad = (descriptor(x, block.queries) for x in (q_BHSd, grad_BHSd))
    k, v = (descriptor(x, block.keys) for x in (k_BGKd, v_BGKd))
    _key_gradients[(triton.cdiv(K, block.keys) * B * G,)](
        q, k, v, grad, *numbers, grad_k, grad_v, S, K, G, d, scale * LOG2E, scale, **how, **block.launch
    )
    block = blocks(_HALF_QUERIES, _SINGLE, q_BHSd)
    q, grad = (descriptor(x, block.queries) for x in (q_BHSd, grad_BHSd))
    k, v = (descriptor(x, block.keys) for x in (k_BGKd, v_BGKd))
    _query_gradients[(triton.cdiv(S, block.queries) * B * H,)](
        q, k, v, grad, *numbers, grad_q, S, K, H, d, scale * LOG2E, scale,
        EVEN=K % block.keys == 0, **how, **block.launch,
    )  # fmt: skip
    return grad_q, grad_k, grad_v
