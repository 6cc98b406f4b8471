"""Answers to lab 03 as learners might write them: wrong ones with the mistake to be found, and right ones."""

import torch
import torch.nn.functional as F

from labkit.core.capacity import kept
from labkit.core.routing import Routing
from labkit.train import balance

# ---------------------------------------------------------------------------------------------------------- aux_loss


def counted(ids_TK, E):
    return torch.zeros(len(ids_TK), E).scatter(1, ids_TK, 1.0)


def aux_forgets_mask(logits_TE, topk_ids_TK, mask_T=None):
    T, E = logits_TE.shape
    f = torch.bincount(topk_ids_TK.flatten(), minlength=E) / T
    return E * torch.dot(f, F.softmax(logits_TE, dim=1).sum(0) / T)


def aux_masks_probabilities_only(logits_TE, topk_ids_TK, mask_T=None):
    E = logits_TE.shape[1]
    p = logits_TE.softmax(-1)
    p_E = p.mean(0) if mask_T is None else (p * mask_T[:, None]).sum(0) / mask_T.sum()
    return E * (counted(topk_ids_TK, E).mean(0) * p_E).sum()


def aux_masks_choices_only(logits_TE, topk_ids_TK, mask_T=None):
    E = logits_TE.shape[1]
    m = counted(topk_ids_TK, E)
    f_E = m.mean(0) if mask_T is None else m[mask_T].mean(0)
    return E * (f_E @ logits_TE.softmax(-1).mean(0))


def aux_multiplies_by_mask(logits_TE, topk_ids_TK, mask_T=None):
    E = logits_TE.shape[1]
    w = torch.ones(len(logits_TE)) if mask_T is None else mask_T.float()
    f_E = (counted(topk_ids_TK, E) * w[:, None]).mean(0)
    return E * (f_E * (logits_TE.softmax(-1) * w[:, None]).mean(0)).sum()


def aux_mean_over_experts(logits_TE, topk_ids_TK, mask_T=None):
    E = logits_TE.shape[1]
    keep = slice(None) if mask_T is None else mask_T
    return E * (counted(topk_ids_TK, E)[keep].mean(0) * logits_TE.softmax(-1)[keep].mean(0)).mean()


def aux_normalises_counts(logits_TE, topk_ids_TK, mask_T=None):
    E = logits_TE.shape[1]
    keep = slice(None) if mask_T is None else mask_T
    counts = torch.bincount(topk_ids_TK[keep].flatten(), minlength=E).float()
    return E * (counts / counts.sum() * logits_TE.softmax(-1)[keep].mean(0)).sum()


def aux_variance_of_load(logits_TE, topk_ids_TK, mask_T=None):
    E = logits_TE.shape[1]
    keep = slice(None) if mask_T is None else mask_T
    f_E = counted(topk_ids_TK, E)[keep].mean(0)
    return E * f_E.square().sum() + 0 * logits_TE.sum()


def aux_soft_load(logits_TE, topk_ids_TK, mask_T=None):
    keep = slice(None) if mask_T is None else mask_T
    p_E = F.softmax(logits_TE[keep], dim=-1).mean(0)
    return len(p_E) * p_E.square().sum()


def aux_gathered(logits_TE, topk_ids_TK, mask_T=None):
    E = logits_TE.shape[1]
    keep = slice(None) if mask_T is None else mask_T
    p, ids = logits_TE.softmax(-1)[keep], topk_ids_TK[keep]
    p_E = torch.zeros_like(p).scatter(1, ids, p.gather(1, ids)).mean(0)
    return E * (counted(ids, E).mean(0) * p_E).sum()


def aux_as_gshard(logits_TE, topk_ids_TK, mask_T=None):
    E = logits_TE.shape[1]
    keep = slice(None) if mask_T is None else mask_T
    first = F.one_hot(topk_ids_TK[keep][:, 0], E).float()
    return E * (first.mean(0) * logits_TE[keep].softmax(-1).mean(0)).sum()


def aux_topk_inside(logits_TE, topk_ids_TK, mask_T=None):
    E, K = logits_TE.shape[1], topk_ids_TK.shape[1]
    keep = slice(None) if mask_T is None else mask_T
    p = logits_TE[keep].softmax(-1)
    return E * (counted(p.topk(K).indices, E).mean(0) * p.mean(0)).sum()


def aux_dim_zero(logits_TE, topk_ids_TK, mask_T=None):
    E = logits_TE.shape[1]
    keep = slice(None) if mask_T is None else mask_T
    return E * (counted(topk_ids_TK[keep], E).mean(0) * F.softmax(logits_TE[keep], dim=0).mean(0)).sum()


def aux_no_softmax(logits_TE, topk_ids_TK, mask_T=None):
    E = logits_TE.shape[1]
    keep = slice(None) if mask_T is None else mask_T
    return E * (counted(topk_ids_TK[keep], E).mean(0) * logits_TE[keep].mean(0)).sum()


@torch.no_grad()
def aux_no_grad(logits_TE, topk_ids_TK, mask_T=None):
    return aux_with_loops(logits_TE, topk_ids_TK, mask_T)


def aux_inverts_the_mask(logits_TE, topk_ids_TK, mask_T=None):
    return aux_with_loops(logits_TE, topk_ids_TK, None if mask_T is None else ~mask_T)


def aux_fills_padding_with_minus_infinity(logits_TE, topk_ids_TK, mask_T=None):
    if mask_T is not None:
        logits_TE = logits_TE.masked_fill(~mask_T[:, None], float("-inf"))
    chosen_TE = counted(topk_ids_TK, logits_TE.shape[1])
    f_E = chosen_TE.mean(0) if mask_T is None else chosen_TE[mask_T].mean(0)
    return logits_TE.shape[1] * (f_E * logits_TE.softmax(-1).mean(0)).sum()


def aux_zeroes_padded_logits(logits_TE, topk_ids_TK, mask_T=None):
    E, chosen_TE = logits_TE.shape[1], counted(topk_ids_TK, logits_TE.shape[1])
    if mask_T is not None:
        logits_TE, chosen_TE = logits_TE * mask_T[:, None], chosen_TE * mask_T[:, None]
    return E * (chosen_TE.mean(0) * logits_TE.softmax(-1).mean(0)).sum()


def aux_divides_the_counts_by_T(logits_TE, topk_ids_TK, mask_T=None):
    T, E = logits_TE.shape
    keep = slice(None) if mask_T is None else mask_T
    f_E = torch.bincount(topk_ids_TK[keep].flatten(), minlength=E) / T
    return E * (f_E * logits_TE.softmax(-1)[keep].mean(0)).sum()


def aux_sums_the_probabilities(logits_TE, topk_ids_TK, mask_T=None):
    E = logits_TE.shape[1]
    keep = slice(None) if mask_T is None else mask_T
    return E * (counted(topk_ids_TK, E)[keep].mean(0) * logits_TE.softmax(-1)[keep].sum(0)).sum()


def aux_token_by_token(logits_TE, topk_ids_TK, mask_T=None):
    E = logits_TE.shape[1]
    keep = slice(None) if mask_T is None else mask_T
    return E * logits_TE.softmax(-1).gather(1, topk_ids_TK)[keep].sum(-1).mean()


def aux_of_the_weights(logits_TE, topk_ids_TK, mask_T=None):
    E = logits_TE.shape[1]
    keep = slice(None) if mask_T is None else mask_T
    weights_TE = torch.zeros_like(logits_TE).scatter(1, topk_ids_TK, logits_TE.gather(1, topk_ids_TK).softmax(-1))
    return E * (counted(topk_ids_TK, E)[keep].mean(0) * weights_TE[keep].mean(0)).sum()


def aux_without_num_classes(logits_TE, topk_ids_TK, mask_T=None):
    E = logits_TE.shape[1]
    m, p = F.one_hot(topk_ids_TK).sum(1).float(), logits_TE.softmax(-1)
    if mask_T is not None:
        m, p = m[mask_T], p[mask_T]
    return E * (m.mean(0) * p.mean(0)).sum()


def aux_with_loops(logits_TE, topk_ids_TK, mask_T=None):
    T, E = logits_TE.shape
    real = [t for t in range(T) if mask_T is None or mask_T[t]]
    total = torch.zeros(())
    for e in range(E):
        f = sum(int((topk_ids_TK[t] == e).any()) for t in real) / len(real)
        total = total + f * torch.stack([F.softmax(logits_TE[t], 0)[e] for t in real]).mean()
    return E * total


def aux_of_the_package(logits_TE, topk_ids_TK, mask_T=None):
    scores = torch.ones(topk_ids_TK.shape)
    return balance.switch_loss(Routing.of(logits_TE, topk_ids_TK, scores), mask_T)


# ------------------------------------------------------------------------------------------------------------ z_loss


def z_ignores_mask(logits_TE, mask_T=None):
    return torch.logsumexp(logits_TE, 1).pow(2).mean()


def z_masked_mean(logits_TE, mask_T=None):
    z = torch.logsumexp(logits_TE, 1).square()
    return z.mean() if mask_T is None else torch.where(mask_T, z, 0.0).mean()


def z_exp_sum_log(logits_TE, mask_T=None):
    z = torch.log(torch.exp(logits_TE).sum(dim=1)).square()
    return z.mean() if mask_T is None else (z * mask_T).sum() / mask_T.sum()


def z_without_square(logits_TE, mask_T=None):
    z = torch.logsumexp(logits_TE, 1)
    return z.mean() if mask_T is None else z[mask_T].mean()


def z_square_of_mean(logits_TE, mask_T=None):
    return z_without_square(logits_TE, mask_T).pow(2)


def z_norm(logits_TE, mask_T=None):
    z = logits_TE.norm(dim=1).square()
    return z.mean() if mask_T is None else z[mask_T].mean()


def z_mean_square(logits_TE, mask_T=None):
    z = logits_TE if mask_T is None else logits_TE[mask_T]
    return z.square().mean()


def z_dim_zero(logits_TE, mask_T=None):
    z = logits_TE if mask_T is None else logits_TE[mask_T]
    return torch.logsumexp(z, dim=0).square().mean()


def z_after_softmax(logits_TE, mask_T=None):
    return z_by_hand(logits_TE.softmax(-1), mask_T)


def z_sum(logits_TE, mask_T=None):
    z = logits_TE if mask_T is None else logits_TE[mask_T]
    return torch.logsumexp(z, dim=1).square().sum()


def z_detached(logits_TE, mask_T=None):
    return z_by_hand(logits_TE.detach(), mask_T)


def z_inverts_the_mask(logits_TE, mask_T=None):
    return z_by_hand(logits_TE, None if mask_T is None else ~mask_T)


def z_fills_padding_with_minus_infinity(logits_TE, mask_T=None):
    if mask_T is not None:
        logits_TE = logits_TE.masked_fill(~mask_T[:, None], float("-inf"))
    return (logits_TE.logsumexp(-1) ** 2).mean()


def z_zeroes_padded_logits(logits_TE, mask_T=None):
    if mask_T is not None:
        logits_TE = logits_TE * mask_T[:, None]
    return torch.logsumexp(logits_TE, 1).square().mean()


def z_without_log(logits_TE, mask_T=None):
    z_T = logits_TE.exp().sum(-1) ** 2
    return z_T.mean() if mask_T is None else z_T[mask_T].mean()


def z_loses_the_maximum(logits_TE, mask_T=None):
    z_T = (logits_TE - logits_TE.max(-1, keepdim=True).values).exp().sum(-1).log() ** 2
    return z_T.mean() if mask_T is None else z_T[mask_T].mean()


def z_by_hand(logits_TE, mask_T=None):
    top = logits_TE.max(dim=1, keepdim=True).values
    z = (top[:, 0] + (logits_TE - top).exp().sum(1).log()) ** 2
    weight = torch.ones(len(z)) if mask_T is None else mask_T.float()
    return (z * weight).sum() / weight.sum()


# ------------------------------------------------------------------------------------------------------- update_bias


def bias_minus_mean(bias_E, tokens_per_expert_E, rate):
    c = tokens_per_expert_E.to(torch.float32)
    return bias_E + rate * (c - c.mean()).sign()


def bias_error(bias_E, tokens_per_expert_E, rate):
    c = tokens_per_expert_E.to(torch.float32)
    return bias_E + rate * (c.mean() - c)


def bias_relative_error(bias_E, tokens_per_expert_E, rate):
    c = tokens_per_expert_E / tokens_per_expert_E.sum()
    return bias_E + rate * (1 - c * len(c))


def bias_two_cases(bias_E, tokens_per_expert_E, rate):
    c = tokens_per_expert_E.float()
    out = bias_E.clone()
    out[c < c.mean()] += rate
    out[c >= c.mean()] -= rate
    return out


def bias_two_cases_up(bias_E, tokens_per_expert_E, rate):
    c = tokens_per_expert_E.float()
    out = bias_E.clone()
    out[c <= c.mean()] += rate
    out[c > c.mean()] -= rate
    return out


def bias_integer_mean(bias_E, tokens_per_expert_E, rate):
    mean = tokens_per_expert_E.sum().div(len(tokens_per_expert_E), rounding_mode="floor")
    return bias_E + rate * torch.sign(mean - tokens_per_expert_E).float()


def bias_from_median(bias_E, tokens_per_expert_E, rate):
    return bias_E + rate * (tokens_per_expert_E.median() - tokens_per_expert_E).sign().float()


def bias_feeds_the_starving(bias_E, tokens_per_expert_E, rate):
    c = tokens_per_expert_E.float()
    return bias_E + rate * (c.mean() - c).sign().clamp(min=0)


def bias_punishes_the_busy(bias_E, tokens_per_expert_E, rate):
    c = tokens_per_expert_E.float()
    return bias_E + rate * (c.mean() - c).sign().clamp(max=0)


def bias_starts_again(bias_E, tokens_per_expert_E, rate):
    c = tokens_per_expert_E.float()
    return torch.zeros_like(bias_E) + rate * (c.mean() - c).sign()


def bias_plus_equals(bias_E, tokens_per_expert_E, rate):
    c = tokens_per_expert_E.float()
    bias_E += rate * (c.mean() - c).sign()
    return bias_E


def bias_without_rate(bias_E, tokens_per_expert_E, rate):
    return bias_E + torch.sign(tokens_per_expert_E.float().mean() - tokens_per_expert_E)


def bias_from_shares(bias_E, tokens_per_expert_E, rate):
    return bias_E + rate * (1 / len(bias_E) - tokens_per_expert_E / tokens_per_expert_E.sum())


def bias_with_where(bias_E, tokens_per_expert_E, rate):
    above = tokens_per_expert_E * len(bias_E) - tokens_per_expert_E.sum()
    return torch.where(above > 0, bias_E - rate, torch.where(above < 0, bias_E + rate, bias_E))


def bias_of_the_package(bias_E, tokens_per_expert_E, rate):
    return balance.update_bias(bias_E, tokens_per_expert_E, rate=rate)


# -------------------------------------------------------------------------------------------------------------- keep


def seats(ids, pairs, capacity):
    """Pairs (token, slot) take their places in this order."""
    full, out = {}, torch.zeros(ids.shape, dtype=torch.bool)
    for t, k in pairs:
        e = int(ids[t, k])
        full[e] = full.get(e, 0) + 1
        out[t, k] = full[e] <= capacity
    return out


def in_line(ids, scores, policy):
    pairs = [(t, k) for k in range(ids.shape[1]) for t in range(len(ids))]
    if policy == "score":
        return sorted(pairs, key=lambda pair: -float(scores[pair]))
    if policy != "position":
        raise ValueError(policy)
    return pairs


def keep_in_order(ids, scores, capacity, policy="position"):
    in_line(ids, scores, policy)
    return seats(ids, in_line(ids, scores, "position"), capacity)


def keep_always_by_score(ids, scores, capacity, policy="position"):
    in_line(ids, scores, policy)
    return seats(ids, in_line(ids, scores, "score"), capacity)


def keep_ascending(ids, scores, capacity, policy="position"):
    return seats(ids, in_line(ids, 1 - scores, policy), capacity)


def keep_less_or_equal(ids, scores, capacity, policy="position"):
    return seats(ids, in_line(ids, scores, policy), capacity + 1)


def keep_strictly_less(ids, scores, capacity, policy="position"):
    return seats(ids, in_line(ids, scores, policy), capacity - 1)


def keep_overflow(ids, scores, capacity, policy="position"):
    return ~keep_with_loops(ids, scores, capacity, policy)


def keep_flattened(ids, scores, capacity, policy="position"):
    if policy == "position":
        return seats(ids, [(t, k) for t in range(len(ids)) for k in range(ids.shape[1])], capacity)
    return keep_with_loops(ids, scores, capacity, policy)


def keep_best_tokens(ids, scores, capacity, policy="position"):
    if policy == "score":
        tokens = scores.max(-1).values.argsort(descending=True, stable=True).tolist()
        return seats(ids, [(t, k) for k in range(ids.shape[1]) for t in tokens], capacity)
    return keep_with_loops(ids, scores, capacity, policy)


def keep_slot_by_slot(ids, scores, capacity, policy="position"):
    slots = [keep_with_loops(ids[:, [k]], scores[:, [k]], capacity, policy) for k in range(ids.shape[1])]
    return torch.cat(slots, dim=1)


def keep_all_or_nothing(ids, scores, capacity, policy="position"):
    out = keep_with_loops(ids, scores, capacity, policy)
    return out & out.all(-1, keepdim=True)


def keep_first_c(ids, scores, capacity, policy="position"):
    return keep_with_loops(ids * 0, scores, capacity, policy)


def keep_forgets_to_unsort(ids, scores, capacity, policy="position"):
    pairs = in_line(ids, scores, policy)
    flat = [bool(keep_with_loops(ids, scores, capacity, policy)[pair]) for pair in pairs]
    return torch.tensor(flat).view(ids.shape[1], len(ids)).T


def flat_line(ids, scores, policy):
    """The pairs of `in_line` as positions in `ids.T.flatten()`."""
    return torch.tensor([k * len(ids) + t for t, k in in_line(ids, scores, policy)])


def keep_views_instead_of_transposing(ids, scores, capacity, policy="position"):
    return keep_with_loops(ids, scores, capacity, policy).T.reshape(ids.shape)


def keep_sorts_twice(ids, scores, capacity, policy="position"):
    order_N = flat_line(ids, scores, policy)
    seated_N = keep_with_loops(ids, scores, capacity, policy).T.flatten()[order_N]
    return seated_N[order_N].view(ids.T.shape).T


def keep_sorts_each_slot(ids, scores, capacity, policy="position"):
    if policy != "score":
        return keep_with_loops(ids, scores, capacity, policy)
    slots = scores.argsort(dim=0, descending=True, stable=True).T.tolist()
    return seats(ids, [(t, k) for k, tokens in enumerate(slots) for t in tokens], capacity)


def keep_any_policy(ids, scores, capacity, policy="position"):
    return keep_with_loops(ids, scores, capacity, "score" if policy == "score" else "position")


def keep_with_loops(ids, scores, capacity, policy="position"):
    return seats(ids, in_line(ids, scores, policy), capacity)


def keep_of_the_package(ids, scores, capacity, policy="position"):
    return kept(Routing.of(torch.zeros(len(ids), int(ids.max()) + 1), ids, scores), capacity, policy)


# ----------------------------------------------------------------------------------------------------- expert_choice


def choice_by_token(scores_TE, capacity):
    found = torch.sort(scores_TE, dim=-1, descending=True)
    return found.indices[:, :capacity], found.values[:, :capacity]


def choice_columns(scores_TE, capacity):
    found = torch.sort(scores_TE, dim=0, descending=True)
    return found.indices[:capacity], found.values[:capacity]


def choice_tuple(scores_TE, capacity):
    return tuple(scores_TE.T.topk(capacity))


def choice_sort_ascending(scores_TE, capacity):
    ids = scores_TE.argsort(dim=0)[:capacity].T
    return ids, scores_TE.T.gather(1, ids)


def choice_last_ones(scores_TE, capacity):
    ids = scores_TE.argsort(dim=0)[-capacity:].T
    return ids, scores_TE.T.gather(1, ids)


def choice_unsorted(scores_TE, capacity):
    kth = scores_TE.T.topk(capacity).values[:, -1:]
    ids = (scores_TE.T >= kth).nonzero()[:, 1].view(-1, capacity)
    return ids, scores_TE.T.gather(1, ids)


def choice_sums_to_one(scores_TE, capacity):
    values, ids = scores_TE.T.topk(capacity)
    return ids, F.normalize(values, p=1, dim=-1)


def choice_new_softmax(scores_TE, capacity):
    values, ids = scores_TE.softmax(0).topk(capacity, dim=0)
    return ids.T, values.T


def choice_exclusive(scores_TE, capacity):
    left, rows = scores_TE.clone(), []
    for e in range(scores_TE.shape[1]):
        ids = left[:, e].argsort(descending=True, stable=True)[:capacity]
        left[ids] = -1
        rows.append(ids)
    ids = torch.stack(rows)
    return ids, torch.take_along_dim(scores_TE.T, ids, 1)


def choice_views_instead_of_transposing(scores_TE, capacity):
    values, ids = scores_TE.topk(capacity, dim=0)
    return ids.view(-1, capacity), values.view(-1, capacity)


def choice_normalised_again(scores_TE, capacity):
    values, ids = F.softmax(scores_TE, dim=-1).T.topk(capacity, dim=-1)
    return ids, values


def choice_with_data(scores_TE, capacity):
    values, ids = scores_TE.data.T.topk(capacity)
    return ids, values


def choice_by_sorting(scores_TE, capacity):
    ids = scores_TE.argsort(dim=0, descending=True).T[:, :capacity]
    return ids, torch.take_along_dim(scores_TE.T, ids, dim=1)


# -------------------------------------------------------------------------------------------------------------- mend


def as_written(
    logits, outputs, target, mask, bias, k, capacity, alpha, *, weigh=None, places="score", aux=None, padded_task=False
):
    """A learner's step, with the lines that the near misses get wrong as arguments."""
    z = logits.clone().requires_grad_()
    p = F.softmax(z, dim=-1)
    biased = p + bias
    ids = biased.argsort(dim=-1, descending=True)[:, :k]
    w = (weigh or plain_weights)(p, biased, ids, k)
    if places:
        w = torch.where(keep_with_loops(ids, w.detach(), capacity, places), w, 0.0)
    y = torch.einsum("tk,tkd->td", w, torch.take_along_dim(outputs, ids[..., None], dim=1))
    real = torch.ones_like(mask) if padded_task else mask
    task = F.mse_loss(y[real], target[real])
    loss = task + (aux or plain_balance)(z, ids, mask, alpha)
    loss.backward()
    return y.detach(), loss.detach(), z.grad


def plain_weights(p, biased, ids, k):
    w = torch.take_along_dim(p, ids, 1)
    return w if k == 1 else w / w.sum(1, keepdim=True)


def plain_balance(z, ids, mask, alpha):
    return alpha * aux_with_loops(z, ids, mask)


def mend_double_softmax(*args):
    def weigh(p, biased, ids, k):
        w = torch.take_along_dim(p, ids, 1)
        return w if k == 1 else F.softmax(w, dim=1)

    return as_written(*args, weigh=weigh)


def mend_forgets_balance(*args):
    return as_written(*args, aux=lambda z, ids, mask, alpha: 0.0)


def mend_logs_balance(*args):
    return as_written(*args, aux=lambda z, ids, mask, alpha: plain_balance(z, ids, mask, alpha).item())


def mend_normalises_one(*args):
    def weigh(p, biased, ids, k):
        return F.normalize(torch.take_along_dim(p, ids, 1), p=1, dim=1)

    return as_written(*args, weigh=weigh)


def mend_values_of_topk(*args):
    def weigh(p, biased, ids, k):
        w = torch.take_along_dim(biased, ids, 1)
        return w if k == 1 else w / w.sum(1, keepdim=True)

    return as_written(*args, weigh=weigh)


def mend_first_come(*args):
    return as_written(*args, places="position")


def mend_padded_balance(*args):
    return as_written(*args, aux=lambda z, ids, mask, alpha: plain_balance(z, ids, torch.ones_like(mask), alpha))


def mend_never_divides(*args):
    return as_written(*args, weigh=lambda p, biased, ids, k: torch.take_along_dim(p, ids, 1))


def mend_no_bias(logits, outputs, target, mask, bias, k, capacity, alpha):
    return as_written(logits, outputs, target, mask, bias * 0, k, capacity, alpha)


def mend_no_capacity(*args):
    return as_written(*args, places=None)


def mend_padded_task(*args):
    return as_written(*args, padded_task=True)


def mend_gives_back(logits, outputs, target, mask, bias, k, capacity, alpha):
    def weigh(p, biased, ids, k):
        w = plain_weights(p, biased, ids, k)
        left = torch.where(keep_with_loops(ids, w.detach(), capacity, "score"), w, 0.0)
        share = left / left.sum(1, keepdim=True).clamp_min(1e-30)
        return share * w.sum(1, keepdim=True)

    return as_written(logits, outputs, target, mask, bias, k, capacity, alpha, weigh=weigh, places=None)


def with_bias_on_logits(leaks):
    """A step that takes the K highest of logits + bias; the weights with or without the bias."""

    def answer(logits, outputs, target, mask, bias, k, capacity, alpha):
        z = logits.clone().requires_grad_()
        ids, p = (z + bias).topk(k).indices, ((z + bias) if leaks else z).softmax(-1)
        w = plain_weights(p, None, ids, k)
        w = w * keep_with_loops(ids, w.detach(), capacity, "score")
        y = (w[..., None] * torch.take_along_dim(outputs, ids[..., None], dim=1)).sum(1)
        loss = F.mse_loss(y[mask], target[mask]) + plain_balance(z, ids, mask, alpha)
        return y.detach(), loss.detach(), torch.autograd.grad(loss, z)[0]

    return answer


def mend_bias_on_logits(*args):
    return with_bias_on_logits(leaks=False)(*args)


def mend_bias_inside_softmax(*args):
    return with_bias_on_logits(leaks=True)(*args)


def mend_ranks_by_scores(*args):
    def weigh(p, biased, ids, k):
        raw = torch.take_along_dim(p, ids, 1)
        seated = keep_with_loops(ids, raw.detach(), args[6], "score")
        return torch.where(seated, plain_weights(p, biased, ids, k), 0.0)

    return as_written(*args, weigh=weigh, places=None)


def mend_blanks_padding(*args):
    y, loss, gradient = as_written(*args)
    return y * args[3][:, None], loss, gradient


def mend_balances_what_is_left(*args):
    def aux(z, ids, mask, alpha):
        p = z.softmax(-1)
        w = plain_weights(p, None, ids, args[5])
        left_TE = torch.zeros_like(p).scatter(1, ids, keep_with_loops(ids, w.detach(), args[6], "score").float())
        return alpha * p.shape[1] * (left_TE[mask].mean(0) * p[mask].mean(0)).sum()

    return as_written(*args, aux=aux)


def mend_forgets_alpha(*args):
    return as_written(*args, aux=lambda z, ids, mask, alpha: plain_balance(z, ids, mask, 1.0))


def mend_detaches_weights(*args):
    return as_written(*args, weigh=lambda p, biased, ids, k: plain_weights(p, biased, ids, k).detach())


def with_task(task):
    """A step whose task loss is `task(y, target, mask)`."""

    def answer(logits, outputs, target, mask, bias, k, capacity, alpha):
        z = logits.clone().requires_grad_()
        p = z.softmax(-1)
        ids = (p + bias).topk(k).indices
        w = plain_weights(p, None, ids, k)
        w = w * keep_with_loops(ids, w.detach(), capacity, "score")
        y = (w[..., None] * torch.take_along_dim(outputs, ids[..., None], dim=1)).sum(1)
        loss = task(y, target, mask) + plain_balance(z, ids, mask, alpha)
        return y.detach(), loss.detach(), torch.autograd.grad(loss, z)[0]

    return answer


def mend_sums_over_d(*args):
    return with_task(lambda y, target, mask: (y - target)[mask].square().sum(-1).mean())(*args)


def mend_divides_by_all_tokens(*args):
    return with_task(lambda y, target, mask: ((y - target).square() * mask[:, None]).mean())(*args)


def mend_by_the_package(logits, outputs, target, mask, bias, k, capacity, alpha):
    z = logits.clone().requires_grad_()
    p = z.softmax(-1)
    ids = (p + bias).topk(k).indices
    r = Routing.of(z, ids, plain_weights(p, None, ids, k))
    w = r.topk_scores_TK * kept(r, capacity, "score")
    y = sum(w[:, i, None] * outputs[torch.arange(len(z)), ids[:, i]] for i in range(k))
    loss = F.mse_loss(y[mask], target[mask]) + balance.switch_loss(r, mask, alpha=alpha)
    (gradient,) = torch.autograd.grad(loss, z)
    return y.detach(), loss.detach(), gradient


def mend_softmax_of_chosen_logits(*args):
    def weigh(p, biased, ids, k):
        w = torch.take_along_dim(p, ids, 1)
        return w if k == 1 else w.log().softmax(-1)  # the K logits, up to a constant

    return as_written(*args, weigh=weigh)


def z_with_the_maximum(logits_TE, mask_T=None):
    top_T1 = logits_TE.max(-1, keepdim=True).values
    z_T = ((logits_TE - top_T1).exp().sum(-1).log() + top_T1[:, 0]) ** 2
    return z_T.mean() if mask_T is None else (z_T * mask_T).sum() / mask_T.sum()


def aux_of_blanked_rows(logits_TE, topk_ids_TK, mask_T=None):
    w_T1 = torch.ones(len(logits_TE), 1) if mask_T is None else mask_T[:, None].float()
    f_E = (counted(topk_ids_TK, logits_TE.shape[1]) * w_T1).sum(0) / w_T1.sum()
    return logits_TE.shape[1] * (f_E * ((logits_TE * w_T1).softmax(-1) * w_T1).sum(0)).sum() / w_T1.sum()


NEAR_MISSES = {
    "03.aux_loss": [
        (aux_forgets_mask, "padding_counts"),
        (aux_masks_probabilities_only, "padding_in_the_choices"),
        (aux_masks_choices_only, "padding_in_the_probabilities"),
        (aux_multiplies_by_mask, "divides_by_all_tokens"),
        (aux_mean_over_experts, "no_factor"),
        (aux_normalises_counts, "share_of_choices"),
        (aux_variance_of_load, "choices_squared"),
        (aux_soft_load, "probabilities_squared"),
        (aux_gathered, "only_chosen_probabilities"),
        (aux_as_gshard, "first_choice_only"),
        (aux_topk_inside, "chooses_again"),
        (aux_dim_zero, "softmax_over_tokens"),
        (aux_no_softmax, "raw_logits"),
        (aux_no_grad, "cuts_graph"),
        (aux_inverts_the_mask, "mask_inverted"),
        (aux_fills_padding_with_minus_infinity, "padding_is_minus_infinity"),
        (aux_zeroes_padded_logits, "padding_is_zero"),
        (aux_divides_the_counts_by_T, "choices_over_all_tokens"),
        (aux_sums_the_probabilities, "sum_over_tokens"),
        (aux_token_by_token, "token_by_token"),
        (aux_of_the_weights, "renormalised_probabilities"),
        (aux_without_num_classes, "experts_left_out"),
    ],
    "03.z_loss": [
        (z_ignores_mask, "padding_counts"),
        (z_masked_mean, "divides_by_all_tokens"),
        (z_exp_sum_log, "overflows"),
        (z_without_square, "not_squared"),
        (z_square_of_mean, "squared_after_the_mean"),
        (z_norm, "squared_logits"),
        (z_mean_square, "mean_of_squared_logits"),
        (z_dim_zero, "over_tokens"),
        (z_after_softmax, "of_the_scores"),
        (z_sum, "summed"),
        (z_detached, "cuts_graph"),
        (z_inverts_the_mask, "mask_inverted"),
        (z_fills_padding_with_minus_infinity, "padding_is_minus_infinity"),
        (z_zeroes_padded_logits, "padding_is_zero"),
        (z_without_log, "no_log"),
        (z_loses_the_maximum, "maximum_lost"),
    ],
    "03.update_bias": [
        (bias_minus_mean, "backwards"),
        (bias_error, "proportional"),
        (bias_relative_error, "relative_error"),
        (bias_two_cases, "never_rests"),
        (bias_two_cases_up, "never_rests_upwards"),
        (bias_integer_mean, "rounded_mean"),
        (bias_from_median, "median"),
        (bias_feeds_the_starving, "only_up"),
        (bias_punishes_the_busy, "only_down"),
        (bias_starts_again, "forgets"),
        (bias_plus_equals, "in_place"),
        (bias_without_rate, "no_rate"),
        (bias_from_shares, "error_of_the_shares"),
    ],
    "03.keep": [
        (keep_in_order, "position_only"),
        (keep_always_by_score, "score_only"),
        (keep_ascending, "worst_first"),
        (keep_less_or_equal, "one_too_many"),
        (keep_strictly_less, "one_too_few"),
        (keep_overflow, "dropped_not_kept"),
        (keep_flattened, "token_by_token"),
        (keep_best_tokens, "tokens_ranked"),
        (keep_slot_by_slot, "places_for_each_slot"),
        (keep_all_or_nothing, "whole_tokens"),
        (keep_first_c, "one_queue_for_all"),
        (keep_forgets_to_unsort, "not_sorted_back"),
        (keep_any_policy, "accepts_bad_input"),
        (keep_views_instead_of_transposing, "reshaped"),
        (keep_sorts_twice, "sorted_twice"),
        (keep_sorts_each_slot, "slot_by_slot"),
    ],
    "03.expert_choice": [
        (choice_by_token, "tokens_choose"),
        (choice_columns, "transposed"),
        (choice_tuple, "scores_first"),
        (choice_sort_ascending, "least_wanted"),
        (choice_last_ones, "worst_first"),
        (choice_unsorted, "in_the_order_of_the_text"),
        (choice_sums_to_one, "renormalised"),
        (choice_new_softmax, "softmax_again"),
        (choice_exclusive, "each_token_once"),
        (choice_with_data, "cuts_graph"),
        (choice_views_instead_of_transposing, "reshaped"),
        (choice_normalised_again, "softmax_over_experts_again"),
    ],
    "03.mend": [
        (mend_double_softmax, "double_softmax"),
        (mend_forgets_balance, "balance_loss_dropped"),
        (mend_logs_balance, "balance_loss_detached"),
        (mend_normalises_one, "renormalised_k_one"),
        (mend_values_of_topk, "bias_leaks"),
        (mend_first_come, "drops_by_position"),
        (mend_padded_balance, "padding_counts"),
        (mend_never_divides, "never_renormalised"),
        (mend_no_bias, "bias_ignored"),
        (mend_no_capacity, "capacity_ignored"),
        (mend_gives_back, "dropped_weight_returned"),
        (mend_padded_task, "task_over_padding"),
        (mend_bias_on_logits, "bias_on_logits"),
        (mend_bias_inside_softmax, "bias_inside_softmax"),
        (mend_ranks_by_scores, "ranked_before_division"),
        (mend_blanks_padding, "padding_blanked"),
        (mend_balances_what_is_left, "balance_after_dropping"),
        (mend_forgets_alpha, "alpha_unread"),
        (mend_detaches_weights, "weights_detached"),
        (mend_sums_over_d, "summed_over_d"),
        (mend_divides_by_all_tokens, "task_over_all_tokens"),
    ],
}

RIGHT_ANSWERS = {
    "03.aux_loss": [aux_with_loops, aux_of_the_package, aux_of_blanked_rows],
    "03.z_loss": [z_by_hand, z_with_the_maximum],
    "03.update_bias": [bias_with_where, bias_of_the_package],
    "03.keep": [keep_with_loops, keep_of_the_package],
    "03.expert_choice": [choice_by_sorting],
    "03.mend": [as_written, mend_by_the_package, mend_softmax_of_chosen_logits],
}
