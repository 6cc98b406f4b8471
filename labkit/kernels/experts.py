"""The experts of a layer as one operator: three kernels forward, four backward, and only the pre-activation saved.

Forward: gather + gate/up product + SwiGLU, down product, weighted sum of each token's rows. Backward, from the
gradient g of the output (after SonicMoE, Guo et al. 2025, with its fused step cut in two: docs/kernels.md says why):

    grad_hidden = g[token] · W_down          grad_x    = Σ over a token's rows of grad_pre · W_gate_up
    grad_pre, weighed, grad_scores           grad_W_gate_up = Σ grad_pre[row] ⊗ x[token]
        = one pass over what was saved       grad_W_down    = Σ g[token] ⊗ weighed[row]
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from labkit.kernels import reference
from labkit.kernels.combine import combine
from labkit.kernels.grouped_mm import gate_up, rows_times
from labkit.kernels.grouped_mm_backward import swiglu_backward, weight_gradient
from labkit.kernels.language import unsupported, watched
from labkit.kernels.permute import ExpertMap, expert_map, max_tiles
from labkit.kernels.tiles import tiles


def refuses(dtype: torch.dtype, device: str, D: int, F: int) -> str:
    """Why `experts` cannot compute experts of this kind; empty if it can."""
    why_not = unsupported(dtype, device)
    if why_not:
        return why_not
    for letter, width in (("D", D), ("F", F)):
        if width * dtype.itemsize % 16:
            return f"{letter} = {width} makes rows of {width * dtype.itemsize} bytes; it needs a multiple of 16"
    return ""


def experts(
    x_TD: Tensor, topk_ids_TK: Tensor, topk_scores_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Each token through its experts, on Triton kernels, differentiable once.

    Args:
        x_TD: [T, D], float32, float16 or bfloat16. topk_ids_TK: [T, K] int64 or int32; an id outside 0 … E − 1 is a
            dropped pair, which adds nothing. topk_scores_TK: [T, K], any floating point.
        gate_up_E2FD: [E, 2F, D], gate rows first; down_EDF: [E, D, F]; in x's dtype. What is not contiguous is copied.

    Returns [T, D] in x's dtype; equal inputs give equal bits. Raises ValueError for sizes that do not fit, and for what
    `refuses` names.
    """
    reference.check_experts(x_TD, topk_ids_TK, topk_scores_TK, gate_up_E2FD, down_EDF)
    why_not = refuses(x_TD.dtype, x_TD.device.type, *down_EDF.shape[1:])
    if why_not:
        raise ValueError(f"the Triton kernels cannot compute these experts: {why_not}")
    given = (x_TD, topk_scores_TK, gate_up_E2FD, down_EDF)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    call = _forward if watched() else _Eager.apply if save else _compute
    return call(x_TD, topk_ids_TK, topk_scores_TK, gate_up_E2FD, down_EDF, save)[0]


def _compute(
    x_TD: Tensor, topk_ids_TK: Tensor, topk_scores_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x_TD, scores_TK, gate_up_E2FD, down_EDF = _contiguous(x_TD, topk_scores_TK, gate_up_E2FD, down_EDF)
    tile, _ = _tiles(x_TD, topk_ids_TK, len(down_EDF))
    places = expert_map(topk_ids_TK, len(down_EDF), tile.block_m)
    if topk_ids_TK.numel() == 0:
        return x_TD.new_zeros(x_TD.shape), x_TD.new_empty(0), *places
    hidden, pre = gate_up(x_TD, gate_up_E2FD, places, tile, save=save)
    y = rows_times(hidden, down_EDF, places, tile, gather=False, transposed=True)
    return combine(y, places.place_TK, scores_TK), x_TD.new_empty(0) if pre is None else pre, *places


_forward = torch.library.custom_op("labkit::experts", _compute, mutates_args=())


@_forward.register_fake
def _(x_TD, topk_ids_TK, topk_scores_TK, gate_up_E2FD, down_EDF, save):
    (E, _, F), N = down_EDF.shape, topk_ids_TK.numel()
    tile, _ = _tiles(x_TD, topk_ids_TK, E)
    pre = x_TD.new_empty((N, 2 * F) if save and N else (0,))
    counts = functools.partial(topk_ids_TK.new_empty, dtype=torch.int32)
    shapes = ((N,), topk_ids_TK.shape, (E + 1,), (max_tiles(N, E, tile.block_m),), (E + 1,))
    return torch.empty_like(x_TD), pre, *(counts(shape) for shape in shapes)


def _differentiate(
    grad_TD: Tensor, x_TD: Tensor, topk_scores_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, pre_N2F: Tensor,
    pair_N: Tensor, place_TK: Tensor, offset_E1: Tensor, tile_expert: Tensor, first_tile_E1: Tensor,
    x_wanted: bool, weights_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    if place_TK.numel() == 0:
        return tuple(torch.zeros_like(tensor) for tensor in (x_TD, topk_scores_TK, gate_up_E2FD, down_EDF))
    grad_TD, x_TD, scores_TK, gate_up_E2FD, down_EDF = _contiguous(
        grad_TD, x_TD, topk_scores_TK, gate_up_E2FD, down_EDF
    )
    places = ExpertMap(pair_N, place_TK, offset_E1, tile_expert, first_tile_E1)
    tile, weights_tile = _tiles(x_TD, place_TK, len(down_EDF))
    grad_hidden = rows_times(grad_TD, down_EDF, places, tile, gather=True, transposed=False)
    grad_pre, weighed, grad_scores = swiglu_backward(grad_hidden, pre_N2F, scores_TK, places)
    grad_x, grad_gate_up, grad_down = (x_TD.new_empty(0) for _ in range(3))
    if x_wanted:
        rows = rows_times(grad_pre, gate_up_E2FD, places, tile, gather=False, transposed=False)
        grad_x = combine(rows, place_TK)
    if weights_wanted:
        grad_gate_up = weight_gradient(x_TD, grad_pre, places, weights_tile, transposed=True)
        grad_down = weight_gradient(grad_TD, weighed, places, weights_tile, transposed=False)
    return grad_x, grad_scores.to(topk_scores_TK.dtype), grad_gate_up, grad_down


_backward = torch.library.custom_op("labkit::experts_backward", _differentiate, mutates_args=())


@_backward.register_fake
def _(grad_TD, x_TD, topk_scores_TK, gate_up_E2FD, down_EDF, *rest):
    *_, x_wanted, weights_wanted = rest
    made = torch.empty_like if weights_wanted else (lambda tensor: tensor.new_empty(0))
    grad_x = torch.empty_like(x_TD) if x_wanted else x_TD.new_empty(0)
    return grad_x, torch.empty_like(topk_scores_TK), made(gate_up_E2FD), made(down_EDF)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_TD, _, topk_scores_TK, gate_up_E2FD, down_EDF, _ = inputs
    ctx.save_for_backward(x_TD, topk_scores_TK, gate_up_E2FD, down_EDF, *output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_TD: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_TD is None:
        return (None,) * 6
    x_wanted, _, _, gate_up_wanted, down_wanted, _ = ctx.needs_input_grad
    grad_x, grad_scores, grad_gate_up, grad_down = (_backward if watched() else _differentiate)(
        grad_TD, *ctx.saved_tensors, x_wanted, gate_up_wanted or down_wanted
    )
    none_unless = lambda wanted, gradient: gradient if wanted else None  # noqa: E731
    return (
        none_unless(x_wanted, grad_x), None, grad_scores,
        none_unless(gate_up_wanted, grad_gate_up), none_unless(down_wanted, grad_down), None,
    )  # fmt: skip


_forward.register_autograd(_gradients, setup_context=_keep)


class _Eager(torch.autograd.Function):
    forward, setup_context = staticmethod(_compute), staticmethod(_keep)
    backward = staticmethod(once_differentiable(_gradients))


@register_flop_formula(torch.ops.labkit.experts)
def _forward_flops(x_TD, topk_ids_TK, topk_scores_TK, gate_up_E2FD, down_EDF, *_, **__) -> int:
    """Multiplications and additions of the products, for torch's counter, which cannot look into a kernel."""
    return 6 * math.prod(topk_ids_TK) * math.prod(down_EDF[1:])


@register_flop_formula(torch.ops.labkit.experts_backward)
def _backward_flops(
    grad_TD, x_TD, topk_scores_TK, gate_up_E2FD, down_EDF, pre_N2F, pair_N, place_TK, *rest, **_
) -> int:
    *_, x_wanted, weights_wanted = rest
    return (2 + 4 * x_wanted + 6 * weights_wanted) * math.prod(place_TK) * math.prod(down_EDF[1:])


def _tiles(x_TD: Tensor, pairs: Tensor, num_experts: int) -> tuple:
    return tiles(x_TD.dtype, pairs.numel() / num_experts, x_TD.device)


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in tensors)
