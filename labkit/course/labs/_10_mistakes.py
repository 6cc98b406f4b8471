"""Lab 10: mistakes as a learner makes them, in gradients, online softmax and rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.course.labs._10_answers import swiglu_backward

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


def swiglu_overflow(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    sigmoid = gate.exp() / (1 + gate.exp())
    return gate * sigmoid * up, grad * up * sigmoid * (1 + gate * (1 - sigmoid)), grad * gate * sigmoid


def swiglu_hidden_times_grad(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    hidden, grad_gate, grad_up = swiglu_backward(grad, gate, up)
    return grad * hidden, grad_gate, grad_up


def swiglu_hidden_of_sigmoid(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    _, grad_gate, grad_up = swiglu_backward(grad, gate, up)
    return gate.sigmoid() * up, grad_gate, grad_up


def swiglu_silu_for_slope(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    return _swiglu(grad, gate, up, gate * gate.sigmoid())


def swiglu_slope_for_silu(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    hidden, grad_gate, _ = swiglu_backward(grad, gate, up)
    return hidden, grad_gate, swiglu_backward(grad, gate, torch.ones_like(up))[1]


def swiglu_wrong_sign(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    return _swiglu(grad, gate, up, gate.sigmoid() * (1 - gate * (1 - gate.sigmoid())))


def swiglu_gate_upstream_forgotten(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    hidden, _, grad_up = swiglu_backward(grad, gate, up)
    return hidden, swiglu_backward(torch.ones_like(grad), gate, up)[1], grad_up


def swiglu_up_upstream_forgotten(grad: Tensor, gate: Tensor, up: Tensor) -> Three:
    hidden, grad_gate, _ = swiglu_backward(grad, gate, up)
    return hidden, grad_gate, swiglu_backward(torch.ones_like(grad), gate, up)[2]


# ------------------------------------------------------------------------------------------------------------ absorb


def _absorb(state: Three, scores: Tensor, values: Tensor, wrong: str) -> Three:
    top, total, out = state
    if wrong == "large_for_infinite":
        top, scores = top.clamp(min=-1e9), scores.clamp(min=-1e9)
    higher = torch.maximum(top, scores.amax(-1))
    if wrong == "block_maximum":
        higher = scores.amax(-1)
    if wrong == "no_maximum":
        higher = torch.zeros_like(top)
    if wrong == "global_max":
        higher = torch.maximum(top, scores.max())
    finite = higher if wrong == "nan" else _finite(higher)
    shrink = (top - finite).exp()
    if wrong == "upside_down":
        shrink = (finite - top).exp()
    if wrong == "no_exponential":
        shrink = torch.where(top.isinf(), 0.0, top - finite)
    subtracted = {"of_the_block": _finite(scores.amax(-1)), "of_the_old": _finite(top)}.get(wrong, finite)
    powers = (scores - subtracted[:, None]).exp()
    if wrong == "softmax":
        powers = scores.softmax(-1).nan_to_num(0.0)
    by_sum = 1.0 if wrong in ("total_kept", "neither_shrunk") else shrink
    by_out = 1.0 if wrong in ("out_kept", "neither_shrunk") else shrink[:, None]
    added = {"mean": values.mean(0), "scores": scores @ values}.get(wrong, powers @ values)
    if wrong == "divided":
        added = added / powers.sum(-1, keepdim=True)
    total = total * by_sum + (powers.sum() if wrong == "total_all" else powers.sum(-1))
    out = out * by_out + added
    if wrong == "new_shrunk_too":
        total, out = (state[1] + powers.sum(-1)) * shrink, (state[2] + added) * shrink[:, None]
    back = {"top_kept": top, "returns_finite": finite}.get(wrong, higher)
    return back, total, (out / total[:, None] if wrong == "finished" else out)


def _finite(top: Tensor) -> Tensor:
    return torch.where(top.isinf(), 0.0, top)


class Absorb:
    """`absorb` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, top: Tensor, total: Tensor, out: Tensor, scores: Tensor, values: Tensor) -> Three:
        return _absorb((top, total, out), scores, values, self.wrong)


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


def _round_up_where(x: Tensor, up: Tensor) -> Tensor:
    return (((x.view(torch.int32) >> 16) + up.to(torch.int32)) << 16).view(torch.float32).to(torch.bfloat16)


def round_strictly_more(x: Tensor, noise: Tensor) -> Tensor:
    return _round_up_where(x, (x.view(torch.int32) & 65535) + noise > 65536)


def round_at_65535(x: Tensor, noise: Tensor) -> Tensor:
    return _round_up_where(x, (x.view(torch.int32) & 65535) + noise >= 65535)


def round_other_end(x: Tensor, noise: Tensor) -> Tensor:
    return _round_up_where(x, noise < (x.view(torch.int32) & 65535))


def round_bits_as_number(x: Tensor, noise: Tensor) -> Tensor:
    return ((x.view(torch.int32) + noise) & -65536).to(torch.bfloat16)


def round_towards_plus(x: Tensor, noise: Tensor) -> Tensor:
    bits = x.view(torch.int32)
    return (torch.where(x < 0, bits - noise, bits + noise) & -65536).view(torch.float32).to(torch.bfloat16)


def round_centered(x: Tensor, noise: Tensor) -> Tensor:
    return ((x.view(torch.int32) + noise - 32768) & -65536).view(torch.float32).to(torch.bfloat16)
