"""The mistaken implementations that lab 02's checks know by name. Every one is wrong on purpose."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

# ----------------------------------------------------------------------------------------------------- swiglu_expert


def swiglu_on_up(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (nnf.silu(x @ up.T) * (x @ gate.T)) @ down.T


def swiglu_sigmoid(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return ((x @ gate.T).sigmoid() * (x @ up.T)) @ down.T


def swiglu_gelu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (nnf.gelu(x @ gate.T) * (x @ up.T)) @ down.T


def swiglu_tanh_gelu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (nnf.gelu(x @ gate.T, approximate="tanh") * (x @ up.T)) @ down.T


def swiglu_relu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return ((x @ gate.T).relu() * (x @ up.T)) @ down.T


def swiglu_both(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (nnf.silu(x @ gate.T) * nnf.silu(x @ up.T)) @ down.T


def swiglu_residual(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return x + (nnf.silu(x @ gate.T) * (x @ up.T)) @ down.T


def swiglu_no_up(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return nnf.silu(x @ gate.T) @ down.T


def swiglu_late(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return nnf.silu((x @ gate.T) * (x @ up.T)) @ down.T


def swiglu_added(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (nnf.silu(x @ gate.T) + x @ up.T) @ down.T


def swiglu_untransposed(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (nnf.silu(x @ gate) * (x @ up)) @ down


# ------------------------------------------------------------------------------------------------- tokens_per_expert


def _need_in_range(topk_ids: Tensor, num_experts: int) -> None:
    if topk_ids.numel() and not 0 <= int(topk_ids.min()) <= int(topk_ids.max()) < num_experts:
        raise ValueError(f"expert ids must lie in [0, {num_experts})")


def counts_short(topk_ids: Tensor, num_experts: int) -> Tensor:
    return torch.bincount(topk_ids.flatten())


def counts_grow(topk_ids: Tensor, num_experts: int) -> Tensor:
    return torch.bincount(topk_ids.flatten(), minlength=num_experts)


def counts_skip_empty(topk_ids: Tensor, num_experts: int) -> Tensor:
    return topk_ids.flatten().unique(return_counts=True)[1]


def counts_first_choice(topk_ids: Tensor, num_experts: int) -> Tensor:
    return torch.bincount(topk_ids[:, 0], minlength=num_experts)


def counts_once(topk_ids: Tensor, num_experts: int) -> Tensor:
    _need_in_range(topk_ids, num_experts)
    counts = torch.zeros(num_experts, dtype=torch.int64)
    counts[topk_ids.flatten()] += 1
    return counts


def counts_shares(topk_ids: Tensor, num_experts: int) -> Tensor:
    _need_in_range(topk_ids, num_experts)
    counts = torch.bincount(topk_ids.flatten(), minlength=num_experts).float()
    return counts / counts.sum()


def counts_clamped(topk_ids: Tensor, num_experts: int) -> Tensor:
    return torch.bincount(topk_ids.flatten().clamp(0, num_experts - 1), minlength=num_experts)


def counts_dropped(topk_ids: Tensor, num_experts: int) -> Tensor:
    return torch.bincount(topk_ids.flatten(), minlength=num_experts)[:num_experts]


# -------------------------------------------------------------------------------------------------- dispatch_by_sort


def _offsets(topk_ids: Tensor, num_experts: int) -> Tensor:
    return torch.bincount(topk_ids.flatten(), minlength=num_experts).cumsum(0).int()


def dispatch_pairs_as_tokens(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    order = topk_ids.flatten().argsort(stable=True)
    return x[order], order, _offsets(topk_ids, num_experts)


def dispatch_modulo(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    order = topk_ids.flatten().argsort(stable=True)
    return x[order % len(x)], order, _offsets(topk_ids, num_experts)


def dispatch_modulo_k(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    order = topk_ids.flatten().argsort(stable=True)
    return x[order % topk_ids.shape[1]], order, _offsets(topk_ids, num_experts)


def dispatch_slot_major(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    order = topk_ids.T.flatten().argsort(stable=True)
    return x[order % len(x)], order, _offsets(topk_ids, num_experts)


def dispatch_token_index(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    token = topk_ids.flatten().argsort(stable=True) // topk_ids.shape[1]
    return x[token], token, _offsets(topk_ids, num_experts)


def dispatch_ties_reversed(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    order = topk_ids.flatten().flip(0).argsort(stable=True)
    order = topk_ids.numel() - 1 - order
    return x[order // topk_ids.shape[1]], order, _offsets(topk_ids, num_experts)


def dispatch_descending(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    order = topk_ids.flatten().argsort(descending=True, stable=True)
    return x[order // topk_ids.shape[1]], order, _offsets(topk_ids, num_experts)


def dispatch_inverse(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    order = topk_ids.flatten().argsort(stable=True)
    return x[order // topk_ids.shape[1]], order.argsort(), _offsets(topk_ids, num_experts)


def _right_rows(x: Tensor, topk_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    order = topk_ids.flatten().argsort(stable=True)
    return x[order // topk_ids.shape[1]], order, topk_ids.flatten()


def dispatch_starts(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, order, ids = _right_rows(x, topk_ids)
    counts = torch.bincount(ids, minlength=num_experts)
    return rows, order, (counts.cumsum(0) - counts).int()


def dispatch_counts(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, order, ids = _right_rows(x, topk_ids)
    return rows, order, torch.bincount(ids, minlength=num_experts).int()


def dispatch_short(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, order, ids = _right_rows(x, topk_ids)
    return rows, order, torch.bincount(ids).cumsum(0).int()


def dispatch_leading_zero(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, order, ids = _right_rows(x, topk_ids)
    ends = torch.bincount(ids, minlength=num_experts).cumsum(0).int()
    return rows, order, torch.cat([ends.new_zeros(1), ends])


def dispatch_last_rows(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, order, ids = _right_rows(x, topk_ids)
    return rows, order, (torch.bincount(ids, minlength=num_experts).cumsum(0) - 1).int()


def dispatch_unsorted_rows(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    order = topk_ids.flatten().argsort(stable=True)
    return x.repeat_interleave(topk_ids.shape[1], 0), order, _offsets(topk_ids, num_experts)


def dispatch_sorted_ids(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    order = topk_ids.flatten().sort(stable=True).values
    return x[order // topk_ids.shape[1]], order, _offsets(topk_ids, num_experts)


def dispatch_fractions(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    order = topk_ids.flatten().argsort(stable=True)
    return x[order / topk_ids.shape[1]], order, _offsets(topk_ids, num_experts)


def dispatch_wide_offsets(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, order, ids = _right_rows(x, topk_ids)
    return rows, order, torch.bincount(ids, minlength=num_experts).cumsum(0)


# ----------------------------------------------------------------------------------------------------------- combine


def combine_overwrites(y: Tensor, order: Tensor, topk_scores: Tensor) -> Tensor:
    out = torch.zeros(topk_scores.shape[0], y.shape[1])
    out[order // topk_scores.shape[1]] += y.float() * topk_scores.flatten()[order, None]
    return out.to(y.dtype)


def combine_unsorted_scores(y: Tensor, order: Tensor, topk_scores: Tensor) -> Tensor:
    out = torch.zeros(topk_scores.shape[0], y.shape[1])
    return out.index_add(0, order // topk_scores.shape[1], y.float() * topk_scores.reshape(-1, 1)).to(y.dtype)


def combine_unweighted(y: Tensor, order: Tensor, topk_scores: Tensor) -> Tensor:
    out = torch.zeros(topk_scores.shape[0], y.shape[1])
    return out.index_add(0, order // topk_scores.shape[1], y.float()).to(y.dtype)


def combine_mean(y: Tensor, order: Tensor, topk_scores: Tensor) -> Tensor:
    return (_right_sum(y, order, topk_scores) / topk_scores.shape[1]).to(y.dtype)


def combine_renormalised(y: Tensor, order: Tensor, topk_scores: Tensor) -> Tensor:
    return _right_sum(y, order, topk_scores / topk_scores.sum(1, keepdim=True)).to(y.dtype)


def combine_permuted_twice(y: Tensor, order: Tensor, topk_scores: Tensor) -> Tensor:
    y_TKD = y[order].view(*topk_scores.shape, y.shape[1])
    return (y_TKD.float() * topk_scores[:, :, None]).sum(1).to(y.dtype)


def combine_not_undone(y: Tensor, order: Tensor, topk_scores: Tensor) -> Tensor:
    y_TKD = y.view(*topk_scores.shape, y.shape[1])
    return (y_TKD.float() * topk_scores[:, :, None]).sum(1).to(y.dtype)


def combine_modulo(y: Tensor, order: Tensor, topk_scores: Tensor) -> Tensor:
    out = torch.zeros(topk_scores.shape[0], y.shape[1])
    return out.index_add(0, order % len(out), y.float() * topk_scores.flatten()[order, None]).to(y.dtype)


def combine_narrow(y: Tensor, order: Tensor, topk_scores: Tensor) -> Tensor:
    out = torch.zeros(topk_scores.shape[0], y.shape[1], dtype=y.dtype)
    weighted = y.float() * topk_scores.flatten()[order, None]
    for row, token in zip(weighted.to(y.dtype), (order // topk_scores.shape[1]).tolist(), strict=True):
        out[token] += row  # rounds after every addition, as index_add in bfloat16 does on a GPU
    return out


def combine_rounded_products(y: Tensor, order: Tensor, topk_scores: Tensor) -> Tensor:
    out = torch.zeros(topk_scores.shape[0], y.shape[1])
    weighted = (y.float() * topk_scores.flatten()[order, None]).to(y.dtype)
    return out.index_add(0, order // topk_scores.shape[1], weighted.float()).to(y.dtype)


def combine_inverse_scores(y: Tensor, order: Tensor, topk_scores: Tensor) -> Tensor:
    out = torch.zeros(topk_scores.shape[0], y.shape[1])
    scores = topk_scores.flatten()[order.argsort(), None]
    return out.index_add(0, order // topk_scores.shape[1], y.float() * scores).to(y.dtype)


def combine_nothing_kept(y: Tensor, order: Tensor, topk_scores: Tensor) -> Tensor:
    return y.new_zeros(topk_scores.shape[0], y.shape[1])


def combine_softmaxed(y: Tensor, order: Tensor, topk_scores: Tensor) -> Tensor:
    return _right_sum(y, order, topk_scores.softmax(dim=1)).to(y.dtype)


def combine_stays_float32(y: Tensor, order: Tensor, topk_scores: Tensor) -> Tensor:
    return _right_sum(y, order, topk_scores)


def _right_sum(y: Tensor, order: Tensor, topk_scores: Tensor) -> Tensor:
    out = torch.zeros(topk_scores.shape[0], y.shape[1])
    return out.index_add(0, order // topk_scores.shape[1], y.float() * topk_scores.flatten()[order, None])


# --------------------------------------------------------------------------------------------------------- moe_flops


def flops_every_expert(T: int, D: int, F: int, E: int, K: int) -> int:
    return 2 * T * D * E + T * E * 6 * D * F


def flops_no_router(T: int, D: int, F: int, E: int, K: int) -> int:
    return T * K * 6 * D * F


def flops_multiply_adds(T: int, D: int, F: int, E: int, K: int) -> int:
    return T * D * E + T * K * 3 * D * F


def flops_two_matrices(T: int, D: int, F: int, E: int, K: int) -> int:
    return 2 * T * D * E + T * K * 4 * D * F


def flops_router_k(T: int, D: int, F: int, E: int, K: int) -> int:
    return 2 * T * D * K + T * K * 6 * D * F


def flops_swapped_widths(T: int, D: int, F: int, E: int, K: int) -> int:
    return 2 * T * F * E + T * K * 6 * D * F


def flops_with_silu(T: int, D: int, F: int, E: int, K: int) -> int:
    return 2 * T * D * E + T * K * (6 * D * F + F)


def flops_one_token(T: int, D: int, F: int, E: int, K: int) -> int:
    return 2 * D * E + K * 6 * D * F


def flops_with_backward(T: int, D: int, F: int, E: int, K: int) -> int:
    return 3 * (2 * T * D * E + T * K * 6 * D * F)


def flops_one_expert(T: int, D: int, F: int, E: int, K: int) -> int:
    return 2 * T * D * E + T * 6 * D * F
