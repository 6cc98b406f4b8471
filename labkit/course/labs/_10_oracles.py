"""Lab 10's oracles: torch's own graph, its autograd and its plain attention in float64, its rounding to nearest."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from labkit.course.attempt import Case
from labkit.kernels.guard import Instead, Out


def saved_bytes(call: Callable[..., Tensor], *inputs: Tensor) -> int:
    """What the nodes of torch's graph say themselves that they saved, without any hook."""
    given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    output = call(*inputs)
    kept, waiting, seen = {}, [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        names = [name for name in dir(node) if name.startswith("_saved_")]
        for tensor in tree_leaves([getattr(node, name) for name in names]):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                kept[storage.data_ptr()] = storage.nbytes()
    return sum(size for where, size in kept.items() if where not in given)


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's autograd through its own SiLU, in float64."""
    wide = [tensor.double().requires_grad_() for tensor in (gate, up)]
    hidden = torch.nn.functional.silu(wide[0]) * wide[1]
    found = torch.autograd.grad(hidden, wide, grad.double())
    return tuple(tensor.detach().float() for tensor in (hidden, *found))


def absorb(
    top_S: Tensor, total_S: Tensor, out_Sd: Tensor, scores_SK: Tensor, values_Kd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The old state as one more key, whose score is the logarithm of its sum and whose value its mean; float64."""
    old_S = top_S.double() + total_S.double().log()
    mean_Sd = torch.where(total_S[:, None] > 0, out_Sd / total_S[:, None], 0.0).double()
    all_SK = torch.cat([old_S[:, None], scores_SK.double()], dim=1)
    blind = all_SK.isneginf().all(dim=1)
    shares_SK = torch.where(blind[:, None], 0.0, all_SK.softmax(dim=1))
    mixed_Sd = shares_SK[:, :1] * mean_Sd + shares_SK[:, 1:] @ values_Kd.double()
    top = torch.maximum(top_S, scores_SK.max(dim=1).values)
    total = torch.where(blind, 0.0, (all_SK.logsumexp(dim=1) - top.double()).exp())
    return top, total.float(), (mixed_Sd * total[:, None]).float()


def _attention(
    q: Tensor, k: Tensor, v: Tensor, out: Out, S: int, K: int, scale: float, CAUSAL: bool, **_: int
) -> Tensor:
    """Torch's plain attention in float64."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wide = (tensor.double()[None, None] for tensor in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*wide, is_causal=CAUSAL, scale=scale)[0, 0].float()


flash = Instead(_attention)


def stochastic_round(x: Tensor, noise: Tensor) -> Tensor:
    """Torch's own conversion, which rounds to nearest."""
    return x.to(torch.bfloat16)


def to_nearest(case: Case) -> bool:
    """Whether nearest is what is asked for: a noise of one half, or nothing to round; infinities apart."""
    x, noise = case.args
    exact = torch.equal(x.to(torch.bfloat16).float(), x) and not (x.abs() == inf).any()
    return exact or bool((noise == 32768).all())
