"""Lab 02: answers as learners write them, wrong ones with the mistake they must be told, and right ones."""

import math

import torch
import torch.nn.functional as nnf

# ----------------------------------------------------------------------------------------------------- swiglu_expert


def swiglu_swapped(x_TD, w_gate_FD, w_up_FD, w_down_DF):
    up = nnf.linear(x_TD, w_up_FD)
    gate = nnf.linear(x_TD, w_gate_FD)
    return nnf.linear(gate * (up * torch.sigmoid(up)), w_down_DF)


def swiglu_as_glu(x_TD, w_gate_FD, w_up_FD, w_down_DF):
    gate = 1 / (1 + torch.exp(-nnf.linear(x_TD, w_gate_FD)))
    return nnf.linear(gate * nnf.linear(x_TD, w_up_FD), w_down_DF)


def swiglu_as_geglu(x_TD, w_gate_FD, w_up_FD, w_down_DF):
    z = nnf.linear(x_TD, w_gate_FD)
    gate = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return nnf.linear(gate * nnf.linear(x_TD, w_up_FD), w_down_DF)


def swiglu_two_matrices(x_TD, w_gate_FD, w_up_FD, w_down_DF):
    hidden = nnf.linear(x_TD, w_gate_FD)
    hidden = hidden * torch.sigmoid(hidden)
    return nnf.linear(hidden, w_down_DF)


def swiglu_outside(x_TD, w_gate_FD, w_up_FD, w_down_DF):
    z = nnf.linear(x_TD, w_gate_FD) * nnf.linear(x_TD, w_up_FD)
    return nnf.linear(z * torch.sigmoid(z), w_down_DF)


def swiglu_as_tanh_geglu(x_TD, w_gate_FD, w_up_FD, w_down_DF):
    z = nnf.linear(x_TD, w_gate_FD)
    gate = z * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    return nnf.linear(gate * nnf.linear(x_TD, w_up_FD), w_down_DF)


def swiglu_as_reglu(x_TD, w_gate_FD, w_up_FD, w_down_DF):
    return nnf.linear(nnf.linear(x_TD, w_gate_FD).clamp(min=0) * nnf.linear(x_TD, w_up_FD), w_down_DF)


def swiglu_silu_twice(x_TD, w_gate_FD, w_up_FD, w_down_DF):
    gate, up = nnf.silu(nnf.linear(x_TD, torch.cat([w_gate_FD, w_up_FD]))).chunk(2, dim=-1)
    return nnf.linear(gate * up, w_down_DF)


def swiglu_with_skip(x_TD, w_gate_FD, w_up_FD, w_down_DF):
    gate = nnf.linear(x_TD, w_gate_FD)
    return nnf.linear(gate * gate.sigmoid() * nnf.linear(x_TD, w_up_FD), w_down_DF) + x_TD


@torch.no_grad()
def swiglu_without_gradients(x_TD, w_gate_FD, w_up_FD, w_down_DF):
    return nnf.linear(nnf.silu(nnf.linear(x_TD, w_gate_FD)) * nnf.linear(x_TD, w_up_FD), w_down_DF)


def swiglu_float32(x_TD, w_gate_FD, w_up_FD, w_down_DF):
    x, g, u, d = (t.to(torch.float32) for t in (x_TD, w_gate_FD, w_up_FD, w_down_DF))
    return nnf.linear(nnf.silu(nnf.linear(x, g)) * nnf.linear(x, u), d)


def swiglu_stacked(x_TD, w_gate_FD, w_up_FD, w_down_DF):
    gate, up = nnf.linear(x_TD, torch.cat([w_gate_FD, w_up_FD])).chunk(2, dim=-1)
    return nnf.linear(gate * gate.sigmoid() * up, w_down_DF)


def swiglu_einsum(x_TD, w_gate_FD, w_up_FD, w_down_DF):
    gate = torch.einsum("...d,fd->...f", x_TD, w_gate_FD)
    up = torch.einsum("...d,fd->...f", x_TD, w_up_FD)
    return torch.einsum("...f,df->...d", nnf.silu(gate) * up, w_down_DF)


# ------------------------------------------------------------------------------------------------- tokens_per_expert


def counts_to_the_maximum(topk_ids_TK, num_experts):
    if (topk_ids_TK >= num_experts).any():
        raise ValueError("no such expert")
    flat = topk_ids_TK.reshape(-1)
    longest = int(flat.max()) + 1 if flat.numel() else 0
    return torch.tensor([int((flat == e).sum()) for e in range(longest)], dtype=torch.int64)


def counts_of_what_occurs(topk_ids_TK, num_experts):
    seen = sorted(set(topk_ids_TK.flatten().tolist()))
    return torch.tensor([(topk_ids_TK == e).sum() for e in seen], dtype=torch.int64)


def counts_of_the_best(topk_ids_TK, num_experts):
    best = topk_ids_TK[..., 0]
    return torch.stack([(best == e).sum() for e in range(num_experts)])


def counts_unguarded(topk_ids_TK, num_experts):
    longest = max(num_experts, int(topk_ids_TK.max()) + 1) if topk_ids_TK.numel() else num_experts
    return nnf.one_hot(topk_ids_TK.flatten(), longest).sum(0)


def counts_only_known(topk_ids_TK, num_experts):
    return torch.stack([(topk_ids_TK == e).sum() for e in range(num_experts)])


def counts_by_plain_index(topk_ids_TK, num_experts):
    counts = [0] * num_experts
    for row in topk_ids_TK.T.tolist():
        for expert in row:
            if expert >= num_experts:
                raise ValueError("no such expert")
            counts[expert] = 1
    return torch.tensor(counts)


def counts_by_histogram(topk_ids_TK, num_experts):
    if topk_ids_TK.numel() and topk_ids_TK.max() >= num_experts:
        raise ValueError("no such expert")
    return torch.histc(topk_ids_TK.float(), bins=num_experts, min=0, max=num_experts - 1)


def counts_one_hot(topk_ids_TK, num_experts):
    if topk_ids_TK.numel() and int(topk_ids_TK.max()) >= num_experts:
        raise ValueError("no such expert")
    return nnf.one_hot(topk_ids_TK, num_experts).sum(dim=(0, 1))


def counts_scatter(topk_ids_TK, num_experts):
    ids = topk_ids_TK.flatten()
    if not bool((ids < num_experts).all()):
        raise ValueError("no such expert")
    return torch.zeros(num_experts, dtype=torch.int64).index_add_(0, ids, torch.ones_like(ids))


# -------------------------------------------------------------------------------------------------- dispatch_by_sort


def _ends(topk_ids_TK, num_experts):
    return torch.stack([(topk_ids_TK <= e).sum() for e in range(num_experts)]).int()


def dispatch_direct(x_TD, topk_ids_TK, num_experts):
    _, order = torch.sort(topk_ids_TK.reshape(-1), stable=True)
    return torch.index_select(x_TD, 0, order), order, _ends(topk_ids_TK, num_experts)


def dispatch_remainder(x_TD, topk_ids_TK, num_experts):
    _, order = torch.sort(topk_ids_TK.reshape(-1), stable=True)
    T = x_TD.shape[0]
    return x_TD.repeat(topk_ids_TK.shape[1], 1)[order] if T else x_TD, order, _ends(topk_ids_TK, num_experts)


def dispatch_by_columns(x_TD, topk_ids_TK, num_experts):
    T, K = topk_ids_TK.shape
    pairs = [(int(topk_ids_TK[t, k]), k, t) for t in range(T) for k in range(K)]
    pairs.sort()
    token = torch.tensor([t for _, _, t in pairs])
    order = torch.tensor([k * T + t for _, k, t in pairs])
    return x_TD[token], order, _ends(topk_ids_TK, num_experts)


def dispatch_gives_tokens(x_TD, topk_ids_TK, num_experts):
    token = torch.cat([torch.where(topk_ids_TK == e)[0] for e in range(num_experts)])
    return x_TD[token], token, _ends(topk_ids_TK, num_experts)


def dispatch_with_beginnings(x_TD, topk_ids_TK, num_experts):
    flat = topk_ids_TK.reshape(-1)
    order = torch.sort(flat, stable=True).indices
    starts = torch.stack([(flat < e).sum() for e in range(num_experts)]).to(torch.int32)
    return x_TD.repeat_interleave(topk_ids_TK.shape[1], dim=0)[order], order, starts


def dispatch_with_sizes(x_TD, topk_ids_TK, num_experts):
    flat = topk_ids_TK.reshape(-1)
    order = torch.sort(flat, stable=True).indices
    sizes = nnf.one_hot(flat, num_experts).sum(0).to(torch.int32)
    return x_TD.repeat_interleave(topk_ids_TK.shape[1], dim=0)[order], order, sizes


def dispatch_forgets_the_last(x_TD, topk_ids_TK, num_experts):
    flat = topk_ids_TK.reshape(-1)
    values, order = torch.sort(flat, stable=True)
    ends = torch.searchsorted(values, torch.arange(int(flat.max()) + 1), right=True, out_int32=True)
    return x_TD[torch.div(order, topk_ids_TK.shape[1], rounding_mode="floor")], order, ends


def dispatch_shuffled_ties(x_TD, topk_ids_TK, num_experts):
    flat = topk_ids_TK.reshape(-1)
    order = (flat * flat.numel() + torch.randperm(flat.numel())).argsort()
    return x_TD[order // topk_ids_TK.shape[1]], order, _ends(topk_ids_TK, num_experts)


def dispatch_keeps_values(x_TD, topk_ids_TK, num_experts):
    order, _ = torch.sort(topk_ids_TK.reshape(-1))
    return x_TD.index_select(0, order // topk_ids_TK.shape[1]), order, _ends(topk_ids_TK, num_experts)


def dispatch_true_division(x_TD, topk_ids_TK, num_experts):
    order = torch.argsort(topk_ids_TK.reshape(-1), stable=True)
    return x_TD.index_select(0, order / topk_ids_TK.shape[1]), order, _ends(topk_ids_TK, num_experts)


def dispatch_rows_unsorted(x_TD, topk_ids_TK, num_experts):
    T, K = topk_ids_TK.shape
    rows = x_TD[:, None].expand(T, K, x_TD.shape[1]).reshape(T * K, -1)
    return rows, torch.argsort(topk_ids_TK.reshape(-1), stable=True), _ends(topk_ids_TK, num_experts)


def dispatch_from_zero(x_TD, topk_ids_TK, num_experts):
    x_ND, order, ends = dispatch_loop(x_TD, topk_ids_TK, num_experts)
    return x_ND, order, nnf.pad(ends, (1, 0))


def dispatch_inclusive(x_TD, topk_ids_TK, num_experts):
    x_ND, order, ends = dispatch_loop(x_TD, topk_ids_TK, num_experts)
    return x_ND, order, ends - 1


def dispatch_detached(x_TD, topk_ids_TK, num_experts):
    return dispatch_loop(x_TD.detach(), topk_ids_TK, num_experts)


def dispatch_long_offsets(x_TD, topk_ids_TK, num_experts):
    flat = topk_ids_TK.reshape(-1)
    values, order = torch.sort(flat, stable=True)
    ends = torch.searchsorted(values, torch.arange(num_experts), right=True)
    return x_TD[torch.div(order, topk_ids_TK.shape[1], rounding_mode="floor")], order, ends


def dispatch_loop(x_TD, topk_ids_TK, num_experts):
    K = topk_ids_TK.shape[1]
    rows, order, ends = [], [], []
    for expert in range(num_experts):
        token, slot = torch.where(topk_ids_TK == expert)
        rows.append(x_TD[token])
        order.append(token * K + slot)
        ends.append(sum(len(o) for o in order))
    return torch.cat(rows), torch.cat(order), torch.tensor(ends, dtype=torch.int32)


def dispatch_repeat(x_TD, topk_ids_TK, num_experts):
    values, order = topk_ids_TK.reshape(-1).sort(stable=True)
    ends = torch.searchsorted(values, torch.arange(num_experts), right=True).int()
    return x_TD.repeat_interleave(topk_ids_TK.shape[1], dim=0)[order], order, ends


# ----------------------------------------------------------------------------------------------------------- combine


def combine_in_place(y_ND, order_N, topk_scores_TK):
    T, K = topk_scores_TK.shape
    scores = topk_scores_TK.reshape(-1).gather(0, order_N)
    out = torch.zeros((T, y_ND.shape[1]), dtype=torch.float32)
    token = torch.div(order_N, K, rounding_mode="floor")
    out[token] = out[token] + y_ND.float() * scores.unsqueeze(1)
    return out.to(y_ND.dtype)


def combine_scores_as_they_are(y_ND, order_N, topk_scores_TK):
    T, K = topk_scores_TK.shape
    out = [torch.zeros(y_ND.shape[1]) for _ in range(T)]
    for n, (pair, score) in enumerate(zip(order_N.tolist(), topk_scores_TK.flatten(), strict=True)):
        out[pair // K] = out[pair // K] + score * y_ND[n].float()
    return torch.stack(out).to(y_ND.dtype)


def combine_without_scores(y_ND, order_N, topk_scores_TK):
    T, K = topk_scores_TK.shape
    back = torch.empty(T * K, y_ND.shape[1])
    back[order_N] = y_ND.float()
    return back.view(T, K, -1).sum(1).to(y_ND.dtype)


def combine_permuting_again(y_ND, order_N, topk_scores_TK):
    T, K = topk_scores_TK.shape
    back = y_ND.float().index_select(0, order_N).reshape(T, K, -1)
    return torch.einsum("tkd,tk->td", back, topk_scores_TK).to(y_ND.dtype)


def combine_as_if_softmaxed(y_ND, order_N, topk_scores_TK):
    T, K = topk_scores_TK.shape
    back = torch.empty(T * K, y_ND.shape[1])
    back[order_N] = y_ND.float()
    total = topk_scores_TK.sum(dim=1).unsqueeze(1)
    return (torch.einsum("tkd,tk->td", back.view(T, K, -1), topk_scores_TK) / total).to(y_ND.dtype)


def combine_one_by_one(y_ND, order_N, topk_scores_TK):
    T, K = topk_scores_TK.shape
    out = y_ND.new_zeros(T, y_ND.shape[1])
    for n, pair in enumerate(order_N.tolist()):
        out[pair // K] += y_ND[n] * topk_scores_TK[pair // K, pair % K].to(y_ND.dtype)
    return out


def combine_index_add_in_bfloat16(y_ND, order_N, topk_scores_TK):
    T, K = topk_scores_TK.shape
    weighted = y_ND * topk_scores_TK.flatten()[order_N, None].to(y_ND.dtype)
    return y_ND.new_zeros(T, y_ND.shape[1]).float().index_add_(0, order_N // K, weighted.float()).to(y_ND.dtype)


def combine_inverse_for_scores(y_ND, order_N, topk_scores_TK):
    T, K = topk_scores_TK.shape
    inverse = torch.empty_like(order_N)
    inverse[order_N] = torch.arange(T * K)
    weighted = y_ND.float() * topk_scores_TK.reshape(-1)[inverse].unsqueeze(1)
    return torch.zeros(T, y_ND.shape[1]).index_add(0, order_N // K, weighted).to(y_ND.dtype)


def combine_forgets_the_result(y_ND, order_N, topk_scores_TK):
    T, K = topk_scores_TK.shape
    weighted = y_ND.float() * topk_scores_TK.flatten()[order_N].unsqueeze(1)
    out = torch.zeros(T, y_ND.shape[1], requires_grad=y_ND.requires_grad)
    out.index_add(0, order_N // K, weighted)
    return out.to(y_ND.dtype)


def combine_after_softmax(y_ND, order_N, topk_scores_TK):
    e = topk_scores_TK.exp()
    return combine_inverse(y_ND, order_N, e / e.sum(dim=1, keepdim=True))


def combine_detached(y_ND, order_N, topk_scores_TK):
    return combine_inverse(y_ND.detach(), order_N, topk_scores_TK.detach())


def combine_wide(y_ND, order_N, topk_scores_TK):
    T, K = topk_scores_TK.shape
    back = torch.empty(T * K, y_ND.shape[1])
    back[order_N] = y_ND.float()
    return torch.einsum("tkd,tk->td", back.view(T, K, -1), topk_scores_TK)


def combine_inverse(y_ND, order_N, topk_scores_TK):
    y_TKD = y_ND[order_N.argsort()].unflatten(0, tuple(topk_scores_TK.shape))
    return (y_TKD.float() * topk_scores_TK.unsqueeze(-1)).sum(dim=1).to(y_ND.dtype)


def combine_matrix(y_ND, order_N, topk_scores_TK):
    T, K = topk_scores_TK.shape
    scores_TN = torch.zeros(T, T * K)
    scores_TN[order_N // K, torch.arange(T * K)] = topk_scores_TK.flatten()[order_N]
    return (scores_TN @ y_ND.float()).to(y_ND.dtype)


# --------------------------------------------------------------------------------------------------------- moe_flops


def flops_dense(T, D, F, E, K):
    per_expert = 2 * D * F * 3
    return T * (2 * D * E + E * per_expert)


def flops_experts_only(T, D, F, E, K):
    return 6 * T * K * D * F


def flops_as_macs(T, D, F, E, K):
    weights_touched = D * E + K * (D * F + D * F + F * D)
    return T * weights_touched


def flops_without_gate(T, D, F, E, K):
    return T * (2 * D * E + K * (2 * D * F + 2 * F * D))


def flops_short_router(T, D, F, E, K):
    return T * K * (2 * D + 6 * D * F)


def flops_arguments_swapped(T, D, F, E, K):
    return flops_listed(T, F, D, E, K)


def flops_silu_too(T, D, F, E, K):
    return flops_listed(T, D, F, E, K) + T * K * F


def flops_per_token(T, D, F, E, K):
    return 2 * D * E + 6 * K * D * F


def flops_listed(T, D, F, E, K):
    products = [(T, D, E)] + [(T * K, D, 2 * F), (T * K, F, D)]
    return sum(2 * a * b * c for a, b, c in products)


def flops_factored(T, D, F, E, K):
    return 2 * T * D * (E + 3 * K * F)


NEAR_MISSES = {
    "02.swiglu_expert": [
        (swiglu_swapped, "activates_the_wrong_branch"),
        (swiglu_as_glu, "sigmoid_gate"),
        (swiglu_as_geglu, "gelu_gate"),
        (swiglu_two_matrices, "no_up_branch"),
        (swiglu_outside, "activates_the_product"),
        (swiglu_as_tanh_geglu, "tanh_gelu_gate"),
        (swiglu_as_reglu, "relu_gate"),
        (swiglu_silu_twice, "activates_both"),
        (swiglu_with_skip, "adds_the_input"),
        (swiglu_without_gradients, "cuts_graph"),
        (swiglu_float32, "wrong_dtype"),
    ],
    "02.tokens_per_expert": [
        (counts_to_the_maximum, "ends_at_the_largest_id"),
        (counts_of_what_occurs, "skips_empty_experts"),
        (counts_of_the_best, "first_choice_only"),
        (counts_unguarded, "grows"),
        (counts_only_known, "drops_bad_ids"),
        (counts_by_plain_index, "counted_once"),
        (counts_by_histogram, "wrong_dtype"),
    ],
    "02.dispatch_by_sort": [
        (dispatch_direct, "pairs_taken_for_tokens"),
        (dispatch_remainder, "modulo_tokens"),
        (dispatch_by_columns, "sorted_by_slot_first"),
        (dispatch_gives_tokens, "returns_tokens_as_order"),
        (dispatch_with_beginnings, "offsets_are_starts"),
        (dispatch_with_sizes, "counts_for_offsets"),
        (dispatch_forgets_the_last, "offsets_lose_empty_experts"),
        (dispatch_shuffled_ties, "ties_in_another_order"),
        (dispatch_keeps_values, "sorted_ids_as_order"),
        (dispatch_true_division, "fractional_tokens"),
        (dispatch_rows_unsorted, "rows_not_sorted"),
        (dispatch_from_zero, "offsets_lead_with_zero"),
        (dispatch_inclusive, "offsets_are_last_rows"),
        (dispatch_detached, "cuts_graph"),
        (dispatch_long_offsets, "offsets_int64"),
    ],
    "02.combine": [
        (combine_in_place, "duplicates_lost"),
        (combine_scores_as_they_are, "scores_not_sorted"),
        (combine_without_scores, "unweighted"),
        (combine_permuting_again, "permuted_twice"),
        (combine_as_if_softmaxed, "renormalised"),
        (combine_one_by_one, "sums_in_bfloat16"),
        (combine_index_add_in_bfloat16, "rounds_the_products"),
        (combine_inverse_for_scores, "scores_by_inverse"),
        (combine_forgets_the_result, "nothing_kept"),
        (combine_after_softmax, "softmaxed"),
        (combine_detached, "cuts_graph"),
        (combine_wide, "stays_in_float32"),
    ],
    "02.moe_flops": [
        (flops_dense, "counts_every_expert"),
        (flops_experts_only, "no_router"),
        (flops_as_macs, "multiply_adds"),
        (flops_without_gate, "two_matrices"),
        (flops_short_router, "router_over_k"),
        (flops_arguments_swapped, "router_reads_f"),
        (flops_silu_too, "counts_silu"),
        (flops_per_token, "one_token"),
    ],
}

RIGHT_ANSWERS = {
    "02.swiglu_expert": [swiglu_stacked, swiglu_einsum],
    "02.tokens_per_expert": [counts_one_hot, counts_scatter],
    "02.dispatch_by_sort": [dispatch_loop, dispatch_repeat],
    "02.combine": [combine_inverse, combine_matrix],
    "02.moe_flops": [flops_listed, flops_factored],
}
