"""Answers to lab 10 as learners might write them: wrong ones with the mistake to be found, and right ones."""

import math

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from labkit.kernels.language import tl, triton

# ------------------------------------------------------------------------------------------------------- saved_bytes


def saved_sum_of_tensors(call, *inputs):
    mine, total = [x.untyped_storage().data_ptr() for x in inputs], [0]

    def pack(x):
        if x.untyped_storage().data_ptr() not in mine:
            total[0] += x.nbytes
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        call(*inputs)
    return total[0]


def saved_with_the_inputs(call, *inputs):
    sizes = {}

    def pack(x):
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        call(*inputs)
    return sum(sizes.values())


def saved_by_identity(call, *inputs):
    mine, sizes = {id(x) for x in inputs}, {}

    def pack(x):
        if id(x) not in mine:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        call(*inputs)
    return sum(sizes.values())


def saved_size_of_view(call, *inputs):
    mine, kept = {x.untyped_storage().data_ptr() for x in inputs}, {}

    def pack(x):
        address = x.untyped_storage().data_ptr()
        if address not in mine:
            kept[address] = x.numel() * x.element_size()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        call(*inputs)
    return sum(kept.values())


def saved_numbers(call, *inputs):
    mine, kept = {x.untyped_storage().data_ptr() for x in inputs}, {}

    def pack(x):
        address = x.untyped_storage().data_ptr()
        if address not in mine:
            kept[address] = len(x.untyped_storage()) // x.element_size()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        call(*inputs)
    return sum(kept.values())


def saved_without_a_graph(call, *inputs):
    kept = []
    with torch.no_grad(), saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        call(*inputs)
    return sum(x.nbytes for x in kept)


def saved_output_only(call, *inputs):
    return call(*inputs).nbytes


def saved_in_a_list(call, *inputs):
    """Holds the storages themselves and compares by address at the end."""
    storages = []
    with saved_tensors_hooks(lambda x: storages.append(x.untyped_storage()) or x, lambda x: x):
        result = call(*inputs)
    found = {s.data_ptr(): s.nbytes() for s in storages}
    for x in inputs:
        found.pop(x.untyped_storage().data_ptr(), None)
    return sum(found.values()) if result is not None else 0


# --------------------------------------------------------------------------------------------------- checkpoint_peak


def peak_every_input(layers, input_bytes, layer_bytes, segment):
    if segment <= 0:
        raise ValueError(segment)
    return math.ceil(layers / segment) * input_bytes + min(layers, segment) * layer_bytes


def peak_of_the_last(layers, input_bytes, layer_bytes, segment):
    if segment <= 0:
        raise ValueError(segment)
    before = math.ceil(layers / segment) - 1
    return before * input_bytes + (layers - before * segment) * layer_bytes


def peak_with_its_own(layers, input_bytes, layer_bytes, segment):
    if segment <= 0:
        raise ValueError(segment)
    most = 0
    for start in range(0, layers, segment):
        size = min(start + segment, layers) - start
        most = max(most, (start // segment + 1) * input_bytes + size * layer_bytes)
    return most


def peak_waiting_inputs_free(layers, input_bytes, layer_bytes, segment):
    if segment <= 0:
        raise ValueError(segment)
    return layer_bytes * min(layers, segment)


def peak_without_a_word(layers, input_bytes, layer_bytes, segment):
    segment = segment or 1
    best = 0
    for start in range(0, layers, segment):
        best = max(best, start // segment * input_bytes + (min(start + segment, layers) - start) * layer_bytes)
    return best


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


def swiglu_sigmoid_slope(grad, gate, up):
    s = gate.sigmoid()
    return F.silu(gate) * up, grad * up * s * (1 - s), grad * F.silu(gate)


def swiglu_frozen_sigmoid(grad, gate, up):
    return F.silu(gate) * up, grad * up * torch.sigmoid(gate), grad * F.silu(gate)


def swiglu_without_up(grad, gate, up):
    s = 1 / (1 + torch.exp(-gate))
    return gate * s * up, grad * (s + gate * s * (1 - s)), grad * gate * s


def swiglu_mixed_up(grad, gate, up):
    s = torch.sigmoid(gate)
    return gate * s * up, grad * gate * s, grad * up * (s + gate * s * (1 - s))


def swiglu_of_ones(grad, gate, up):
    s = torch.sigmoid(gate)
    return gate * s * up, up * (s + gate * s * (1 - s)), gate * s


def swiglu_order(grad, gate, up):
    s = torch.sigmoid(gate)
    return grad * up * (s + gate * s * (1 - s)), grad * gate * s, gate * s * up


def swiglu_by_autograd(grad, gate, up):
    with torch.enable_grad():
        gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
        hidden = F.silu(gate) * up
    return hidden.detach(), *torch.autograd.grad(hidden, (gate, up), grad)


# ------------------------------------------------------------------------------------------------------------ absorb


def _lowered(scores, top):
    return torch.exp(scores - torch.where(top == -math.inf, torch.zeros_like(top), top).unsqueeze(-1))


def absorb_values_stay(top, total, out, scores, values):
    new = torch.maximum(top, scores.max(-1).values)
    p, factor = _lowered(scores, new), _lowered(top[:, None], new)[:, 0]
    return new, total * factor + p.sum(-1), out + p @ values


def absorb_sum_stays(top, total, out, scores, values):
    new = torch.maximum(top, scores.max(-1).values)
    p, factor = _lowered(scores, new), _lowered(top[:, None], new)
    return new, total + p.sum(-1), out * factor + p @ values


def absorb_nan(top, total, out, scores, values):
    new = torch.maximum(top, scores.max(-1).values)
    p, factor = torch.exp(scores - new[:, None]), torch.exp(top - new)
    return new, total * factor + p.sum(-1), out * factor[:, None] + p @ values


def absorb_averages(top, total, out, scores, values):
    new = torch.maximum(top, scores.max(-1).values)
    p, factor = _lowered(scores, new), _lowered(top[:, None], new)
    total = total * factor[:, 0] + p.sum(-1)
    return new, total, (out * factor + p @ values) / total[:, None]


def absorb_plain_exponentials(top, total, out, scores, values):
    p = scores.exp()
    return (
        torch.maximum(top, scores.max(-1).values),
        total * top.exp() + p.sum(-1),
        out * top.exp()[:, None] + p @ values,
    )


def absorb_old_maximum_back(top, total, out, scores, values):
    new = torch.maximum(top, scores.max(-1).values)
    p, factor = _lowered(scores, new), _lowered(top[:, None], new)
    return top, total * factor[:, 0] + p.sum(-1), out * factor + p @ values


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
def _scores(q, k_ptr, key, K, scale, D: tl.constexpr):
    d = tl.arange(0, D)
    k = tl.load(k_ptr + key[:, None] * D + d[None, :], (key < K)[:, None], other=0.0)
    return tl.dot(q, tl.trans(k), input_precision="ieee") * scale


@triton.jit
def flash_values_stay(
    q_ptr, k_ptr, v_ptr, out_ptr, S, K, scale,
    CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    d, row = tl.arange(0, D), tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    q = tl.load(q_ptr + row[:, None] * D + d[None, :], (row < S)[:, None], other=0.0)
    top = tl.full([BLOCK_S], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_S], tl.float32)
    out = tl.zeros([BLOCK_S, D], tl.float32)
    for first in range(0, K, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        seen = (key < K)[None, :] & ((key[None, :] <= row[:, None]) | (not CAUSAL))
        x = tl.where(seen, _scores(q, k_ptr, key, K, scale, D), float("-inf"))
        new = tl.maximum(top, tl.max(x, 1))
        p = tl.exp(x - new[:, None])
        total = total * tl.exp(top - new) + tl.sum(p, 1)
        v = tl.load(v_ptr + key[:, None] * D + d[None, :], (key < K)[:, None], other=0.0)
        out += tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = new
    tl.store(out_ptr + row[:, None] * D + d[None, :], out / total[:, None], (row < S)[:, None])


@triton.jit
def flash_zeros_take_part(
    q_ptr, k_ptr, v_ptr, out_ptr, S, K, scale,
    CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    d, row = tl.arange(0, D), tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    q = tl.load(q_ptr + row[:, None] * D + d[None, :], (row < S)[:, None], other=0.0)
    top = tl.full([BLOCK_S], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_S], tl.float32)
    out = tl.zeros([BLOCK_S, D], tl.float32)
    for first in range(0, K, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        x = _scores(q, k_ptr, key, K, scale, D)
        if CAUSAL:
            x = tl.where(key[None, :] <= row[:, None], x, float("-inf"))
        new = tl.maximum(top, tl.max(x, 1))
        p, less = tl.exp(x - new[:, None]), tl.exp(top - new)
        v = tl.load(v_ptr + key[:, None] * D + d[None, :], (key < K)[:, None], other=0.0)
        total = total * less + tl.sum(p, 1)
        out = out * less[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = new
    tl.store(out_ptr + row[:, None] * D + d[None, :], out / total[:, None], (row < S)[:, None])


@triton.jit
def flash_sees_everything(
    q_ptr, k_ptr, v_ptr, out_ptr, S, K, scale,
    CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    d, row = tl.arange(0, D), tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    q = tl.load(q_ptr + row[:, None] * D + d[None, :], (row < S)[:, None], other=0.0)
    top = tl.full([BLOCK_S], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_S], tl.float32)
    out = tl.zeros([BLOCK_S, D], tl.float32)
    last = tl.minimum(K, (tl.program_id(0) + 1) * BLOCK_S) if CAUSAL else K
    for first in range(0, last, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        x = tl.where((key < K)[None, :], _scores(q, k_ptr, key, K, scale, D), float("-inf"))
        new = tl.maximum(top, tl.max(x, 1))
        p, less = tl.exp(x - new[:, None]), tl.exp(top - new)
        v = tl.load(v_ptr + key[:, None] * D + d[None, :], (key < K)[:, None], other=0.0)
        total = total * less + tl.sum(p, 1)
        out = out * less[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = new
    tl.store(out_ptr + row[:, None] * D + d[None, :], out / total[:, None], (row < S)[:, None])


@triton.jit
def flash_one_tile_of_keys(
    q_ptr, k_ptr, v_ptr, out_ptr, S, K, scale,
    CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The softmax of each tile, one after the other: the last one stays."""
    d, row = tl.arange(0, D), tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    q = tl.load(q_ptr + row[:, None] * D + d[None, :], (row < S)[:, None], other=0.0)
    out = tl.zeros([BLOCK_S, D], tl.float32)
    total = tl.zeros([BLOCK_S], tl.float32)
    for first in range(0, tl.minimum(K, (tl.program_id(0) + 1) * BLOCK_S) if CAUSAL else K, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        seen = (key < K)[None, :]
        if CAUSAL:
            seen = seen & (key[None, :] <= row[:, None])
        x = tl.where(seen, _scores(q, k_ptr, key, K, scale, D), float("-inf"))
        p = tl.exp(x - tl.max(x, 1)[:, None])
        v = tl.load(v_ptr + key[:, None] * D + d[None, :], (key < K)[:, None], other=0.0)
        total = tl.sum(p, 1)
        out = tl.dot(p.to(v.dtype), v, input_precision="ieee")
    tl.store(out_ptr + row[:, None] * D + d[None, :], out / total[:, None], (row < S)[:, None])


@triton.jit
def flash_loads_without_masks(
    q_ptr, k_ptr, v_ptr, out_ptr, S, K, scale,
    CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    d, row = tl.arange(0, D), tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    q = tl.load(q_ptr + row[:, None] * D + d[None, :], (row < S)[:, None], other=0.0)
    top = tl.full([BLOCK_S], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_S], tl.float32)
    out = tl.zeros([BLOCK_S, D], tl.float32)
    for first in range(0, K, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        k = tl.load(k_ptr + key[:, None] * D + d[None, :])
        v = tl.load(v_ptr + key[:, None] * D + d[None, :])
        seen = (key < K)[None, :] & ((key[None, :] <= row[:, None]) | (not CAUSAL))
        x = tl.where(seen, tl.dot(q, tl.trans(k), input_precision="ieee") * scale, float("-inf"))
        new = tl.maximum(top, tl.max(x, 1))
        p, less = tl.exp(x - new[:, None]), tl.exp(top - new)
        total = total * less + tl.sum(p, 1)
        out = out * less[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = new
    tl.store(out_ptr + row[:, None] * D + d[None, :], out / total[:, None], (row < S)[:, None])


@triton.jit
def flash_for_float32_only(
    q_ptr, k_ptr, v_ptr, out_ptr, S, K, scale,
    CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    d, row = tl.arange(0, D), tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    q = tl.load(q_ptr + row[:, None] * D + d[None, :], (row < S)[:, None], other=0.0)
    top = tl.full([BLOCK_S], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_S], tl.float32)
    out = tl.zeros([BLOCK_S, D], tl.float32)
    for first in range(0, K, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        seen = (key < K)[None, :] & ((key[None, :] <= row[:, None]) | (not CAUSAL))
        x = tl.where(seen, _scores(q, k_ptr, key, K, scale, D), float("-inf"))
        new = tl.maximum(top, tl.max(x, 1))
        p, less = tl.exp(x - new[:, None]), tl.exp(top - new)
        v = tl.load(v_ptr + key[:, None] * D + d[None, :], (key < K)[:, None], other=0.0)
        total = total * less + tl.sum(p, 1)
        out = out * less[:, None] + tl.dot(p, v, input_precision="ieee")
        top = new
    tl.store(out_ptr + row[:, None] * D + d[None, :], out / total[:, None], (row < S)[:, None])


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
        top = tl.maximum(top, tl.max(tl.where(seen, _scores(q, k_ptr, key, K, scale, D), -1e30), 1))
    total = tl.zeros([BLOCK_S], tl.float32)
    out = tl.zeros([BLOCK_S, D], tl.float32)
    for first in range(0, K, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        seen = (key < K)[None, :] & ((key[None, :] <= row[:, None]) | (not CAUSAL))
        x = _scores(q, k_ptr, key, K, scale, D)
        p = tl.where(seen, tl.exp2((x - top[:, None]) * 1.44269504), 0.0)
        v = tl.load(v_ptr + key[:, None] * D + d[None, :], (key < K)[:, None], other=0.0)
        total += tl.sum(p, 1)
        out += tl.dot(p.to(v.dtype), v, input_precision="ieee")
    tl.store(out_ptr + row[:, None] * D + d[None, :], out / total[:, None], (row < S)[:, None])


# -------------------------------------------------------------------------------------------------- stochastic_round


def round_ignores_noise(x, noise):
    return x.bfloat16()


def round_truncates(x, noise):
    bits = x.view(torch.int32)
    return (bits - (bits & 0xFFFF)).view(torch.float32).bfloat16()


def round_then_nearest(x, noise):
    return torch.add(x.view(torch.int32), noise).view(torch.float32).bfloat16()


def round_downwards(x, noise):
    return ((x.view(torch.int32) - noise) >> 16 << 16).view(torch.float32).bfloat16()


def round_noise_as_number(x, noise):
    return (x + noise.float() / 2**16).bfloat16()


def round_left_in_float32(x, noise):
    return ((x.view(torch.int32) + noise) >> 16 << 16).view(torch.float32)


def round_by_comparison(x, noise):
    """The lower half against the noise: up if it does not fit any more."""
    bits = x.view(torch.int32)
    low = bits & 0xFFFF
    up = (low + noise >= 65536).to(torch.int32)
    return ((bits >> 16) + up).to(torch.int16).view(torch.bfloat16)


NEAR_MISSES = {
    "10.saved_bytes": [
        (saved_sum_of_tensors, "each_view"),
        (saved_with_the_inputs, "inputs_counted"),
        (saved_by_identity, "same_object_only"),
        (saved_size_of_view, "view_for_storage"),
        (saved_numbers, "elements"),
        (saved_without_a_graph, "nothing_recorded"),
        (saved_output_only, "the_result"),
    ],
    "10.checkpoint_peak": [
        (peak_every_input, "all_inputs"),
        (peak_of_the_last, "last_segment_only"),
        (peak_with_its_own, "own_input_twice"),
        (peak_waiting_inputs_free, "no_inputs"),
        (peak_without_a_word, "accepts_no_layers"),
    ],
    "10.swiglu_backward": [
        (swiglu_sigmoid_slope, "slope_of_sigmoid"),
        (swiglu_frozen_sigmoid, "sigmoid_taken_as_constant"),
        (swiglu_without_up, "up_forgotten"),
        (swiglu_mixed_up, "swapped"),
        (swiglu_of_ones, "upstream_ignored"),
        (swiglu_order, "hidden_last"),
    ],
    "10.absorb": [
        (absorb_values_stay, "out_not_shrunk"),
        (absorb_sum_stays, "total_not_shrunk"),
        (absorb_nan, "nothing_minus_nothing"),
        (absorb_averages, "already_divided"),
        (absorb_old_maximum_back, "maximum_not_kept"),
    ],
    "10.flash_kernel": [
        (flash_values_stay, "out_not_shrunk"),
        (flash_zeros_take_part, "padding_counts"),
        (flash_sees_everything, "not_causal"),
        (flash_one_tile_of_keys, "maximum_forgotten"),
        (flash_loads_without_masks, "reads_beyond"),
        (flash_for_float32_only, "powers_stay_wide"),
    ],
    "10.stochastic_round": [
        (round_ignores_noise, "to_nearest"),
        (round_truncates, "cut_off"),
        (round_then_nearest, "rounded_twice"),
        (round_downwards, "subtracted"),
        (round_noise_as_number, "added_to_the_number"),
        (round_left_in_float32, "still_float32"),
    ],
}

RIGHT_ANSWERS = {
    "10.saved_bytes": [saved_in_a_list],
    "10.checkpoint_peak": [peak_step_by_step],
    "10.swiglu_backward": [swiglu_by_autograd],
    "10.absorb": [absorb_key_by_key],
    "10.flash_kernel": [flash_in_two_passes],
    "10.stochastic_round": [round_by_comparison],
}
