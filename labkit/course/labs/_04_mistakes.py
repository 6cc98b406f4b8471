"""Lab 04: mistakes in the layer, split, shared and grouped experts, as a learner's function makes them."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.course.labs import _04_cases as right
from labkit.kernels import reference

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]

# ----------------------------------------------------------------------------------------------------- split_experts


def _sizes(down_EDF: Tensor, m: int) -> tuple[int, int, int]:
    E, D, F = down_EDF.shape
    if F % m:
        raise ValueError(f"m is {m}")
    return E, D, F


def split_gate_up_in_one(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> Triple:
    E, D, F = _sizes(down_EDF, m)
    router, _, down = right.split_experts(router_ED, gate_up_E2FD, down_EDF, m)
    return router, gate_up_E2FD.reshape(E * m, 2 * F // m, D), down


def split_down_reshaped(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> Triple:
    E, D, F = _sizes(down_EDF, m)
    router, gate_up, _ = right.split_experts(router_ED, gate_up_E2FD, down_EDF, m)
    return router, gate_up, m * down_EDF.reshape(E * m, D, F // m)


def split_both_reshaped(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> Triple:
    _, gate_up, _ = split_gate_up_in_one(router_ED, gate_up_E2FD, down_EDF, m)
    router, _, down = split_down_reshaped(router_ED, gate_up_E2FD, down_EDF, m)
    return router, gate_up, down


def split_unscaled(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> Triple:
    router, gate_up, down = right.split_experts(router_ED, gate_up_E2FD, down_EDF, m)
    return router, gate_up, down / m


def split_scaled_down(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> Triple:
    router, gate_up, down = right.split_experts(router_ED, gate_up_E2FD, down_EDF, m)
    return router, gate_up, down / m**2


def split_scaled_gate(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> Triple:
    router, gate_up, down = right.split_experts(router_ED, gate_up_E2FD, down_EDF, m)
    return router, gate_up * m, down / m


def split_router_tiled(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> Triple:
    _, gate_up, down = right.split_experts(router_ED, gate_up_E2FD, down_EDF, m)
    return router_ED.repeat(m, 1), gate_up, down


def split_router_kept(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> Triple:
    return router_ED.clone(), *right.split_experts(router_ED, gate_up_E2FD, down_EDF, m)[1:]


def split_router_scaled(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> Triple:
    router, gate_up, down = right.split_experts(router_ED, gate_up_E2FD, down_EDF, m)
    return router / m, gate_up, down


def split_part_major(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> Triple:
    E = _sizes(down_EDF, m)[0]
    parts = right.split_experts(router_ED, gate_up_E2FD, down_EDF, m)
    return tuple(part.unflatten(0, (E, m)).transpose(0, 1).flatten(0, 1) for part in parts)


def split_strided(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> Triple:
    E, D, F = _sizes(down_EDF, m)
    gate_up = gate_up_E2FD.reshape(E, 2, F // m, m, D).permute(0, 3, 1, 2, 4).reshape(E * m, 2 * F // m, D)
    down = down_EDF.reshape(E, D, F // m, m).permute(0, 3, 1, 2).reshape(E * m, D, F // m)
    return router_ED.repeat_interleave(m, dim=0), gate_up, m * down


def split_copies(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> Triple:
    _sizes(down_EDF, m)
    return tuple(part.repeat_interleave(m, dim=0) for part in (router_ED, gate_up_E2FD, down_EDF))


def split_rows_alternating(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> Triple:
    E, D, F = _sizes(down_EDF, m)
    ordered = gate_up_E2FD.reshape(E, F, 2, D).transpose(1, 2).reshape(E, 2 * F, D)
    return right.split_experts(router_ED, ordered, down_EDF, m)


def split_up_before_gate(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> Triple:
    router, gate_up, down = right.split_experts(router_ED, gate_up_E2FD, down_EDF, m)
    return router, torch.cat(gate_up.chunk(2, dim=1)[::-1], dim=1), down


def split_scaled_up(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> Triple:
    router, gate_up, down = right.split_experts(router_ED, gate_up_E2FD, down_EDF, m)
    gate, up = gate_up.chunk(2, dim=1)
    return router, torch.cat([gate, m * up], dim=1), down / m


# ----------------------------------------------------------------------------------------------------- shared_expert


def _routed(x, ids, scores, gate_up, down, *_) -> Tensor:
    return reference.experts_loop(x, ids, scores, gate_up, down)


def _shared(x, ids, scores, gate_up, down, shared_up, shared_down) -> Tensor:
    outputs = [reference.swiglu(x, up, back) for up, back in zip(shared_up, shared_down, strict=True)]
    return sum(outputs, torch.zeros_like(x))


def shared_weighted(*args: Tensor) -> Tensor:
    return _routed(*args) + args[2].sum(dim=1, keepdim=True) * _shared(*args)


def shared_weighted_by_the_best(*args: Tensor) -> Tensor:
    return _routed(*args) + args[2][:, :1] * _shared(*args)


def shared_averaged(*args: Tensor) -> Tensor:
    return _routed(*args) + _shared(*args) / max(1, len(args[5]))


def shared_halved(*args: Tensor) -> Tensor:
    return (_routed(*args) + _shared(*args)) / 2


def shared_first_only(*args: Tensor) -> Tensor:
    return _routed(*args) + _shared(*args[:5], args[5][:1], args[6][:1])


def shared_forgotten(*args: Tensor) -> Tensor:
    return _routed(*args)


def shared_routed_forgotten(*args: Tensor) -> Tensor:
    return _shared(*args)


def shared_in_a_row(*args: Tensor) -> Tensor:
    y = _routed(*args)
    return y + _shared(y, *args[1:])


def shared_before(*args: Tensor) -> Tensor:
    y = _shared(*args)
    return y + _routed(y, *args[1:])


def shared_residual(*args: Tensor) -> Tensor:
    return args[0] + _routed(*args) + _shared(*args)


def shared_routed_unweighted(*args: Tensor) -> Tensor:
    return _routed(*args[:2], torch.ones_like(args[2]), *args[3:]) + _shared(*args)


def shared_chained(*args: Tensor) -> Tensor:
    y = args[0]
    for up, back in zip(args[5], args[6], strict=True):
        y = reference.swiglu(y, up, back)
    return _routed(*args) + (y if len(args[5]) else 0)


def shared_last_only(*args: Tensor) -> Tensor:
    return _routed(*args) + _shared(*args[:5], args[5][-1:], args[6][-1:])


def shared_once_a_choice(*args: Tensor) -> Tensor:
    return _routed(*args) + args[1].shape[1] * _shared(*args)


def shared_wide_in_one(*args: Tensor) -> Tensor:
    S, D, F = args[6].shape
    wide = args[5].reshape(2 * S * F, D), args[6].transpose(0, 1).reshape(D, S * F)
    return _routed(*args) + reference.swiglu(args[0], *wide)


def shared_routed_renormalised(*args: Tensor) -> Tensor:
    return _routed(*args[:2], args[2] / args[2].sum(dim=1, keepdim=True), *args[3:]) + _shared(*args)


# ------------------------------------------------------------------------------------------------ group_limited_top_k


def _worth(choice_TGN: Tensor, group_score: str) -> Tensor:
    return choice_TGN.topk(2 if group_score == "top2_sum" else 1, dim=-1).values.sum(-1)


def _keep(worth_TG: Tensor, top_groups: int) -> Tensor:
    return torch.zeros_like(worth_TG, dtype=torch.bool).scatter(1, worth_TG.topk(top_groups).indices, True)


def _pick(scores_TE: Tensor, choice_TE: Tensor, k: int) -> Pair:
    ids = choice_TE.topk(k).indices
    return ids, scores_TE.gather(1, ids)


def groups_zero_mask(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    choice = (scores_TE + bias_E).unflatten(1, (num_groups, -1))
    kept = _keep(_worth(choice, group_score), top_groups)
    return _pick(scores_TE, choice.masked_fill(~kept[..., None], 0.0).flatten(1), k)


def groups_biased_weights(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    ids, _ = right.group_limited_top_k(scores_TE, bias_E, k, num_groups, top_groups, group_score)
    return ids, (scores_TE + bias_E).gather(1, ids)


def groups_unbiased_worth(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    kept = _keep(_worth(scores_TE.unflatten(1, (num_groups, -1)), group_score), top_groups)
    choice = (scores_TE + bias_E).unflatten(1, (num_groups, -1))
    return _pick(scores_TE, choice.masked_fill(~kept[..., None], float("-inf")).flatten(1), k)


def groups_bias_for_groups_only(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    kept = _keep(_worth((scores_TE + bias_E).unflatten(1, (num_groups, -1)), group_score), top_groups)
    choice = scores_TE.unflatten(1, (num_groups, -1))
    return _pick(scores_TE, choice.masked_fill(~kept[..., None], float("-inf")).flatten(1), k)


def groups_bias_ignored(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    return right.group_limited_top_k(scores_TE, torch.zeros_like(bias_E), k, num_groups, top_groups, group_score)


def groups_always_max(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    return right.group_limited_top_k(scores_TE, bias_E, k, num_groups, top_groups, "max")


def groups_always_top2(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    return right.group_limited_top_k(scores_TE, bias_E, k, num_groups, top_groups, "top2_sum")


def groups_whole_sum(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    choice = (scores_TE + bias_E).unflatten(1, (num_groups, -1))
    worth = choice.sum(-1) if group_score == "top2_sum" else choice.amax(-1)
    return _pick(scores_TE, choice.masked_fill(~_keep(worth, top_groups)[..., None], float("-inf")).flatten(1), k)


def groups_interleaved(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    choice = (scores_TE + bias_E).unflatten(1, (-1, num_groups)).transpose(1, 2)
    kept = _keep(_worth(choice, group_score), top_groups)
    masked = choice.masked_fill(~kept[..., None], float("-inf"))
    return _pick(scores_TE, masked.transpose(1, 2).flatten(1), k)


def groups_no_limit(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    return _pick(scores_TE, scores_TE + bias_E, k)


def groups_equal_shares(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    choice = (scores_TE + bias_E).unflatten(1, (num_groups, -1))
    groups = _worth(choice, group_score).topk(top_groups).indices
    size, each = choice.shape[-1], max(1, k // top_groups)
    inside = choice.gather(1, groups[..., None].expand(-1, -1, size)).topk(each).indices
    ids = (inside + groups[..., None] * size).flatten(1)[:, :k]
    return ids, scores_TE.gather(1, ids)


def groups_sorted_by_score(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    ids, chosen = right.group_limited_top_k(scores_TE, bias_E, k, num_groups, top_groups, group_score)
    order = chosen.argsort(dim=1, descending=True)
    return ids.gather(1, order), chosen.gather(1, order)


def groups_scores_first(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    return right.group_limited_top_k(scores_TE, bias_E, k, num_groups, top_groups, group_score)[::-1]


def groups_finite_mask(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    choice = (scores_TE + bias_E).unflatten(1, (num_groups, -1))
    kept = _keep(_worth(choice, group_score), top_groups)
    return _pick(scores_TE, choice.masked_fill(~kept[..., None], -1.0).flatten(1), k)


def groups_masked_before_bias(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    kept = _keep(_worth((scores_TE + bias_E).unflatten(1, (num_groups, -1)), group_score), top_groups)
    masked = scores_TE.unflatten(1, (num_groups, -1)).masked_fill(~kept[..., None], 0.0).flatten(1)
    return _pick(scores_TE, masked + bias_E, k)


def groups_inverted(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    choice = (scores_TE + bias_E).unflatten(1, (num_groups, -1))
    kept = _keep(_worth(choice, group_score), top_groups)
    return _pick(scores_TE, choice.masked_fill(kept[..., None], float("-inf")).flatten(1), k)


def groups_local_ids(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    choice = (scores_TE + bias_E).unflatten(1, (num_groups, -1))
    groups = _worth(choice, group_score).topk(top_groups).indices
    inside = choice.gather(1, groups[..., None].expand(-1, -1, choice.shape[-1])).flatten(1)
    return _pick(scores_TE, inside, k)


def groups_k_over_m(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    choice = (scores_TE + bias_E).unflatten(1, (num_groups, -1))
    best = min(max(1, k // top_groups), choice.shape[-1]) if group_score == "top2_sum" else 1
    kept = _keep(choice.topk(best, dim=-1).values.sum(-1), top_groups)
    return _pick(scores_TE, choice.masked_fill(~kept[..., None], float("-inf")).flatten(1), k)


def groups_renormalised(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    ids, chosen = right.group_limited_top_k(scores_TE, bias_E, k, num_groups, top_groups, group_score)
    return ids, chosen / chosen.sum(dim=1, keepdim=True)


def groups_sorted_by_id(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum") -> Pair:
    ids, _ = right.group_limited_top_k(scores_TE, bias_E, k, num_groups, top_groups, group_score)
    ids = ids.sort(dim=1).values
    return ids, scores_TE.gather(1, ids)
