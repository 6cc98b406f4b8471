"""Lab 10: right answers, as `reveal` shows them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from labkit.course.labs._language import tl, triton


def saved_bytes(call: Callable[..., Tensor], *inputs: Tensor) -> int:
    given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call(*inputs)
    del output
    return sum(kept.values())


def checkpoint_peak(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    if segment < 1:
        raise ValueError(f"a segment has {segment} layers; give 1 or more")
    peaks = [
        number * input_bytes + min(segment, layers - start) * layer_bytes
        for number, start in enumerate(range(0, layers, segment))
    ]
    return max(peaks)


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    slope = sigmoid * (1 + gate * (1 - sigmoid))
    return silu * up, grad * up * slope, grad * silu


def absorb(
    top_S: Tensor, total_S: Tensor, out_Sd: Tensor, scores_SK: Tensor, values_Kd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    higher_S = torch.maximum(top_S, scores_SK.amax(dim=-1))
    finite_S = torch.where(higher_S.isinf(), 0.0, higher_S)  # a row that has seen nothing yet: −∞ − −∞ is no number
    shrink_S = torch.exp(top_S - finite_S)
    powers_SK = torch.exp(scores_SK - finite_S[:, None])
    return higher_S, total_S * shrink_S + powers_SK.sum(-1), out_Sd * shrink_S[:, None] + powers_SK @ values_Kd


@triton.jit
def flash_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, S, K, scale,
    CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, D)
    row = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    q = tl.load(q_ptr + row[:, None] * D + column[None, :], mask=(row < S)[:, None], other=0.0)
    top = tl.full([BLOCK_S], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_S], tl.float32)
    out = tl.zeros([BLOCK_S, D], tl.float32)
    last = K
    if CAUSAL:
        last = tl.minimum(K, (tl.program_id(0) + 1) * BLOCK_S)
    for first in range(0, last, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        at, inside = key[:, None] * D + column[None, :], (key < K)[:, None]
        k = tl.load(k_ptr + at, mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        seen = (key < K)[None, :]
        if CAUSAL:
            seen = seen & (key[None, :] <= row[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        powers = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        v = tl.load(v_ptr + at, mask=inside, other=0.0)
        total = total * shrink + tl.sum(powers, axis=1)
        out = out * shrink[:, None] + tl.dot(powers.to(v.dtype), v, input_precision="ieee")
        top = higher
    tl.store(out_ptr + row[:, None] * D + column[None, :], out / total[:, None], mask=(row < S)[:, None])


def stochastic_round(x: Tensor, noise: Tensor) -> Tensor:
    bits = x.view(torch.int32) + noise
    return (bits & -65536).view(torch.float32).to(torch.bfloat16)


if hasattr(flash_kernel, "fn"):
    flash_kernel.__wrapped__ = flash_kernel.fn  # so that inspect finds its source and its signature
