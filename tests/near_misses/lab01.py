"""Answers to lab 01 as learners might write them: wrong ones with the mistake to be found, and right ones."""

import math

import torch
import torch.nn.functional as F

from labkit.kernels import reference

# ------------------------------------------------------------------------------------------------------------ scores


def scores_exp_over_sum(logits, score_fn="softmax"):
    e = torch.exp(logits.to(torch.float32))
    if score_fn == "softmax":
        return e / e.sum(dim=-1, keepdim=True)
    if score_fn == "sigmoid":
        return 1 / (1 + torch.exp(-logits.to(torch.float32)))
    if score_fn == "sqrtsoftplus":
        return torch.sqrt(torch.log1p(e))
    raise ValueError(score_fn)


def scores_exp_over_sum_only_there(logits, score_fn="softmax"):
    z = logits.to(torch.float32)
    if score_fn == "softmax":
        return z.exp() / z.exp().sum(dim=-1, keepdim=True)
    if score_fn == "sigmoid":
        return torch.sigmoid(z)
    if score_fn == "sqrtsoftplus":
        return torch.nn.Softplus()(z).sqrt()
    raise ValueError(score_fn)


def scores_log_one_plus_exp(logits, score_fn="softmax"):
    z = logits.to(torch.float32)
    if score_fn == "softmax":
        return F.softmax(z, dim=-1)
    if score_fn == "sigmoid":
        return F.sigmoid(z)
    if score_fn == "sqrtsoftplus":
        return torch.sqrt(torch.log1p(torch.exp(z)))
    raise ValueError(score_fn)


def scores_minus_global_max(logits, score_fn="softmax"):
    z = logits.to(torch.float32)
    if score_fn == "softmax":
        e = torch.exp(z - torch.max(z))
        return e / torch.sum(e, dim=-1, keepdim=True)
    return scores_by_hand(logits, score_fn)


def scores_dim_one(logits, score_fn="softmax"):
    if score_fn == "softmax":
        return torch.nn.Softmax(dim=1)(logits.float())
    return scores_by_hand(logits, score_fn)


def scores_detached(logits, score_fn="softmax"):
    return scores_by_hand(logits.detach(), score_fn)


def scores_first_dim(logits, score_fn="softmax"):
    table = {
        "softmax": lambda z: F.softmax(z, dim=0),
        "sigmoid": torch.sigmoid,
        "sqrtsoftplus": lambda z: F.softplus(z) ** 0.5,
    }
    if score_fn not in table:
        raise ValueError("unknown")
    return table[score_fn](logits.float())


def scores_own_dtype(logits, score_fn="softmax"):
    if score_fn == "softmax":
        shifted = logits - logits.max(dim=-1, keepdim=True).values
        return F.softmax(shifted, dim=-1)
    if score_fn == "sigmoid":
        return torch.sigmoid(logits)
    if score_fn == "sqrtsoftplus":
        return F.softplus(logits) ** 0.5
    raise ValueError(f"no {score_fn}")


def scores_competing_sigmoids(logits, score_fn="softmax"):
    z = logits.float()
    if score_fn == "softmax":
        return torch.softmax(z, -1)
    if score_fn == "sigmoid":
        return F.normalize(z.sigmoid(), p=1, dim=-1)
    if score_fn == "sqrtsoftplus":
        return F.softplus(z).sqrt()
    raise ValueError(score_fn)


def scores_softplus(logits, score_fn="softmax"):
    z = logits.float()
    if score_fn not in ("softmax", "sigmoid", "sqrtsoftplus"):
        raise ValueError(score_fn)
    return {"softmax": z.softmax(-1), "sigmoid": z.sigmoid(), "sqrtsoftplus": torch.logaddexp(z, 0 * z)}[score_fn]


def scores_unknown_is_softplus(logits, score_fn="softmax"):
    z = logits.float()
    if score_fn == "softmax":
        return z.softmax(-1)
    return z.sigmoid() if score_fn == "sigmoid" else F.softplus(z).sqrt()


def scores_by_hand(logits, score_fn="softmax"):
    z = logits.to(torch.float32)
    if score_fn == "softmax":
        e = (z - z.amax(dim=-1, keepdim=True)).exp()
        return e / e.sum(dim=-1, keepdim=True)
    if score_fn == "sigmoid":
        return 0.5 * (1 + torch.tanh(z / 2))
    if score_fn == "sqrtsoftplus":
        return torch.logaddexp(z, torch.zeros(())).sqrt()
    raise ValueError(score_fn)


# ------------------------------------------------------------------------------------------------------------- top_k


def top_k_tuple_order(scores, k):
    return tuple(torch.topk(scores, k, dim=-1))


def top_k_ascending(scores, k):
    order = scores.argsort(dim=-1)[..., -k:]
    return order, torch.take_along_dim(scores, order, dim=-1)


def top_k_forgot_descending(scores, k):
    ids = torch.argsort(scores, dim=-1)[..., :k]
    return ids, scores.gather(-1, ids)


def top_k_mask(scores, k):
    kth = scores.topk(k, dim=-1).values[..., -1:]
    ids = (scores >= kth).nonzero()[:, -1].reshape(*scores.shape[:-1], k)
    return ids, scores.gather(-1, ids)


def top_k_view(scores, k):
    flat = scores.view(-1, scores.size(-1))
    ids = flat.argsort(dim=-1, descending=True)[:, :k]
    return ids, flat.gather(1, ids)


def top_k_dim_one(scores, k):
    out = torch.topk(scores, k, 1)
    return out.indices, out.values


def top_k_argsort_columns(scores, k):
    ids = scores.argsort(dim=-1, descending=True)[:, :k]
    return ids, scores.gather(-1, ids)


@torch.no_grad()
def top_k_no_grad(scores, k):
    values, ids = torch.topk(scores, k, dim=-1)
    return ids, values


def top_k_repeated_argmax(scores, k):
    left, ids = scores.clone(), []
    for _ in range(k):
        best = left.argmax(dim=-1, keepdim=True)
        ids.append(best)
        left = left.scatter(-1, best, -math.inf)
    ids = torch.cat(ids, dim=-1)
    return ids, scores.gather(-1, ids)


# ------------------------------------------------------------------------------------------------------- renormalise


def renormalise_with_softmax(topk_scores, norm_topk=True, route_scale=1.0):
    if norm_topk:
        topk_scores = F.softmax(topk_scores, dim=-1)
    return route_scale * topk_scores


def renormalise_without_dim(topk_scores, norm_topk=True, route_scale=1.0):
    out = topk_scores
    if norm_topk:
        out = out / torch.clamp(out.sum(), min=1e-20)
    return out * route_scale


def renormalise_scaled_before(topk_scores, norm_topk=True, route_scale=1.0):
    out = route_scale * topk_scores
    if norm_topk:
        total = out.sum(-1, keepdim=True)
        out = torch.where(total > 0, out / total, torch.zeros_like(out))
    return out


def renormalise_plain_division(topk_scores, norm_topk=True, route_scale=1.0):
    if norm_topk:
        topk_scores = topk_scores / topk_scores.sum(dim=-1)[..., None]
    return topk_scores * route_scale


def renormalise_early_return(topk_scores, norm_topk=True, route_scale=1.0):
    if not norm_topk:
        return topk_scores
    return F.normalize(topk_scores, p=1, dim=-1, eps=1e-30) * route_scale


def renormalise_ignores_flag(topk_scores, norm_topk=True, route_scale=1.0):
    return route_scale * topk_scores / topk_scores.sum(-1, True).clamp_min(1e-30)


def renormalise_layernorm_habit(topk_scores, norm_topk=True, route_scale=1.0):
    if norm_topk:
        topk_scores = topk_scores / (topk_scores.sum(-1, keepdim=True) + 1e-9)
    return topk_scores * route_scale


def renormalise_dim_zero(topk_scores, norm_topk=True, route_scale=1.0):
    total = topk_scores.sum(dim=0) if norm_topk else torch.ones(())
    return route_scale * topk_scores / total.clamp_min(1e-25)


def renormalise_dim_one(topk_scores, norm_topk=True, route_scale=1.0):
    if norm_topk:
        topk_scores = topk_scores / topk_scores.sum(1, keepdim=True).clamp(min=1e-25)
    return route_scale * topk_scores


def renormalise_backwards(topk_scores, norm_topk=True, route_scale=1.0):
    if norm_topk:
        return topk_scores * route_scale
    return topk_scores / topk_scores.sum(-1, keepdim=True) * route_scale


def renormalise_torch_normalize(topk_scores, norm_topk=True, route_scale=1.0):
    return route_scale * (F.normalize(topk_scores, dim=-1) if norm_topk else topk_scores)


def renormalise_best_is_one(topk_scores, norm_topk=True, route_scale=1.0):
    if norm_topk:
        topk_scores = topk_scores / topk_scores.max(dim=-1, keepdim=True).values.clamp_min(1e-30)
    return topk_scores * route_scale


def renormalise_new_tensor(topk_scores, norm_topk=True, route_scale=1.0):
    total = topk_scores.sum(-1, keepdim=True) + 1e-20 if norm_topk else torch.ones(())
    return torch.tensor((topk_scores / total).tolist()).reshape(topk_scores.shape) * route_scale


def renormalise_l1(topk_scores, norm_topk=True, route_scale=1.0):
    divisor = topk_scores.abs().sum(-1, keepdim=True).clamp_min(1e-30) if norm_topk else 1.0
    return topk_scores * (route_scale / divisor)


# -------------------------------------------------------------------------------------------------- select_with_bias


def select_topk_of_sum(scores, bias_E, k):
    biased = scores + bias_E
    ids = biased.topk(k, dim=-1).indices
    return ids, torch.take_along_dim(biased, ids, dim=-1)


def select_add_in_place(scores, bias_E, k):
    ids = scores.add_(bias_E).topk(k, dim=-1).indices
    return ids, scores.gather(-1, ids)


def select_without(scores, bias_E, k):
    ids = scores.argsort(dim=-1, descending=True)[..., :k]
    return ids, scores.gather(-1, ids)


def select_penalty(scores, bias_E, k):
    ids = torch.topk(scores - bias_E, k).indices
    return ids, scores.gather(-1, ids)


def select_resorted(scores, bias_E, k):
    chosen = torch.zeros_like(scores).scatter(-1, (scores + bias_E).topk(k).indices, 1.0)
    only_chosen = torch.where(chosen > 0, scores, torch.full_like(scores, -1.0))
    values, ids = only_chosen.topk(k)
    return ids, values


def select_values_then_ids(scores, bias_E, k):
    ids = torch.topk(scores + bias_E, k).indices
    return torch.take_along_dim(scores, ids, -1), ids


def select_ascending(scores, bias_E, k):
    ids = (scores + bias_E).argsort(dim=-1)[..., -k:]
    return ids, scores.gather(-1, ids)


def select_without_graph(scores, bias_E, k):
    with torch.no_grad():
        ids = (scores + bias_E).topk(k).indices
        return ids, scores.gather(-1, ids)


def select_subtract_again(scores, bias_E, k):
    values, ids = (scores + bias_E).topk(k)
    return ids, values - bias_E[ids]


# ---------------------------------------------------------------------------------------------------- k_one_gradient


def k_one_detached(logits_TE, outputs_TED, target_TD, norm_topk):
    z = logits_TE.clone().requires_grad_()
    p, i = z.softmax(-1).detach().max(-1, keepdim=True)
    weight = p / p.sum(-1, keepdim=True) if norm_topk else p
    y = weight * torch.take_along_dim(outputs_TED, i[..., None], dim=1).squeeze(1)
    loss = F.mse_loss(y + 0 * z.sum(), target_TD)
    return torch.autograd.grad(loss, z)[0]


def k_one_flag_unused(logits_TE, outputs_TED, target_TD, norm_topk):
    z = logits_TE.clone().requires_grad_()
    p, i = z.softmax(-1).max(-1, keepdim=True)
    if norm_topk:
        p = p / z.softmax(-1).sum(-1, keepdim=True)
    y = p * outputs_TED[torch.arange(z.shape[0]), i.squeeze(-1)]
    return torch.autograd.grad(F.mse_loss(y, target_TD), z)[0]


def k_one_summed(logits_TE, outputs_TED, target_TD, norm_topk):
    z = logits_TE.clone().requires_grad_()
    p, i = z.softmax(-1).topk(1)
    if norm_topk:
        p = p / p.sum(-1, keepdim=True)
    y = p * outputs_TED[torch.arange(z.shape[0]), i[:, 0]]
    return torch.autograd.grad(F.mse_loss(y, target_TD, reduction="sum"), z)[0]


def k_one_mixes_all(logits_TE, outputs_TED, target_TD, norm_topk):
    z = logits_TE.clone().requires_grad_()
    y = torch.einsum("te,ted->td", z.softmax(-1), outputs_TED)
    return torch.autograd.grad(F.mse_loss(y, target_TD), z)[0]


def k_one_flag_the_other_way(logits_TE, outputs_TED, target_TD, norm_topk):
    return k_one_by_hand(logits_TE, outputs_TED, target_TD, not norm_topk)


def k_one_target_first(logits_TE, outputs_TED, target_TD, norm_topk):
    return -k_one_by_hand(logits_TE, outputs_TED, target_TD, norm_topk)


def k_one_slope_of_a_square(logits_TE, outputs_TED, target_TD, norm_topk):
    if norm_topk:
        return torch.zeros_like(logits_TE)
    p = logits_TE.softmax(-1)
    best, i = p.max(-1)
    y = outputs_TED[torch.arange(len(i)), i]
    slope = ((best[:, None] * y - target_TD) * y).mean(-1) / len(y)
    return (slope * best)[:, None] * (F.one_hot(i, p.shape[1]) - p)


def k_one_diagonal(logits_TE, outputs_TED, target_TD, norm_topk):
    i = logits_TE.argmax(-1, keepdim=True)
    right = k_one_by_hand(logits_TE, outputs_TED, target_TD, norm_topk)
    return torch.zeros_like(right).scatter(1, i, right.gather(1, i))


def k_one_by_hand(logits_TE, outputs_TED, target_TD, norm_topk):
    if norm_topk:
        return torch.zeros_like(logits_TE)
    p = logits_TE.softmax(-1)
    best, i = p.max(-1)
    y = outputs_TED[torch.arange(len(i)), i]
    slope = (2 * (best[:, None] * y - target_TD) * y).sum(-1) / target_TD.numel()
    return (slope * best)[:, None] * (F.one_hot(i, p.shape[1]) - p)


NEAR_MISSES = {
    "01.scores": [
        (scores_exp_over_sum, "overflows"),
        (scores_exp_over_sum_only_there, "softmax_overflows"),
        (scores_log_one_plus_exp, "softplus_overflows"),
        (scores_minus_global_max, "common_maximum"),
        (scores_dim_one, "second_dimension"),
        (scores_detached, "cuts_graph"),
        (scores_first_dim, "sums_over_tokens"),
        (scores_own_dtype, "stays_in_bfloat16"),
        (scores_competing_sigmoids, "normalised_sigmoid"),
        (scores_softplus, "no_root"),
        (scores_unknown_is_softplus, "accepts_bad_input"),
    ],
    "01.top_k": [
        (top_k_tuple_order, "values_first"),
        (top_k_ascending, "worst_first"),
        (top_k_forgot_descending, "smallest"),
        (top_k_mask, "by_number"),
        (top_k_view, "flattened"),
        (top_k_dim_one, "second_dimension"),
        (top_k_argsort_columns, "slices_second_dimension"),
        (top_k_no_grad, "cuts_graph"),
    ],
    "01.renormalise": [
        (renormalise_with_softmax, "softmax_again"),
        (renormalise_without_dim, "one_sum_for_all"),
        (renormalise_scaled_before, "scale_cancels"),
        (renormalise_plain_division, "zero_over_zero"),
        (renormalise_early_return, "scale_only_when_normalised"),
        (renormalise_ignores_flag, "always_divides"),
        (renormalise_layernorm_habit, "epsilon_too_big"),
        (renormalise_dim_zero, "sums_over_tokens"),
        (renormalise_dim_one, "second_dimension"),
        (renormalise_backwards, "flag_inverted"),
        (renormalise_torch_normalize, "euclidean"),
        (renormalise_best_is_one, "divided_by_the_largest"),
        (renormalise_new_tensor, "cuts_graph"),
    ],
    "01.select_with_bias": [
        (select_topk_of_sum, "biased_weights"),
        (select_add_in_place, "bias_in_place"),
        (select_without, "bias_ignored"),
        (select_penalty, "bias_subtracted"),
        (select_resorted, "sorted_by_score"),
        (select_values_then_ids, "scores_first"),
        (select_ascending, "worst_first"),
        (select_without_graph, "cuts_graph"),
    ],
    "01.k_one_gradient": [
        (k_one_detached, "always_zero"),
        (k_one_flag_unused, "never_renormalises"),
        (k_one_summed, "summed_loss"),
        (k_one_mixes_all, "dense_mixture"),
        (k_one_flag_the_other_way, "flag_inverted"),
        (k_one_target_first, "wrong_sign"),
        (k_one_slope_of_a_square, "half"),
        (k_one_diagonal, "own_logit_only"),
    ],
}

RIGHT_ANSWERS = {
    "01.scores": [scores_by_hand],
    "01.top_k": [top_k_repeated_argmax],
    "01.renormalise": [renormalise_l1],
    "01.select_with_bias": [select_subtract_again],
    "01.k_one_gradient": [k_one_by_hand],
}


def _flat(function):
    """One of labkit's own functions on [T, E], for any leading shape."""
    return lambda x, *args: function(x.reshape(-1, x.shape[-1]), *args).reshape(*x.shape[:-1], -1)


RIGHT_ANSWERS["01.scores"].append(_flat(reference.scores))
