"""Answers to lab 04 as learners might write them: wrong ones with the mistake to be found, and right ones."""

import torch
import torch.nn.functional as F

from labkit.core import metrics
from labkit.core.routing import Routing
from labkit.kernels import reference

# ----------------------------------------------------------------------------------------------------- split_experts


def split_view_everything(router_ED, gate_up_E2FD, down_EDF, m):
    E, D, width = down_EDF.shape
    if width % m:
        raise ValueError(f"{width} hidden units cannot be divided by {m}")
    router = torch.repeat_interleave(router_ED, m, dim=0)
    return router, gate_up_E2FD.view(m * E, -1, D), m * down_EDF.view(m * E, D, -1)


def split_chunk_gate_up(router_ED, gate_up_E2FD, down_EDF, m):
    if down_EDF.shape[2] % m:
        raise ValueError("m must divide F")
    ups = [part for expert in gate_up_E2FD for part in expert.chunk(m, dim=0)]
    downs = [m * part for expert in down_EDF for part in expert.chunk(m, dim=1)]
    return router_ED.repeat_interleave(m, 0), torch.stack(ups), torch.stack(downs)


def split_down_view(router_ED, gate_up_E2FD, down_EDF, m):
    router, gate_up, down = split_by_loops(router_ED, gate_up_E2FD, down_EDF, m)
    return router, gate_up, m * down_EDF.reshape(down.shape)


def split_without_factor(router_ED, gate_up_E2FD, down_EDF, m):
    router, gate_up, down = split_by_loops(router_ED, gate_up_E2FD, down_EDF, m)
    return router, gate_up, down / m


def split_shares_the_output(router_ED, gate_up_E2FD, down_EDF, m):
    router, gate_up, down = split_by_loops(router_ED, gate_up_E2FD, down_EDF, m)
    return router, gate_up, (down / m) * (1 / m)


def split_factor_at_the_entrance(router_ED, gate_up_E2FD, down_EDF, m):
    router, gate_up, down = split_by_loops(router_ED, gate_up_E2FD, down_EDF, m)
    return router, m * gate_up, down / m


def split_cat_router(router_ED, gate_up_E2FD, down_EDF, m):
    _, gate_up, down = split_by_loops(router_ED, gate_up_E2FD, down_EDF, m)
    return torch.cat([router_ED] * m), gate_up, down


def split_same_router(router_ED, gate_up_E2FD, down_EDF, m):
    _, gate_up, down = split_by_loops(router_ED, gate_up_E2FD, down_EDF, m)
    return router_ED, gate_up, down


def split_divided_logits(router_ED, gate_up_E2FD, down_EDF, m):
    router, gate_up, down = split_by_loops(router_ED, gate_up_E2FD, down_EDF, m)
    return router * (1 / m), gate_up, down


def split_first_parts_first(router_ED, gate_up_E2FD, down_EDF, m):
    E, _, width = down_EDF.shape
    if width % m:
        raise ValueError("m must divide F")
    gates, ups = gate_up_E2FD.chunk(2, dim=1)
    cut = [torch.cat([g, u], 1) for g, u in zip(gates.chunk(m, 1), ups.chunk(m, 1), strict=True)]
    return torch.cat([router_ED] * m), torch.cat(cut), torch.cat(down_EDF.chunk(m, 2)) * m


def split_every_mth_unit(router_ED, gate_up_E2FD, down_EDF, m):
    width = down_EDF.shape[2]
    if width % m:
        raise ValueError("m must divide F")
    gates, ups = gate_up_E2FD.chunk(2, dim=1)
    cut = [torch.cat([g[j::m], u[j::m]]) for g, u in zip(gates, ups, strict=True) for j in range(m)]
    downs = [m * d[:, j::m] for d in down_EDF for j in range(m)]
    return router_ED.repeat_interleave(m, 0), torch.stack(cut), torch.stack(downs)


def split_into_clones(router_ED, gate_up_E2FD, down_EDF, m):
    if down_EDF.shape[2] % m:
        raise ValueError("m must divide F")
    return tuple(torch.stack([row for row in t for _ in range(m)]) for t in (router_ED, gate_up_E2FD, down_EDF))


def split_gate_and_up_by_turns(router_ED, gate_up_E2FD, down_EDF, m):
    gates, ups = gate_up_E2FD[:, 0::2], gate_up_E2FD[:, 1::2]
    return split_by_loops(router_ED, torch.cat([gates, ups], dim=1), down_EDF, m)


def split_up_on_top(router_ED, gate_up_E2FD, down_EDF, m):
    router, gate_up, down = split_by_loops(router_ED, gate_up_E2FD, down_EDF, m)
    half = gate_up.shape[1] // 2
    return router, gate_up.roll(half, dims=1), down


def split_factor_in_up(router_ED, gate_up_E2FD, down_EDF, m):
    router, gate_up, down = split_by_loops(router_ED, gate_up_E2FD, down_EDF, m)
    gate_up[:, gate_up.shape[1] // 2 :] *= m
    return router, gate_up, down / m


def split_in_place(router_ED, gate_up_E2FD, down_EDF, m):
    if down_EDF.shape[2] % m:
        raise ValueError("m must divide F")
    with torch.no_grad():
        down_EDF *= m
    router, gate_up, down = split_by_loops(router_ED, gate_up_E2FD, down_EDF, m)
    return router, gate_up, down / m


def split_without_asking(router_ED, gate_up_E2FD, down_EDF, m):
    gates, ups = gate_up_E2FD.chunk(2, dim=1)
    pairs = zip(gates, ups, strict=True)
    size = down_EDF.shape[2] // m
    cut = [torch.cat([t[j * size : (j + 1) * size] for t in pair]) for pair in pairs for j in range(m)]
    downs = [m * d[:, j * size : (j + 1) * size] for d in down_EDF for j in range(m)]
    return router_ED.repeat_interleave(m, 0), torch.stack(cut), torch.stack(downs)


@torch.no_grad()
def split_frozen(router_ED, gate_up_E2FD, down_EDF, m):
    return split_by_loops(router_ED, gate_up_E2FD, down_EDF, m)


def split_by_loops(router_ED, gate_up_E2FD, down_EDF, m):
    width = down_EDF.shape[2]
    if width % m:
        raise ValueError(f"m = {m} does not divide F = {width}")
    routers, gate_ups, downs = [], [], []
    for e in range(len(router_ED)):
        gate, up = gate_up_E2FD[e, :width], gate_up_E2FD[e, width:]
        for units in torch.arange(width).chunk(m):
            routers.append(router_ED[e])
            gate_ups.append(torch.cat([gate[units], up[units]]))
            downs.append(down_EDF[e][:, units] * m)
    return torch.stack(routers), torch.stack(gate_ups), torch.stack(downs)


# ----------------------------------------------------------------------------------------------------- shared_expert


def _silu_expert(x, gate_up_2FD, down_DF):
    gate, up = F.linear(x, gate_up_2FD).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down_DF)


def _all_shared(x, up_S, down_S):
    total = torch.zeros_like(x)
    for up, down in zip(up_S, down_S, strict=True):
        total = total + _silu_expert(x, up, down)
    return total


def shared_in_the_routers_list(x, ids, scores, up_E, down_E, up_S, down_S):
    return reference.experts_loop(x, ids, scores, up_E, down_E) + scores.sum(1)[:, None] * _all_shared(x, up_S, down_S)


def shared_times_top_weight(x, ids, scores, up_E, down_E, up_S, down_S):
    routed = reference.experts_sorted(x, ids, scores, up_E, down_E)
    return routed + scores[:, 0, None] * _all_shared(x, up_S, down_S)


def shared_mean(x, ids, scores, up_E, down_E, up_S, down_S):
    routed = reference.experts_sorted(x, ids, scores, up_E, down_E)
    if not len(up_S):
        return routed
    return routed + torch.stack([_silu_expert(x, u, d) for u, d in zip(up_S, down_S, strict=True)]).mean(0)


def shared_mixed_half(x, ids, scores, up_E, down_E, up_S, down_S):
    return 0.5 * reference.experts_loop(x, ids, scores, up_E, down_E) + 0.5 * _all_shared(x, up_S, down_S)


def shared_only_one(x, ids, scores, up_E, down_E, up_S, down_S):
    routed = reference.experts_loop(x, ids, scores, up_E, down_E)
    return routed + _silu_expert(x, up_S[0], down_S[0]) if len(up_S) else routed


def shared_without_routed(x, ids, scores, up_E, down_E, up_S, down_S):
    return _all_shared(x, up_S, down_S)


def shared_not_there(x, ids, scores, up_E, down_E, up_S, down_S):
    return reference.experts_onehot(x, ids, scores, up_E, down_E)


def shared_on_top(x, ids, scores, up_E, down_E, up_S, down_S):
    y = reference.experts_loop(x, ids, scores, up_E, down_E)
    return y + _all_shared(y, up_S, down_S)


def shared_with_residual(x, ids, scores, up_E, down_E, up_S, down_S):
    return x + reference.experts_loop(x, ids, scores, up_E, down_E) + _all_shared(x, up_S, down_S)


def shared_equal_weights(x, ids, scores, up_E, down_E, up_S, down_S):
    routed = reference.experts_loop(x, ids, torch.ones_like(scores), up_E, down_E)
    return routed + _all_shared(x, up_S, down_S)


def shared_one_into_the_next(x, ids, scores, up_E, down_E, up_S, down_S):
    y = reference.experts_loop(x, ids, scores, up_E, down_E)
    if len(up_S) == 0:
        return y
    z = x
    for up, down in zip(up_S, down_S, strict=True):
        z = _silu_expert(z, up, down)
    return y + z


def shared_overwritten(x, ids, scores, up_E, down_E, up_S, down_S):
    routed = out = reference.experts_loop(x, ids, scores, up_E, down_E)
    for up, down in zip(up_S, down_S, strict=True):
        out = routed + _silu_expert(x, up, down)
    return out


def shared_inside_the_loop(x, ids, scores, up_E, down_E, up_S, down_S):
    out = torch.zeros_like(x)
    for k in range(ids.shape[1]):
        out = out + reference.experts_loop(x, ids[:, k : k + 1], scores[:, k : k + 1], up_E, down_E)
        out = out + _all_shared(x, up_S, down_S)
    return out


def shared_flattened(x, ids, scores, up_E, down_E, up_S, down_S):
    routed = reference.experts_loop(x, ids, scores, up_E, down_E)
    return routed + _silu_expert(x, up_S.flatten(0, 1), torch.cat(list(down_S), dim=1)) if len(up_S) else routed


def shared_beside_normalised_weights(x, ids, scores, up_E, down_E, up_S, down_S):
    return reference.experts_loop(x, ids, F.normalize(scores, p=1, dim=1), up_E, down_E) + _all_shared(x, up_S, down_S)


def shared_with_what_is_left(x, ids, scores, up_E, down_E, up_S, down_S):
    left = 1 - scores.sum(1, keepdim=True)
    return reference.experts_loop(x, ids, scores, up_E, down_E) + left * _all_shared(x, up_S, down_S)


def shared_detached(x, ids, scores, up_E, down_E, up_S, down_S):
    return reference.experts_loop(x, ids, scores, up_E, down_E) + _all_shared(x, up_S, down_S).detach()


def shared_as_one_wide(x, ids, scores, up_E, down_E, up_S, down_S):
    S, D, width = down_S.shape
    wide_up = up_S.unflatten(1, (2, width)).transpose(0, 1).reshape(2 * S * width, D)
    wide_down = down_S.transpose(0, 1).reshape(D, S * width)
    return _silu_expert(x, wide_up, wide_down) + reference.experts_onehot(x, ids, scores, up_E, down_E)


def shared_as_experts_of_weight_one(x, ids, scores, up_E, down_E, up_S, down_S):
    E, S, T = len(up_E), len(up_S), len(x)
    ids = torch.cat([ids, torch.arange(E, E + S).repeat(T, 1)], dim=1)
    scores = torch.cat([scores, torch.ones(T, S)], dim=1)
    return reference.experts_loop(x, ids, scores, torch.cat([up_E, up_S]), torch.cat([down_E, down_S]))


# ------------------------------------------------------------------------------------------------ group_limited_top_k


def _group_mask(values, num_groups, top_groups, group_score):
    grouped = values.reshape(len(values), num_groups, -1).sort(dim=-1, descending=True).values
    worth = grouped[..., 0] + grouped[..., 1] if group_score == "top2_sum" else grouped[..., 0]
    mask = torch.zeros(len(values), num_groups)
    mask[torch.arange(len(values))[:, None], worth.topk(top_groups).indices] = 1
    return mask.repeat_interleave(values.shape[1] // num_groups, dim=1).bool()


def groups_fill_zero(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    biased = scores_TE + bias_E
    mask = _group_mask(biased, num_groups, top_groups, group_score)
    ids = torch.where(mask, biased, torch.zeros_like(biased)).topk(k).indices
    return ids, scores_TE.gather(1, ids)


def groups_take_values(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    biased = scores_TE + bias_E
    mask = _group_mask(biased, num_groups, top_groups, group_score)
    values, ids = biased.masked_fill(~mask, -1e9).topk(k)
    return ids, values


def groups_judged_by_scores(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    mask = _group_mask(scores_TE, num_groups, top_groups, group_score)
    ids = (scores_TE + bias_E).masked_fill(~mask, float("-inf")).topk(k).indices
    return ids, torch.take_along_dim(scores_TE, ids, 1)


def groups_then_plain_scores(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    mask = _group_mask(scores_TE + bias_E, num_groups, top_groups, group_score)
    values, ids = scores_TE.masked_fill(~mask, float("-inf")).topk(k)
    return ids, values


def groups_forget_the_bias(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    mask = _group_mask(scores_TE, num_groups, top_groups, group_score)
    values, ids = scores_TE.masked_fill(~mask, float("-inf")).topk(k)
    return ids, values


def groups_as_in_v2(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    return groups_by_mask(scores_TE, bias_E, k, num_groups, top_groups, "max")


def groups_as_in_v3(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    return groups_by_mask(scores_TE, bias_E, k, num_groups, top_groups, "top2_sum")


def groups_sum_of_all(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    biased = scores_TE + bias_E
    grouped = biased.view(len(biased), num_groups, -1)
    worth = grouped.sum(-1) if group_score == "top2_sum" else grouped.max(-1).values
    mask = torch.zeros_like(worth).scatter(1, worth.topk(top_groups).indices, 1.0).bool()
    mask = mask.repeat_interleave(grouped.shape[-1], dim=1)
    ids = biased.masked_fill(~mask, float("-inf")).topk(k).indices
    return ids, scores_TE.gather(1, ids)


def groups_modulo(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    E = scores_TE.shape[1]
    order = torch.arange(E).view(-1, num_groups).T.flatten()
    ids, _ = groups_by_mask(scores_TE[:, order], bias_E[order], k, num_groups, top_groups, group_score)
    ids = order[ids]
    return ids, scores_TE.gather(1, ids)


def groups_unlimited(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    ids = (scores_TE + bias_E).argsort(dim=1, descending=True)[:, :k]
    return ids, scores_TE.gather(1, ids)


def groups_resorted(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    ids, _ = groups_by_mask(scores_TE, bias_E, k, num_groups, top_groups, group_score)
    values, order = scores_TE.gather(1, ids).sort(dim=1, descending=True)
    return ids.gather(1, order), values


def groups_values_first(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    ids, values = groups_by_mask(scores_TE, bias_E, k, num_groups, top_groups, group_score)
    return values, ids


def groups_minus_one(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    biased = scores_TE + bias_E
    mask = _group_mask(biased, num_groups, top_groups, group_score)
    ids = biased.masked_fill(~mask, -1).topk(k).indices
    return ids, scores_TE.gather(1, ids)


def groups_bias_after_the_mask(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    mask = _group_mask(scores_TE + bias_E, num_groups, top_groups, group_score)
    ids = (scores_TE * mask + bias_E).topk(k).indices
    return ids, scores_TE.gather(1, ids)


def groups_upside_down(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    biased = scores_TE + bias_E
    mask = _group_mask(biased, num_groups, top_groups, group_score)
    ids = biased.masked_fill(mask, float("-inf")).topk(k).indices
    return ids, scores_TE.gather(1, ids)


def groups_side_by_side(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    grouped = (scores_TE + bias_E).view(len(scores_TE), num_groups, -1)
    worth = grouped.topk(2, dim=-1).values.sum(-1) if group_score == "top2_sum" else grouped.amax(-1)
    groups = worth.topk(top_groups).indices
    ids = torch.stack([row[g].flatten() for row, g in zip(grouped, groups, strict=True)]).topk(k).indices
    return ids, scores_TE.gather(1, ids)


def groups_as_the_paper_counts(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    biased = scores_TE + bias_E
    grouped = biased.view(len(biased), num_groups, -1)
    best = 1 if group_score == "max" else min(max(k // top_groups, 1), grouped.shape[-1])
    worth = grouped.topk(best, dim=-1).values.sum(-1)
    mask = torch.zeros_like(worth).scatter(1, worth.topk(top_groups).indices, 1.0).bool()
    mask = mask.repeat_interleave(grouped.shape[-1], dim=1)
    ids = biased.masked_fill(~mask, float("-inf")).topk(k).indices
    return ids, scores_TE.gather(1, ids)


def groups_weights_of_sum_one(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    ids, values = groups_by_mask(scores_TE, bias_E, k, num_groups, top_groups, group_score)
    return ids, F.normalize(values, p=1, dim=1)


def groups_in_the_order_of_numbers(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    ids, _ = groups_by_mask(scores_TE, bias_E, k, num_groups, top_groups, group_score)
    chosen = torch.zeros_like(scores_TE, dtype=torch.bool).scatter(1, ids, True)
    ids = chosen.nonzero()[:, 1].view(ids.shape)
    return ids, scores_TE[chosen].view(ids.shape)


@torch.no_grad()
def groups_no_grad(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    return groups_by_mask(scores_TE, bias_E, k, num_groups, top_groups, group_score)


def groups_by_mask(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    biased = scores_TE + bias_E
    mask = _group_mask(biased, num_groups, top_groups, group_score)
    ids = torch.where(mask, biased, torch.full_like(biased, -1e30)).argsort(dim=1, descending=True)[:, :k]
    return ids, torch.take_along_dim(scores_TE, ids, dim=1)


def groups_by_our_kernel(scores_TE, bias_E, k, num_groups, top_groups, group_score="top2_sum"):
    groups = {"num_groups": num_groups, "top_groups": top_groups, "group_score": group_score}
    ids = reference.select(scores_TE, k, bias_E=bias_E, **groups)
    return ids, scores_TE.gather(1, ids)


# -------------------------------------------------------------------------------------------------------------- lift


def _table(ids, domain, E, G):
    table = torch.zeros(G, E)
    for row, d in zip(ids.tolist(), domain.tolist(), strict=True):
        for e in row:
            table[d, e] += 1
    return table


def lift_divides_by_zero(topk_ids_TK, domain_T, num_experts, num_domains):
    table = _table(topk_ids_TK, domain_T, num_experts, num_domains)
    return (table / table.sum(1)[:, None]) / (table.sum(0) / table.sum())[None]


def lift_clamped(topk_ids_TK, domain_T, num_experts, num_domains):
    table = _table(topk_ids_TK, domain_T, num_experts, num_domains)
    return (table / table.sum(1)[:, None]) / (table.sum(0) / table.sum()).clamp_min(1e-9)


def _one_if_unused(values, table):
    return torch.where(table.sum(0) > 0, values, torch.ones_like(values))


def lift_against_even(topk_ids_TK, domain_T, num_experts, num_domains):
    table = _table(topk_ids_TK, domain_T, num_experts, num_domains)
    return _one_if_unused(table / table.sum(1, keepdim=True) / (1 / num_experts), table)


def lift_conditional(topk_ids_TK, domain_T, num_experts, num_domains):
    table = _table(topk_ids_TK, domain_T, num_experts, num_domains)
    return _one_if_unused(table / table.sum(1, keepdim=True), table)


def lift_other_way(topk_ids_TK, domain_T, num_experts, num_domains):
    table = _table(topk_ids_TK, domain_T, num_experts, num_domains)
    return _one_if_unused(table / table.sum(0, keepdim=True), table)


def lift_domains_equal(topk_ids_TK, domain_T, num_experts, num_domains):
    table = _table(topk_ids_TK, domain_T, num_experts, num_domains)
    share = table / table.sum(1, keepdim=True)
    return _one_if_unused(share / share.mean(0, keepdim=True), table)


def lift_log(topk_ids_TK, domain_T, num_experts, num_domains):
    return torch.log(lift_observed_expected(topk_ids_TK, domain_T, num_experts, num_domains))


def lift_experts_by_domains(topk_ids_TK, domain_T, num_experts, num_domains):
    return lift_observed_expected(topk_ids_TK, domain_T, num_experts, num_domains).t().contiguous()


def lift_top_one(topk_ids_TK, domain_T, num_experts, num_domains):
    return lift_observed_expected(topk_ids_TK[:, 0:1], domain_T, num_experts, num_domains)


def lift_adds_once(topk_ids_TK, domain_T, num_experts, num_domains):
    table = torch.zeros(num_domains, num_experts)
    for k in range(topk_ids_TK.shape[1]):
        table[domain_T, topk_ids_TK[:, k]] += 1
    return _one_if_unused(table / table.sum(1, keepdim=True) / (table.sum(0) / table.sum()), table)


def lift_of_tokens_over_choices(topk_ids_TK, domain_T, num_experts, num_domains):
    table = _table(topk_ids_TK, domain_T, num_experts, num_domains)
    tokens = torch.bincount(domain_T, minlength=num_domains)[:, None]
    return _one_if_unused(table / tokens / (table.sum(0) / table.sum()), table)


def lift_of_choices_over_tokens(topk_ids_TK, domain_T, num_experts, num_domains):
    table = _table(topk_ids_TK, domain_T, num_experts, num_domains)
    return _one_if_unused(table / table.sum(1, keepdim=True) / (table.sum(0) / len(domain_T)), table)


def lift_columns_first(topk_ids_TK, domain_T, num_experts, num_domains):
    table = _table(topk_ids_TK, domain_T, num_experts, num_domains)
    return _one_if_unused(table / table.sum(0, keepdim=True) / (table.sum(0) / table.sum()), table)


def lift_by_the_size_of_the_domain(topk_ids_TK, domain_T, num_experts, num_domains):
    table = _table(topk_ids_TK, domain_T, num_experts, num_domains)
    size = table.sum(1, keepdim=True)
    return _one_if_unused(table / size / (size / table.sum()), table)


def lift_one_against_the_others(topk_ids_TK, domain_T, num_experts, num_domains):
    table = _table(topk_ids_TK, domain_T, num_experts, num_domains)
    rows = []
    for d in range(num_domains):
        others = table.sum(0) - table[d]
        rows.append(table[d] / table[d].sum() / (others / others.sum()))
    return _one_if_unused(torch.stack(rows), table)


def lift_without_zeros(topk_ids_TK, domain_T, num_experts, num_domains):
    table = _table(topk_ids_TK, domain_T, num_experts, num_domains)
    lift = table / table.sum(1, keepdim=True) / (table.sum(0) / table.sum())
    return torch.where(table > 0, lift, torch.ones_like(lift))


def lift_observed_expected(topk_ids_TK, domain_T, num_experts, num_domains):
    table = _table(topk_ids_TK, domain_T, num_experts, num_domains)
    expected = table.sum(1)[:, None] * table.sum(0)[None] / table.sum()
    return _one_if_unused(table / expected, table)


def lift_by_our_metric(topk_ids_TK, domain_T, num_experts, num_domains):
    names = tuple(f"{d:03d}" for d in domain_T.tolist())
    logits = torch.zeros(len(topk_ids_TK), num_experts)
    record = Routing.of(logits, topk_ids_TK, torch.ones(topk_ids_TK.shape), domains=names)
    return metrics.lift_by_domain(record).lift_GE


# ---------------------------------------------------------------------------------------------------------- ablation


def ablation_plain_mean(loss_T, loss_without_T, domain_T, num_domains):
    return torch.stack([(loss_without_T - loss_T)[domain_T == d].mean() for d in range(num_domains)])


def ablation_zero_filled(loss_T, loss_without_T, domain_T, num_domains):
    rise = torch.nan_to_num(loss_without_T - loss_T)
    return torch.stack([rise[domain_T == d].mean() for d in range(num_domains)])


def ablation_before_minus_after(loss_T, loss_without_T, domain_T, num_domains):
    return -ablation_by_counting(loss_T, loss_without_T, domain_T, num_domains)


def ablation_totals(loss_T, loss_without_T, domain_T, num_domains):
    return torch.stack([(loss_without_T - loss_T)[domain_T == d].nansum() for d in range(num_domains)])


def ablation_shared_denominator(loss_T, loss_without_T, domain_T, num_domains):
    real = ~torch.isnan(loss_without_T)
    return ablation_totals(loss_T, loss_without_T, domain_T, num_domains) / real.sum()


def ablation_overall(loss_T, loss_without_T, domain_T, num_domains):
    return torch.full((num_domains,), (loss_without_T - loss_T).nanmean().item())


def ablation_per_cent(loss_T, loss_without_T, domain_T, num_domains):
    before = torch.stack([loss_T[domain_T == d].nanmean() for d in range(num_domains)])
    return ablation_by_counting(loss_T, loss_without_T, domain_T, num_domains) / before


def ablation_abs(loss_T, loss_without_T, domain_T, num_domains):
    rise = torch.abs(loss_without_T - loss_T)
    return torch.stack([rise[domain_T == d].nanmean() for d in range(num_domains)])


def ablation_turned_round(loss_T, loss_without_T, domain_T, num_domains):
    fall = loss_T - loss_without_T
    return torch.stack([fall[domain_T == d].mean() for d in range(num_domains)])


def ablation_masked_mean(loss_T, loss_without_T, domain_T, num_domains):
    rise = torch.nan_to_num(loss_without_T - loss_T)
    return torch.stack([(rise * (domain_T == d)).mean() for d in range(num_domains)])


def ablation_share_of_each_loss(loss_T, loss_without_T, domain_T, num_domains):
    rise = (loss_without_T - loss_T) / loss_T
    return torch.stack([rise[domain_T == d].nanmean() for d in range(num_domains)])


def ablation_relu(loss_T, loss_without_T, domain_T, num_domains):
    rise = torch.relu(loss_without_T - loss_T)
    return torch.stack([rise[domain_T == d].nanmean() for d in range(num_domains)])


def ablation_cleans_its_input(loss_T, loss_without_T, domain_T, num_domains):
    real = ~loss_T.isnan()
    loss_T[~real] = loss_without_T[~real] = 0.0
    rise = loss_without_T - loss_T
    return torch.stack([rise[real & (domain_T == d)].mean() for d in range(num_domains)])


def ablation_by_counting(loss_T, loss_without_T, domain_T, num_domains):
    keep = ~torch.isnan(loss_T)
    rise, domain = (loss_without_T - loss_T)[keep], domain_T[keep]
    total = torch.zeros(num_domains).index_add(0, domain, rise)
    return total / torch.bincount(domain, minlength=num_domains)


def ablation_difference_of_means(loss_T, loss_without_T, domain_T, num_domains):
    rows = []
    for d in range(num_domains):
        rows.append(loss_without_T[domain_T == d].nanmean() - loss_T[domain_T == d].nanmean())
    return torch.stack(rows)


NEAR_MISSES = {
    "04.split_experts": [
        (split_view_everything, "all_reshaped"),
        (split_chunk_gate_up, "gate_up_in_one"),
        (split_down_view, "down_reshaped"),
        (split_without_factor, "not_scaled"),
        (split_shares_the_output, "divided"),
        (split_factor_at_the_entrance, "scaled_before_the_gate"),
        (split_cat_router, "router_tiled"),
        (split_same_router, "router_kept"),
        (split_divided_logits, "router_scaled"),
        (split_first_parts_first, "part_major"),
        (split_every_mth_unit, "strided"),
        (split_into_clones, "copies"),
        (split_without_asking, "accepts_bad_input"),
        (split_frozen, "cuts_graph"),
        (split_gate_and_up_by_turns, "rows_alternating"),
        (split_up_on_top, "up_before_gate"),
        (split_factor_in_up, "scaled_up"),
        (split_in_place, "changes_input"),
    ],
    "04.shared_expert": [
        (shared_in_the_routers_list, "weighted"),
        (shared_times_top_weight, "weighted_by_the_best"),
        (shared_mean, "averaged"),
        (shared_mixed_half, "halved"),
        (shared_only_one, "first_only"),
        (shared_not_there, "shared_missing"),
        (shared_without_routed, "routed_missing"),
        (shared_on_top, "in_a_row"),
        (shared_with_residual, "adds_the_input"),
        (shared_equal_weights, "routed_unweighted"),
        (shared_detached, "cuts_graph"),
        (shared_one_into_the_next, "chained"),
        (shared_overwritten, "last_only"),
        (shared_inside_the_loop, "once_a_choice"),
        (shared_flattened, "wide_in_one"),
        (shared_beside_normalised_weights, "renormalised"),
        (shared_with_what_is_left, "multiplied"),
    ],
    "04.group_limited_top_k": [
        (groups_fill_zero, "zero_mask"),
        (groups_take_values, "biased_weights"),
        (groups_judged_by_scores, "groups_without_bias"),
        (groups_then_plain_scores, "bias_for_groups_only"),
        (groups_forget_the_bias, "bias_ignored"),
        (groups_as_in_v2, "always_max"),
        (groups_as_in_v3, "always_top2"),
        (groups_sum_of_all, "whole_sum"),
        (groups_modulo, "interleaved"),
        (groups_unlimited, "no_limit"),
        (groups_resorted, "sorted_by_score"),
        (groups_values_first, "scores_first"),
        (groups_no_grad, "cuts_graph"),
        (groups_minus_one, "finite_mask"),
        (groups_bias_after_the_mask, "masked_before_bias"),
        (groups_upside_down, "inverted"),
        (groups_side_by_side, "local_ids"),
        (groups_as_the_paper_counts, "k_over_m"),
        (groups_weights_of_sum_one, "renormalised"),
        (groups_in_the_order_of_numbers, "other_order"),
    ],
    "04.lift": [
        (lift_divides_by_zero, "unused_is_nan"),
        (lift_clamped, "unused_is_zero"),
        (lift_against_even, "over_uniform"),
        (lift_conditional, "share_only"),
        (lift_other_way, "of_the_domain"),
        (lift_domains_equal, "mean_of_domains"),
        (lift_log, "logarithm"),
        (lift_experts_by_domains, "transposed"),
        (lift_top_one, "favourite_only"),
        (lift_adds_once, "lost_choices"),
        (lift_of_tokens_over_choices, "tokens_above"),
        (lift_of_choices_over_tokens, "tokens_below"),
        (lift_columns_first, "normalised_by_expert"),
        (lift_by_the_size_of_the_domain, "over_domain"),
        (lift_one_against_the_others, "against_the_rest"),
        (lift_without_zeros, "empty_cell_is_one"),
    ],
    "04.ablation": [
        (ablation_plain_mean, "nan_spreads"),
        (ablation_zero_filled, "nan_is_zero"),
        (ablation_before_minus_after, "backwards"),
        (ablation_totals, "summed"),
        (ablation_shared_denominator, "over_all_tokens"),
        (ablation_overall, "one_number"),
        (ablation_per_cent, "relative"),
        (ablation_abs, "absolute"),
        (ablation_turned_round, "backwards_with_nan"),
        (ablation_masked_mean, "over_every_token"),
        (ablation_share_of_each_loss, "relative_by_token"),
        (ablation_relu, "harm_only"),
        (ablation_cleans_its_input, "changes_input"),
    ],
}

RIGHT_ANSWERS = {
    "04.split_experts": [split_by_loops],
    "04.shared_expert": [shared_as_one_wide, shared_as_experts_of_weight_one],
    "04.group_limited_top_k": [groups_by_mask, groups_by_our_kernel],
    "04.lift": [lift_observed_expected, lift_by_our_metric],
    "04.ablation": [ablation_by_counting, ablation_difference_of_means],
}
