"""Lab 01: what a learner's router does when it has made one of the mistakes that its checks know."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def _choose(score_fn: str, softmax: Tensor, sigmoid: Tensor, root: Tensor) -> Tensor:
    known = {"softmax": softmax, "sigmoid": sigmoid, "sqrtsoftplus": root}
    if score_fn not in known:
        raise ValueError(f"score_fn is {score_fn!r}")
    return known[score_fn]


def scores_over_tokens(logits: Tensor, score_fn: str = "softmax") -> Tensor:
    x = logits.float()
    return _choose(score_fn, x.softmax(0), x.sigmoid(), F.softplus(x).sqrt())


def scores_overflow(logits: Tensor, score_fn: str = "softmax") -> Tensor:
    x = logits.float()
    power = x.exp()
    return _choose(score_fn, power / power.sum(-1, keepdim=True), x.sigmoid(), (1 + power).log().sqrt())


def scores_softmax_overflow(logits: Tensor, score_fn: str = "softmax") -> Tensor:
    x = logits.float()
    power = x.exp()
    return _choose(score_fn, power / power.sum(-1, keepdim=True), x.sigmoid(), F.softplus(x).sqrt())


def scores_softplus_overflow(logits: Tensor, score_fn: str = "softmax") -> Tensor:
    x = logits.float()
    return _choose(score_fn, x.softmax(-1), x.sigmoid(), (1 + x.exp()).log().sqrt())


def scores_common_maximum(logits: Tensor, score_fn: str = "softmax") -> Tensor:
    x = logits.float()
    power = (x - x.max()).exp()
    return _choose(score_fn, power / power.sum(-1, keepdim=True), x.sigmoid(), F.softplus(x).sqrt())


def scores_second_dimension(logits: Tensor, score_fn: str = "softmax") -> Tensor:
    x = logits.float()
    return _choose(score_fn, x.softmax(1), x.sigmoid(), F.softplus(x).sqrt())


def scores_stay(logits: Tensor, score_fn: str = "softmax") -> Tensor:
    return _choose(score_fn, logits.softmax(-1), logits.sigmoid(), F.softplus(logits).sqrt())


def scores_widen_late(logits: Tensor, score_fn: str = "softmax") -> Tensor:
    return scores_stay(logits, score_fn).float()


def scores_sigmoid_normalised(logits: Tensor, score_fn: str = "softmax") -> Tensor:
    x = logits.float()
    s = x.sigmoid()
    return _choose(score_fn, x.softmax(-1), s / s.sum(-1, keepdim=True), F.softplus(x).sqrt())


def scores_no_root(logits: Tensor, score_fn: str = "softmax") -> Tensor:
    x = logits.float()
    return _choose(score_fn, x.softmax(-1), x.sigmoid(), F.softplus(x))


def scores_softmax_only(logits: Tensor, score_fn: str = "softmax") -> Tensor:
    return logits.float().softmax(-1)


def top_k_values_first(scores: Tensor, k: int) -> Pair:
    values, ids = scores.topk(k)
    return values, ids


def top_k_worst_first(scores: Tensor, k: int) -> Pair:
    values, ids = scores.topk(k)
    return ids.flip(-1), values.flip(-1)


def top_k_smallest(scores: Tensor, k: int) -> Pair:
    values, ids = scores.topk(k, largest=False)
    return ids, values


def top_k_by_number(scores: Tensor, k: int) -> Pair:
    ids = scores.topk(k).indices.sort(dim=-1).values
    return ids, scores.gather(-1, ids)


def top_k_over_tokens(scores: Tensor, k: int) -> Pair:
    values, ids = scores.topk(k, dim=0)
    return ids, values


def top_k_second_dimension(scores: Tensor, k: int) -> Pair:
    values, ids = scores.topk(k, dim=1)
    return ids, values


def top_k_slices_second(scores: Tensor, k: int) -> Pair:
    values, ids = scores.sort(dim=-1, descending=True)
    return ids[:, :k], values[:, :k]


def top_k_flattened(scores: Tensor, k: int) -> Pair:
    values, ids = scores.reshape(-1, scores.shape[-1]).topk(k)
    return ids, values


def renormalise_softmax(topk_scores: Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> Tensor:
    return (topk_scores.softmax(-1) if norm_topk else topk_scores) * route_scale


def renormalise_global(topk_scores: Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> Tensor:
    return (topk_scores / (topk_scores.sum() + 1e-20) if norm_topk else topk_scores) * route_scale


def renormalise_over_tokens(topk_scores: Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> Tensor:
    return (topk_scores / (topk_scores.sum(0, keepdim=True) + 1e-20) if norm_topk else topk_scores) * route_scale


def renormalise_second_dimension(topk_scores: Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> Tensor:
    return (topk_scores / (topk_scores.sum(1, keepdim=True) + 1e-20) if norm_topk else topk_scores) * route_scale


def renormalise_flag_inverted(topk_scores: Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> Tensor:
    return (topk_scores if norm_topk else topk_scores / (topk_scores.sum(-1, keepdim=True) + 1e-20)) * route_scale


def renormalise_euclidean(topk_scores: Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> Tensor:
    return (F.normalize(topk_scores, dim=-1, eps=1e-20) if norm_topk else topk_scores) * route_scale


def renormalise_by_maximum(topk_scores: Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> Tensor:
    return (topk_scores / (topk_scores.amax(-1, keepdim=True) + 1e-20) if norm_topk else topk_scores) * route_scale


def renormalise_scale_first(topk_scores: Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> Tensor:
    scaled = topk_scores * route_scale
    return scaled / (scaled.sum(-1, keepdim=True) + 1e-20) if norm_topk else scaled


def renormalise_no_scale(topk_scores: Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> Tensor:
    return topk_scores / (topk_scores.sum(-1, keepdim=True) + 1e-20) if norm_topk else topk_scores.clone()


def renormalise_scale_inside(topk_scores: Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> Tensor:
    if norm_topk:
        return topk_scores / (topk_scores.sum(-1, keepdim=True) + 1e-20) * route_scale
    return topk_scores.clone()


def renormalise_always(topk_scores: Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> Tensor:
    return topk_scores / (topk_scores.sum(-1, keepdim=True) + 1e-20) * route_scale


def renormalise_no_epsilon(topk_scores: Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> Tensor:
    return (topk_scores / topk_scores.sum(-1, keepdim=True) if norm_topk else topk_scores) * route_scale


def select_biased_weights(scores: Tensor, bias_E: Tensor, k: int) -> Pair:
    values, ids = (scores + bias_E).topk(k)
    return ids, values


def select_in_place(scores: Tensor, bias_E: Tensor, k: int) -> Pair:
    scores += bias_E
    values, ids = scores.topk(k)
    return ids, values


def select_ignores(scores: Tensor, bias_E: Tensor, k: int) -> Pair:
    values, ids = scores.topk(k)
    return ids, values


def select_subtracts(scores: Tensor, bias_E: Tensor, k: int) -> Pair:
    ids = (scores - bias_E).topk(k).indices
    return ids, scores.gather(-1, ids)


def select_multiplies(scores: Tensor, bias_E: Tensor, k: int) -> Pair:
    ids = (scores * bias_E).topk(k).indices
    return ids, scores.gather(-1, ids)


def select_scores_first(scores: Tensor, bias_E: Tensor, k: int) -> Pair:
    ids = (scores + bias_E).topk(k).indices
    return scores.gather(-1, ids), ids


def select_worst_first(scores: Tensor, bias_E: Tensor, k: int) -> Pair:
    ids = (scores + bias_E).topk(k).indices.flip(-1)
    return ids, scores.gather(-1, ids)


def select_sorts_by_score(scores: Tensor, bias_E: Tensor, k: int) -> Pair:
    ids = (scores + bias_E).topk(k).indices
    values, order = scores.gather(-1, ids).sort(dim=-1, descending=True)
    return ids.gather(-1, order), values


def _chosen(outputs_TED: Tensor, ids_T1: Tensor) -> Tensor:
    return outputs_TED[torch.arange(len(ids_T1)), ids_T1[:, 0]]


def k_one_always_zero(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor, norm_topk: bool) -> Tensor:
    return torch.zeros_like(logits_TE)


def k_one_never_renormalises(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor, norm_topk: bool) -> Tensor:
    logits_TE = logits_TE.detach().requires_grad_(True)
    p_T1, ids_T1 = logits_TE.softmax(-1).topk(1)
    loss = F.mse_loss(p_T1 * _chosen(outputs_TED, ids_T1), target_TD)
    return torch.autograd.grad(loss, logits_TE)[0]


def k_one_sum(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor, norm_topk: bool) -> Tensor:
    if norm_topk:
        return torch.zeros_like(logits_TE)
    return k_one_never_renormalises(logits_TE, outputs_TED, target_TD, False) * target_TD.numel()


def k_one_scores(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor, norm_topk: bool) -> Tensor:
    scores_TE = logits_TE.detach().softmax(-1).requires_grad_(True)
    p_T1, ids_T1 = scores_TE.topk(1)
    weights_T1 = p_T1 / p_T1.sum(-1, keepdim=True) if norm_topk else p_T1
    loss = F.mse_loss(weights_T1 * _chosen(outputs_TED, ids_T1), target_TD)
    return torch.autograd.grad(loss, scores_TE)[0]


def k_one_dense(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor, norm_topk: bool) -> Tensor:
    logits_TE = logits_TE.detach().requires_grad_(True)
    mixed_TD = (logits_TE.softmax(-1)[:, :, None] * outputs_TED).sum(1)
    return torch.autograd.grad(F.mse_loss(mixed_TD, target_TD), logits_TE)[0]


def k_one_flag_inverted(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor, norm_topk: bool) -> Tensor:
    return _k_one_slope(logits_TE, outputs_TED, target_TD) if norm_topk else torch.zeros_like(logits_TE)


def k_one_wrong_sign(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor, norm_topk: bool) -> Tensor:
    return torch.zeros_like(logits_TE) if norm_topk else -_k_one_slope(logits_TE, outputs_TED, target_TD)


def k_one_no_two(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor, norm_topk: bool) -> Tensor:
    return torch.zeros_like(logits_TE) if norm_topk else _k_one_slope(logits_TE, outputs_TED, target_TD) / 2


def k_one_own_logit_only(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor, norm_topk: bool) -> Tensor:
    best_TE = F.one_hot(logits_TE.argmax(-1), logits_TE.shape[1])
    return torch.zeros_like(logits_TE) if norm_topk else _k_one_slope(logits_TE, outputs_TED, target_TD) * best_TE


def _k_one_slope(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor) -> Tensor:
    return k_one_never_renormalises(logits_TE, outputs_TED, target_TD, False)
