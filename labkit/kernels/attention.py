"""Flash attention: softmax(q · kᵀ) · v without the scores ever being stored, and its gradients, as one operator.

A program holds a tile of queries and walks over the keys. For each query it keeps the largest score so far, the sum of
the exponentials below it and the weighted sum of values; when the largest grows, both sums shrink to match ("online
softmax"). Saved for the backward pass (`kernels.attention_backward`) are the inputs, the output and one number a query,
the logarithm of its sum. FlashAttention-2, Dao 2023, arXiv 2307.08691, algorithm 1.

Shape suffixes: B batch, S queries, K keys, H query heads, G key and value heads (each serves H / G query heads), d head
width. Causal means that the last query sees every key and each one before it one key less (aligned at the bottom right;
torch's `is_causal` aligns at the top left, the same thing where there are as many queries as keys).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from labkit.kernels.attention_backward import gradients
from labkit.kernels.attention_tiles import LOG2E, Block, blocks, descriptor, merged, padded, place, tile
from labkit.kernels.grouped_mm import precision
from labkit.kernels.language import tl, triton, unsupported, watched

WIDEST = 256
LOWEST = tl.constexpr(-3.4e38)  # a finite start of the running maximum: −∞ − −∞ is no number

# By GPU generation and head width, for operands of two bytes. Hopper: a warpgroup multiplies 64 rows, so 8 warps take
# 128 queries, whose sums and scores fit their registers; two programs a multiprocessor where shared memory allows, so
# that one multiplies while the other takes exponentials. Older GPUs have less. Never searched during a call.
_HALF = {
    9: {64: Block(128, 64, 8, 3), 128: Block(128, 128, 8, 2), 256: Block(128, 64, 8, 2)},
    8: {64: Block(128, 64, 4, 3), 128: Block(64, 64, 4, 2), 256: Block(64, 32, 4, 1)},
    7: {64: Block(64, 64, 4, 2), 128: Block(64, 32, 4, 2), 256: Block(32, 32, 4, 1)},
}
# Exact products of float32 have no tensor cores, and all of a tile's depth in registers: right, and slow.
_SINGLE = {64: Block(32, 32, 4, 1), 128: Block(32, 32, 8, 1), 256: Block(16, 16, 8, 1)}


def refuses(dtype: torch.dtype, device: str, d: int) -> str:
    """Why `attention` cannot compute heads of this kind; empty if it can.

    >>> refuses(torch.float32, "cpu", 300)
    'heads are 300 wide; a tile holds at most 256'
    """
    return unsupported(dtype, device) or (f"heads are {d} wide; a tile holds at most {WIDEST}" if d > WIDEST else "")


@triton.jit
def _walk(
    q, k_desc, v_desc, batch, group, first, last, row, shift, K, scale, top, total, out,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Algorithm 1, lines 6 to 11: the tiles of keys from `first` to `last`, masked where a query may not see a key."""
    for key in tl.range(first, last, KEYS):
        k = tile(k_desc, batch, group, key, KEYS, WIDTH)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        if MASK:
            column = key + tl.arange(0, KEYS)
            seen = (column < K)[None, :]
            if CAUSAL:
                seen = seen & (column[None, :] <= row[:, None] + shift)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1) * scale)
        powers = tl.exp2(scores * scale - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(powers, 1)
        v = tile(v_desc, batch, group, key, KEYS, WIDTH)
        out = tl.dot(powers.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
        top = higher
    return top, total, out


@triton.jit
def _attention(
    q_desc, k_desc, v_desc, out_ptr, lse_ptr, S, K, H, d, scale,
    SHARED: tl.constexpr, CAUSAL: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head. The last tiles of a head come first: causally they have most to do."""
    tiles = tl.cdiv(S, QUERIES)
    head = tl.program_id(0) // tiles
    first_row = (tiles - 1 - tl.program_id(0) % tiles) * QUERIES
    batch, group = head // H, head % H // SHARED
    row = first_row + tl.arange(0, QUERIES)
    shift = K - S
    top = tl.full((QUERIES,), LOWEST, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    out = tl.zeros((QUERIES, WIDTH), tl.float32)
    q = tile(q_desc, batch, head % H, first_row, QUERIES, WIDTH)
    whole = K // KEYS * KEYS
    last = K
    if CAUSAL:
        whole = tl.minimum(whole, tl.maximum(first_row + shift + 1, 0) // KEYS * KEYS)
        last = tl.minimum(K, tl.maximum(first_row + QUERIES + shift, 0))
    top, total, out = _walk(
        q, k_desc, v_desc, batch, group, 0, whole, row, shift, K, scale, top, total, out,
        False, CAUSAL, PRECISION, KEYS, WIDTH,
    )  # fmt: skip
    if CAUSAL or not EVEN:
        top, total, out = _walk(
            q, k_desc, v_desc, batch, group, whole, last, row, shift, K, scale, top, total, out,
            True, CAUSAL, PRECISION, KEYS, WIDTH,
        )  # fmt: skip
    some = total > 0  # a query that sees no key gets zeros
    total = tl.where(some, total, 1.0)
    out = out / total[:, None]
    lse = tl.where(some, (top + tl.log2(total)) * 0.6931471805599453, float("-inf"))
    tl.store(lse_ptr + head.to(tl.int64) * S + row, lse, mask=row < S)
    offset, mask = place(head, first_row, S, d, H, WIDTH, QUERIES)
    tl.store(out_ptr + offset, out.to(out_ptr.dtype.element_ty), mask=mask)


def attention(
    q_BHSd: Tensor, k_BGKd: Tensor, v_BGKd: Tensor, *, causal: bool = True, scale: float | None = None
) -> Tensor:
    """Softmax of scaled products, times the values (Vaswani et al. 2017, equation 1), differentiable once.

    Args:
        q_BHSd: [B, H, S, d]; k_BGKd, v_BGKd: [B, G, K, d], G a divisor of H; float32, float16 or bfloat16, d ≤ 256.
            Any strides: what a tile cannot be loaded from is copied.
        causal: query s sees the keys up to s + K − S, so that the last query sees all.
        scale: of the products, positive; 1/√d if not given.

    Returns [B, H, S, d] in q's dtype, laid out [B, S, H, d] in memory so that merging the heads is a view; a query that
    sees no key gets zeros. Equal inputs give equal bits. Raises ValueError for what does not fit, and for what
    `refuses` names.

    >>> x = torch.tensor([[[[1.0], [3.0]]]])
    >>> attention(torch.zeros(1, 2, 2, 1), x, x)[0, 1].tolist()
    [[1.0], [2.0]]
    """
    _check(q_BHSd, k_BGKd, v_BGKd, scale)
    scale = q_BHSd.shape[-1] ** -0.5 if scale is None else float(scale)
    given = (q_BHSd, k_BGKd, v_BGKd)
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    call = _forward if watched() else _Eager.apply if recorded else _attend
    return call(*given, causal, scale)[0]


def _check(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> None:
    shapes = [tuple(tensor.shape) for tensor in (q, k, v)]
    if (
        any(len(shape) != 4 for shape in shapes) or shapes[1] != shapes[2] or shapes[0][0] != shapes[1][0]
        or shapes[0][3] != shapes[1][3] or 0 in (shapes[1][1], shapes[0][3]) or shapes[0][1] % shapes[1][1]
    ):  # fmt: skip
        raise ValueError(
            f"queries, keys and values have shapes {shapes}; expected [B, H, S, d] and twice [B, G, K, d], with G a "
            "divisor of H"
        )
    if len({(tensor.dtype, tensor.device) for tensor in (q, k, v)}) != 1:
        kinds = ", ".join(f"{tensor.dtype} on {tensor.device}" for tensor in (q, k, v))
        raise ValueError(f"queries, keys and values are {kinds}; give one dtype on one device")
    if scale is not None and not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale is {scale}; give a positive number")
    why_not = refuses(q.dtype, q.device.type, q.shape[-1])
    if why_not:
        raise ValueError(f"the attention kernel cannot compute this: {why_not}")


def _attend(q_BHSd: Tensor, k_BGKd: Tensor, v_BGKd: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    (B, H, S, d), (G, K) = q_BHSd.shape, k_BGKd.shape[1:3]
    out, lse = merged(q_BHSd), q_BHSd.new_empty(B, H, S, dtype=torch.float32)
    if not (out.numel() and K):
        return out.zero_(), lse.fill_(-math.inf)
    block = blocks(_HALF, _SINGLE, q_BHSd)
    keys, values = (descriptor(tensor, block.keys) for tensor in (k_BGKd, v_BGKd))
    _attention[(triton.cdiv(S, block.queries) * B * H,)](
        descriptor(q_BHSd, block.queries), keys, values, out, lse, S, K, H, d, scale * LOG2E, SHARED=H // G,
        CAUSAL=causal, EVEN=K % block.keys == 0, PRECISION=precision(q_BHSd), WIDTH=padded(d), **block.launch,
    )  # fmt: skip
    return out, lse


_forward = torch.library.custom_op("labkit::attention", _attend, mutates_args=())


@_forward.register_fake
def _(q_BHSd, k_BGKd, v_BGKd, causal, scale):
    return merged(q_BHSd), q_BHSd.new_empty(q_BHSd.shape[:-1], dtype=torch.float32)


def _differentiate(
    grad_BHSd: Tensor, q_BHSd: Tensor, k_BGKd: Tensor, v_BGKd: Tensor, out_BHSd: Tensor, lse_BHS: Tensor,
    causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return gradients(grad_BHSd, q_BHSd, k_BGKd, v_BGKd, out_BHSd, lse_BHS, causal=causal, scale=scale)


_backward = torch.library.custom_op("labkit::attention_backward", _differentiate, mutates_args=())


@_backward.register_fake
def _(grad_BHSd, q_BHSd, k_BGKd, v_BGKd, out_BHSd, lse_BHS, causal, scale):
    return merged(q_BHSd), merged(k_BGKd), merged(v_BGKd)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_BHSd: Tensor | None, _lse: None) -> tuple[Tensor | None, ...]:
    if grad_BHSd is None:
        return (None,) * 5
    call = _backward if watched() else _differentiate
    return *call(grad_BHSd, *ctx.saved_tensors, ctx.causal, ctx.scale), None, None


_forward.register_autograd(_gradients, setup_context=_keep)


class _Eager(torch.autograd.Function):
    forward, setup_context = staticmethod(_attend), staticmethod(_keep)
    backward = staticmethod(once_differentiable(_gradients))


@register_flop_formula(torch.ops.labkit.attention)
def _forward_flops(q_BHSd, k_BGKd, *_, **__) -> int:
    """Two products of [S, d] and [d, K] a head, as torch counts its own: what causality skips is counted too."""
    return 4 * math.prod(q_BHSd) * k_BGKd[2]


@register_flop_formula(torch.ops.labkit.attention_backward)
def _backward_flops(grad_BHSd, q_BHSd, k_BGKd, *_, **__) -> int:
    """Five products, as torch counts its own; the two kernels here compute seven."""
    return 10 * math.prod(q_BHSd) * k_BGKd[2]
