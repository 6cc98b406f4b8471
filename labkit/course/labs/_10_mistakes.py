"""Lab 10: mistakes as a learner makes them. The kernel goes wrong in every way, and WRONG says in which."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from labkit.course.labs._10_answers import swiglu_backward
from labkit.course.labs._language import tl, triton

# ------------------------------------------------------------------------------------------------------- saved_bytes

Call = Callable[..., Tensor]


def _saved(call: Call, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    found: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(*inputs)
    return found


def _where(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def saved_views_twice(call: Call, *inputs: Tensor) -> int:
    given = {_where(tensor) for tensor in inputs}
    return sum(tensor.untyped_storage().nbytes() for tensor in _saved(call, inputs) if _where(tensor) not in given)


def saved_each_view(call: Call, *inputs: Tensor) -> int:
    given = {_where(tensor) for tensor in inputs}
    return sum(_bytes(tensor) for tensor in _saved(call, inputs) if _where(tensor) not in given)


def saved_last_view(call: Call, *inputs: Tensor) -> int:
    given = {_where(tensor) for tensor in inputs}
    return sum({_where(t): _bytes(t) for t in _saved(call, inputs) if _where(t) not in given}.values())


def saved_inputs_too(call: Call, *inputs: Tensor) -> int:
    return sum({_where(t): t.untyped_storage().nbytes() for t in _saved(call, inputs)}.values())


def saved_same_objects_only(call: Call, *inputs: Tensor) -> int:
    found = [t for t in _saved(call, inputs) if not any(t is tensor for tensor in inputs)]
    return sum({_where(t): t.untyped_storage().nbytes() for t in found}.values())


def saved_elements(call: Call, *inputs: Tensor) -> int:
    given = {_where(tensor) for tensor in inputs}
    found = {_where(t): t for t in _saved(call, inputs) if _where(t) not in given}
    return sum(t.untyped_storage().nbytes() // t.element_size() for t in found.values())


def saved_of_four(call: Call, *inputs: Tensor) -> int:
    return 4 * saved_elements(call, *inputs)


def saved_nothing(call: Call, *inputs: Tensor) -> int:
    with torch.no_grad():
        _saved(call, inputs)
    return 0


def saved_result(call: Call, *inputs: Tensor) -> int:
    return _bytes(call(*inputs))


# --------------------------------------------------------------------------------------------------- checkpoint_peak


def peak_own_input_too(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    starts = enumerate(range(0, layers, segment))
    return max((n + 1) * input_bytes + min(segment, layers - start) * layer_bytes for n, start in starts)


def peak_all_inputs(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    return -(-layers // segment) * input_bytes + min(segment, layers) * layer_bytes


def peak_last_only(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    last = (layers - 1) // segment
    return last * input_bytes + (layers - last * segment) * layer_bytes


def peak_last_is_full(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    return (layers - 1) // segment * input_bytes + min(segment, layers) * layer_bytes


def peak_inputs_only(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    return -(-layers // segment) * input_bytes


def peak_everything(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    return layers * layer_bytes


def peak_first_segment(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    return min(segment, layers) * layer_bytes


def peak_longer_than_the_model(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    _refuse(segment)
    starts = enumerate(range(0, layers, segment))
    whole = max(n * input_bytes + min(segment, layers - start) * layer_bytes for n, start in starts)
    return segment * layer_bytes if segment > layers else whole


def peak_accepts(layers: int, input_bytes: int, layer_bytes: int, segment: int) -> int:
    segment = max(1, segment)
    starts = enumerate(range(0, layers, segment))
    return max(n * input_bytes + min(segment, layers - start) * layer_bytes for n, start in starts)


def _refuse(segment: int) -> None:
    if segment < 1:
        raise ValueError("a segment without layers")


# --------------------------------------------------------------------------------------------------- swiglu_backward

Three = tuple[Tensor, Tensor, Tensor]


def _swiglu(grad: Tensor, gate: Tensor, up: Tensor, slope: Tensor) -> Three:
    silu = gate * gate.sigmoid()
    return silu * up, grad * up * slope, grad * silu


def swiglu_slope_of_sigmoid(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    return _swiglu(grad, gate, up, gate.sigmoid() * (1 - gate.sigmoid()))


def swiglu_constant_sigmoid(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    return _swiglu(grad, gate, up, gate.sigmoid())


def swiglu_second_half_missing(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    return _swiglu(grad, gate, up, gate * gate.sigmoid() * (1 - gate.sigmoid()))


def swiglu_slope_plus_one(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    return _swiglu(grad, gate, up, gate.sigmoid() * (1 + gate * (1 + gate.sigmoid())))


def swiglu_gradients_swapped(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    hidden, grad_gate, grad_up = swiglu_backward(grad, gate, up)
    return hidden, grad_up, grad_gate


def swiglu_up_forgotten(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    hidden, _, grad_up = swiglu_backward(grad, gate, up)
    return hidden, swiglu_backward(grad, gate, torch.ones_like(up))[1], grad_up


def swiglu_upstream_forgotten(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    return swiglu_backward(torch.ones_like(grad), gate, up)


def swiglu_gate_for_silu(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    hidden, grad_gate, _ = swiglu_backward(grad, gate, up)
    return hidden, grad_gate, grad * gate


def swiglu_sigmoid_for_silu(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    hidden, grad_gate, _ = swiglu_backward(grad, gate, up)
    return hidden, grad_gate, grad * gate.sigmoid()


def swiglu_silu_of_up(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    hidden, grad_up, grad_gate = swiglu_backward(grad, up, gate)
    return hidden, grad_gate, grad_up


def swiglu_hidden_last(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    hidden, grad_gate, grad_up = swiglu_backward(grad, gate, up)
    return grad_gate, grad_up, hidden


# ------------------------------------------------------------------------------------------------------------ absorb


def _absorb(state: Three, scores: Tensor, values: Tensor, **wrong: bool) -> Three:
    top, total, out = state
    higher = torch.maximum(top, scores.amax(-1))
    if wrong.get("block_maximum"):
        higher = scores.amax(-1)
    if wrong.get("no_maximum"):
        higher = torch.zeros_like(top)
    finite = higher if wrong.get("nan") else torch.where(higher.isinf(), 0.0, higher)
    shrink = (top - finite).exp()
    if wrong.get("upside_down"):
        shrink = (finite - top).exp()
    powers = (scores - finite[:, None]).exp()
    by_sum, by_out = shrink, shrink[:, None]
    if wrong.get("total_kept"):
        by_sum = 1.0
    if wrong.get("out_kept"):
        by_out = 1.0
    added = powers @ values
    if wrong.get("divided"):
        added = added / powers.sum(-1, keepdim=True)
    mean = values.mean(0) if wrong.get("mean") else added
    total = total * by_sum + powers.sum(-1)
    out = out * by_out + mean
    return (top if wrong.get("top_kept") else higher), total, (out / total[:, None] if wrong.get("finished") else out)


class Absorb:
    """`absorb` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, top: Tensor, total: Tensor, out: Tensor, scores: Tensor, values: Tensor) -> Three:
        return _absorb((top, total, out), scores, values, **{self.wrong: True})


# -------------------------------------------------------------------------------------------------- stochastic_round


def round_to_nearest(x: Tensor, noise: Tensor) -> Tensor:
    return x.to(torch.bfloat16)


def round_cut_off(x: Tensor, noise: Tensor) -> Tensor:
    return (x.view(torch.int32) & -65536).view(torch.float32).to(torch.bfloat16)


def round_twice(x: Tensor, noise: Tensor) -> Tensor:
    return (x.view(torch.int32) + noise).view(torch.float32).to(torch.bfloat16)


def round_subtracts(x: Tensor, noise: Tensor) -> Tensor:
    return ((x.view(torch.int32) - noise) & -65536).view(torch.float32).to(torch.bfloat16)


def round_adds_numbers(x: Tensor, noise: Tensor) -> Tensor:
    return (x + noise / 65536).to(torch.bfloat16)


def round_relative(x: Tensor, noise: Tensor) -> Tensor:
    return (x * (1 + (noise / 65536 - 0.5) / 128)).to(torch.bfloat16)


def round_after_cut(x: Tensor, noise: Tensor) -> Tensor:
    return ((x.view(torch.int32) & -65536) + noise).view(torch.float32).to(torch.bfloat16)


def round_half_the_noise(x: Tensor, noise: Tensor) -> Tensor:
    return ((x.view(torch.int32) + noise // 2) & -65536).view(torch.float32).to(torch.bfloat16)


def round_stays_wide(x: Tensor, noise: Tensor) -> Tensor:
    return ((x.view(torch.int32) + noise) & -65536).view(torch.float32)


def round_of_integers(x: Tensor, noise: Tensor) -> Tensor:
    return ((x.to(torch.int32) + noise) & -65536).to(torch.bfloat16)


# ------------------------------------------------------------------------------------------------------ flash_kernel


@triton.jit
def flash(
    q_ptr, k_ptr, v_ptr, out_ptr, S, K, scale,
    CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, WRONG: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, D)
    program = tl.program_id(0)
    if WRONG == "always_the_first_tile":
        program = 0
    row = program * BLOCK_S + tl.arange(0, BLOCK_S)
    q = tl.load(q_ptr + row[:, None] * D + column[None, :], mask=(row < S)[:, None], other=0.0)
    top = tl.full([BLOCK_S], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_S], tl.float32)
    out = tl.zeros([BLOCK_S, D], tl.float32)
    last = K
    if CAUSAL:
        last = tl.minimum(K, (program + 1) * BLOCK_S)
    if WRONG == "whole_tiles_only":
        last = tl.maximum(K // BLOCK_K, 1) * BLOCK_K
    for first in range(0, last, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        at, inside = key[:, None] * D + column[None, :], (key < K)[:, None]
        k = tl.load(k_ptr + at, mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if WRONG != "not_scaled":
            scores *= scale
        seen = (key < K)[None, :]
        if WRONG == "padding_counts":
            seen = (key > -1)[None, :]
        if CAUSAL and WRONG != "not_causal":
            if WRONG == "not_itself":
                seen = seen & ((key[None, :] < row[:, None]) | (key[None, :] == 0))
            elif WRONG == "rows_of_the_tile":
                seen = seen & (key[None, :] <= tl.arange(0, BLOCK_S)[:, None])
            elif WRONG == "the_future":
                seen = seen & ((key[None, :] >= row[:, None]) | (key[None, :] == 0))
            else:
                seen = seen & (key[None, :] <= row[:, None])
        scores = tl.where(seen, scores, 0.0 if WRONG == "masked_with_zero" else float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        powers = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        v = tl.load(v_ptr + at, mask=inside, other=0.0)
        total = (total if WRONG == "total_not_shrunk" else total * shrink) + tl.sum(powers, axis=1)
        kept = out if WRONG == "out_not_shrunk" else out * shrink[:, None]
        if WRONG == "divided_in_every_tile":
            powers = powers / tl.sum(powers, axis=1)[:, None]
        if WRONG != "powers_stay_wide":
            powers = powers.to(v.dtype)
        out = kept + tl.dot(powers, v, input_precision="ieee")
        if WRONG != "maximum_forgotten":
            top = higher
    if WRONG != "not_divided" and WRONG != "divided_in_every_tile":
        out = out / total[:, None]
    tl.store(out_ptr + row[:, None] * D + column[None, :], out, mask=(row < S)[:, None])
