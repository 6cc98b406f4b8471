"""Answers to lab 10 as learners might write them: wrong ones with the mistake to be found, and right ones.

Most wrong ones differ in a place or two from a right answer written differently, and are made from it.
"""

import math

import torch
import torch.nn.functional as F
from edits import wrong
from torch.autograd.graph import saved_tensors_hooks

from labkit.kernels.language import tl, triton

# ------------------------------------------------------------------------------------------------------- saved_bytes


def place(x):
    return x.untyped_storage().data_ptr()


def kept_by(node):
    names = [name for name in dir(node) if name.startswith("_saved_")]
    return [x for name in names if isinstance(x := getattr(node, name), torch.Tensor)]


def saved(call, *inputs):
    """Holds all that is saved, and tells storages apart at the end."""
    given, found = {place(x) for x in inputs}, []
    with saved_tensors_hooks(lambda x: found.append(x) or x, lambda x: x):
        result = call(*inputs)
    kept = {place(x): x.untyped_storage().nbytes() for x in found if place(x) not in given}
    return sum(kept.values()) if result is not None else 0


SAVED = {
    "each_view": {"place(x): x.untyped_storage().nbytes() for x in found": "n: x.nbytes for n, x in enumerate(found)"},
    "inputs_counted": {" if place(x) not in given": ""},
    "same_object_only": {"place(x) not in given": "all(x is not y for y in inputs)"},
    "view_for_storage": {"x.untyped_storage().nbytes()": "x.nbytes"},
    "elements": {"x.untyped_storage().nbytes()": "x.untyped_storage().nbytes() // x.element_size()"},
    "nothing_recorded": {"with saved": "with torch.no_grad(), saved"},
    "the_result": {"sum(kept.values())": "result.nbytes"},
    "one_node": {"in found": "in kept_by(result.grad_fn)"},
    "result_left_out": {"sum(kept.values())": "sum(size for at, size in kept.items() if at != place(result))"},
    "result_counted": {"sum(kept": "sum({**kept, place(result): result.untyped_storage().nbytes()}"},
    "those_with_gradient_skipped": {"place(x) not in given": "not x.requires_grad"},
    "frozen_inputs_counted": {"for x in inputs": "for x in inputs if x.requires_grad"},
}

# --------------------------------------------------------------------------------------------------- checkpoint_peak


def peak(layers, input_bytes, layer_bytes, segment):
    if segment <= 0:
        raise ValueError(segment)
    sizes = [min(segment, layers - start) for start in range(0, layers, segment)]
    return max(n * input_bytes + size * layer_bytes for n, size in enumerate(sizes))


PEAK = {
    "all_inputs": {"n * input": "len(sizes) * input"},
    "last_segment_only": {"enumerate(sizes)": "[(len(sizes) - 1, sizes[-1])]"},
    "own_input_twice": {"n * input": "(n + 1) * input"},
    "no_inputs": {"n * input_bytes + ": ""},
    "accepts_no_layers": {"if segment <= 0:\n        raise ValueError(segment)": "segment = segment or 1"},
    "last_is_full": {"n * input": "(len(sizes) - 1 - n) * input"},
    "waits_by_layer": {"n * input": "n * segment * input"},
    "inputs_of_layers_twice": {"n * input": "(n + size) * input"},
    "one_layer_only": {"size * layer": "layer"},
    "sum": {"max(": "sum("},
}


def peak_step_by_step(layers, input_bytes, layer_bytes, segment):
    """Plays the backward pass."""
    if segment <= 0:
        raise ValueError("segment")
    segments = [list(range(layers))[start : start + segment] for start in range(0, layers, segment)]
    waiting, most = len(segments) * input_bytes, 0
    while segments:
        waiting -= input_bytes  # among what its layers keep
        most = max(most, waiting + len(segments.pop()) * layer_bytes)
    return most


# --------------------------------------------------------------------------------------------------- swiglu_backward


def swiglu(grad, gate, up):
    s = torch.sigmoid(gate)
    slope = s + gate * s * (1 - s)
    return gate * s * up, grad * up * slope, grad * gate * s


SWIGLU = {
    "slope_of_sigmoid": {"s + gate * s * (1 - s)": "s * (1 - s)"},
    "sigmoid_taken_as_constant": {"s + gate * s * (1 - s)": "s"},
    "up_forgotten": {"grad * up * slope": "grad * slope"},
    "swapped": {"grad * up * slope, grad * gate * s": "grad * gate * s, grad * up * slope"},
    "upstream_ignored": {"grad * ": ""},
    "hidden_last": {"return gate * s * up, ": "return ", "grad * gate * s": "grad * gate * s, gate * s * up"},
    "overflow": {"torch.sigmoid(gate)": "torch.exp(gate) / (torch.exp(gate) + 1)"},
    "silu_for_slope": {"up * slope": "up * gate * s"},
    "slope_for_silu": {"grad * gate * s": "grad * slope"},
    "wrong_sign": {"s + gate": "s - gate"},
    "hidden_times_grad": {"return gate": "return grad * gate"},
    "hidden_of_sigmoid": {"return gate * s": "return s"},
    "upstream_not_in_gate": {"grad * up": "up"},
    "upstream_not_in_up": {"grad * gate": "gate"},
}


def swiglu_by_autograd(grad, gate, up):
    with torch.enable_grad():
        gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
        hidden = F.silu(gate) * up
    return hidden.detach(), *torch.autograd.grad(hidden, (gate, up), grad)


# ------------------------------------------------------------------------------------------------------------ absorb


def lowered(scores, top):
    return torch.exp(scores - torch.where(top == -math.inf, torch.zeros_like(top), top).unsqueeze(-1))


def absorb(top, total, out, scores, values):
    new = torch.maximum(top, scores.max(-1).values)
    p, less = lowered(scores, new), lowered(top[:, None], new)
    total = total * less[:, 0] + p.sum(-1)
    out = out * less + p @ values
    return new, total, out


ABSORB = {
    "out_not_shrunk": {"out * less": "out"},
    "total_not_shrunk": {"total * less[:, 0]": "total"},
    "neither_shrunk": {"out * less": "out", "total * less[:, 0]": "total"},
    "new_shrunk_too": {
        "total * less[:, 0] + p.sum(-1)": "(total + p.sum(-1)) * less[:, 0]",
        "out * less + p @ values": "(out + p @ values) * less",
    },
    "nothing_minus_nothing": {
        "lowered(scores, new)": "(scores - new[:, None]).exp()",
        "lowered(top[:, None], new)": "(top - new)[:, None].exp()",
    },
    "already_divided": {"total, out\n": "total, out / total[:, None]\n"},
    "maximum_not_kept": {"return new": "return top"},
    "softmax_of_the_block": {"lowered(scores, new)": "scores.softmax(-1).nan_to_num()"},
    "large_for_infinite": {
        "new = torch.maximum(top": "scores = scores.clamp(min=-1e9)\n    new = torch.maximum(top.clamp(min=-1e9)",
    },
    "global_max": {"scores.max(-1).values": "scores.max()"},
    "returns_finite": {"return new": "return new.nan_to_num(neginf=0.0)"},
    "total_all": {"p.sum(-1)": "p.sum()"},
    "of_the_block": {"lowered(scores, new)": "lowered(scores, scores.max(-1).values)"},
    "of_the_old": {"lowered(scores, new)": "lowered(scores, top)"},
    "no_exponential": {"lowered(top[:, None], new)": "(top - new).nan_to_num(0.0, neginf=0.0)[:, None]"},
    "scores_for_powers": {"p @ values": "scores @ values"},
}


def absorb_key_by_key(top, total, out, scores, values):
    top, total, out = top.clone(), total.clone(), out.clone()
    for s in range(scores.shape[0]):
        for k in range(scores.shape[1]):
            score = scores[s, k]
            if score == -math.inf:
                continue
            if score > top[s]:
                total[s] *= torch.exp(top[s] - score)
                out[s] *= torch.exp(top[s] - score)
                top[s] = score
            total[s] += torch.exp(score - top[s])
            out[s] += torch.exp(score - top[s]) * values[k]
    return top, total, out


# ------------------------------------------------------------------------------------------------------ flash_kernel


@triton.jit
def flash(
    q_ptr, k_ptr, v_ptr, out_ptr, S, K, scale,
    CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Walks over all keys, causal or not."""
    d, row = tl.arange(0, D), tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    q = tl.load(q_ptr + row[:, None] * D + d[None, :], (row < S)[:, None], other=0.0)
    top = tl.full([BLOCK_S], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_S], tl.float32)
    out = tl.zeros([BLOCK_S, D], tl.float32)
    for first in range(0, K, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        k = tl.load(k_ptr + key[:, None] * D + d[None, :], (key < K)[:, None], other=0.0)
        v = tl.load(v_ptr + key[:, None] * D + d[None, :], (key < K)[:, None], other=0.0)
        seen = (key < K)[None, :] & ((key[None, :] <= row[:, None]) | (not CAUSAL))
        x = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        x = tl.where(seen, x, float("-inf"))
        new = tl.maximum(top, tl.max(x, 1))
        p, less = tl.exp(x - new[:, None]), tl.exp(top - new)
        total = total * less + tl.sum(p, 1)
        out = out * less[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = new
    tl.store(out_ptr + row[:, None] * D + d[None, :], out / total[:, None], (row < S)[:, None])


FLASH = {
    "out_not_shrunk": {"out * less[:, None]": "out"},
    "neither_shrunk": {"out * less[:, None]": "out", "total * less": "total"},
    "padding_counts": {"(key < K)[None, :] & ": ""},
    "not_causal": {" & ((key[None, :] <= row[:, None]) | (not CAUSAL))": ""},
    "maximum_forgotten": {"        top = new\n": ""},
    "reads_beyond": {", (key < K)[:, None], other=0.0": ""},
    "powers_stay_wide": {"p.to(v.dtype)": "p"},
    "no_maximum": {"tl.maximum(top, tl.max(x, 1))": "tl.zeros([BLOCK_S], tl.float32)"},
    "block_maximum": {"tl.maximum(top, tl.max(x, 1))": "tl.max(x, 1)"},
    "top_begins_at_zero": {'tl.full([BLOCK_S], float("-inf"), tl.float32)': "tl.zeros([BLOCK_S], tl.float32)"},
    "masked_after_the_maximum": {
        'tl.where(seen, x, float("-inf"))': "x",
        "tl.exp(x - new[:, None])": "tl.where(seen, tl.exp(x - new[:, None]), 0.0)",
    },
    "other_tile": {"range(0, K, BLOCK_K)": "range(0, K, BLOCK_S)"},
    "divided_by_scale": {"* scale": "/ scale"},
    "powers_of_two": {"tl.exp(": "tl.exp2("},
    "not_transposed": {"tl.trans(k)": "k"},
    "columns_shrunk": {"less[:, None]": "less"},
    "sums_of_columns": {"tl.sum(p, 1)": "tl.sum(p, 0)"},
    "first_tile_only": {"key = first + ": "key = "},
    "loop_to_S": {"range(0, K,": "range(0, S,"},
    "keys_by_S": {"(key < K)[None": "(key < S)[None"},
}


@triton.jit
def scored(q, k_ptr, key, K, scale, D: tl.constexpr):
    d = tl.arange(0, D)
    k = tl.load(k_ptr + key[:, None] * D + d[None, :], (key < K)[:, None], other=0.0)
    return tl.dot(q, tl.trans(k), input_precision="ieee") * scale


@triton.jit
def flash_in_two_passes(
    q_ptr, k_ptr, v_ptr, out_ptr, S, K, scale,
    CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The maximum first, over all keys, and then the sums: twice the products, no shrinking, powers of two."""
    d, row = tl.arange(0, D), tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    q = tl.load(q_ptr + row[:, None] * D + d[None, :], (row < S)[:, None], other=0.0)
    top = tl.full([BLOCK_S], -1e30, tl.float32)
    for first in range(0, K, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        seen = (key < K)[None, :] & ((key[None, :] <= row[:, None]) | (not CAUSAL))
        top = tl.maximum(top, tl.max(tl.where(seen, scored(q, k_ptr, key, K, scale, D), -1e30), 1))
    total = tl.zeros([BLOCK_S], tl.float32)
    out = tl.zeros([BLOCK_S, D], tl.float32)
    for first in range(0, K, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        seen = (key < K)[None, :] & ((key[None, :] <= row[:, None]) | (not CAUSAL))
        x = scored(q, k_ptr, key, K, scale, D)
        p = tl.where(seen, tl.exp2((x - top[:, None]) * 1.44269504), 0.0)
        v = tl.load(v_ptr + key[:, None] * D + d[None, :], (key < K)[:, None], other=0.0)
        total += tl.sum(p, 1)
        out += tl.dot(p.to(v.dtype), v, input_precision="ieee")
    tl.store(out_ptr + row[:, None] * D + d[None, :], out / total[:, None], (row < S)[:, None])


# -------------------------------------------------------------------------------------------------- stochastic_round


def rounded(x, noise):
    bits = x.view(torch.int32) + noise
    return (bits >> 16 << 16).view(torch.float32).bfloat16()


ROUNDED = {
    "to_nearest": {" + noise": "", "bits >> 16 << 16": "bits"},
    "cut_off": {"+ noise": "| noise"},
    "rounded_twice": {"bits >> 16 << 16": "bits"},
    "subtracted": {"+ noise": "- noise"},
    "added_to_the_number": {
        "x.view(torch.int32) + noise": "x + noise / 2**16",
        "(bits >> 16 << 16).view(torch.float32)": "bits",
    },
    "still_float32": {".bfloat16()": ""},
    "towards_plus": {"+ noise": "+ torch.sign(x).int() * noise"},
    "centered": {"+ noise": "+ noise - 2**15"},
    "bits_as_number": {"(bits >> 16 << 16).view(torch.float32)": "(bits >> 16)"},
}


def round_by_comparison(x, noise):
    """The lower half against the noise: up if it does not fit any more."""
    bits = x.view(torch.int32)
    low = bits & 0xFFFF
    up = (low + noise >= 65536).to(torch.int32)
    return ((bits >> 16) + up).to(torch.int16).view(torch.bfloat16)


COMPARED = {
    "strictly_more": {">= 65536": "> 65536"},
    "at_65535": {">= 65536": ">= 65535"},
    "other_end": {"low + noise >= 65536": "noise < low"},
}

NEAR_MISSES = {
    "10.saved_bytes": wrong(saved, SAVED),
    "10.checkpoint_peak": wrong(peak, PEAK),
    "10.swiglu_backward": wrong(swiglu, SWIGLU),
    "10.absorb": wrong(absorb, ABSORB),
    "10.flash_kernel": wrong(flash, FLASH),
    "10.stochastic_round": [*wrong(rounded, ROUNDED), *wrong(round_by_comparison, COMPARED)],
}

RIGHT_ANSWERS = {
    "10.saved_bytes": [saved],
    "10.checkpoint_peak": [peak, peak_step_by_step],
    "10.swiglu_backward": [swiglu, swiglu_by_autograd],
    "10.absorb": [absorb, absorb_key_by_key],
    "10.flash_kernel": [flash, flash_in_two_passes],
    "10.stochastic_round": [rounded, round_by_comparison],
}
