"""Lab 04: mistakes in measuring, lift and ablation, as a learner's function makes them."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.course.labs import _04_cases as right

# -------------------------------------------------------------------------------------------------------------- lift


def _counts(topk_ids_TK: Tensor, domain_T: Tensor, E: int, G: int) -> Tensor:
    pairs = domain_T[:, None] * E + topk_ids_TK
    return torch.bincount(pairs.flatten(), minlength=G * E).reshape(G, E).float()


def _safe(ratio: Tensor, below: Tensor) -> Tensor:
    return torch.where((below > 0).expand_as(ratio), ratio, torch.ones_like(ratio))


def lift_unused_is_nan(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    counts = _counts(topk_ids_TK, domain_T, num_experts, num_domains)
    return counts / counts.sum(1, keepdim=True) / (counts.sum(0) / counts.sum())


def lift_unused_is_zero(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    return lift_unused_is_nan(topk_ids_TK, domain_T, num_experts, num_domains).nan_to_num(0.0)


def lift_over_uniform(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    counts = _counts(topk_ids_TK, domain_T, num_experts, num_domains)
    return _safe(counts / counts.sum(1, keepdim=True) * num_experts, counts.sum(0))


def lift_share_only(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    counts = _counts(topk_ids_TK, domain_T, num_experts, num_domains)
    return _safe(counts / counts.sum(1, keepdim=True), counts.sum(0))


def lift_of_the_domain(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    counts = _counts(topk_ids_TK, domain_T, num_experts, num_domains)
    return _safe(counts / counts.sum(0), counts.sum(0))


def lift_mean_of_domains(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    counts = _counts(topk_ids_TK, domain_T, num_experts, num_domains)
    share = counts / counts.sum(1, keepdim=True)
    return _safe(share / share.mean(0), counts.sum(0))


def lift_joint(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    counts = _counts(topk_ids_TK, domain_T, num_experts, num_domains)
    return _safe(counts / counts.sum() / (counts.sum(0) / counts.sum()) * num_domains, counts.sum(0))


def lift_logarithm(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    return right.lift(topk_ids_TK, domain_T, num_experts, num_domains).log()


def lift_transposed(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    return right.lift(topk_ids_TK, domain_T, num_experts, num_domains).T


def lift_favourite_only(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    return right.lift(topk_ids_TK[:, :1], domain_T, num_experts, num_domains)


def lift_lost_choices(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    counts = torch.zeros(num_domains, num_experts)
    for ids_T in topk_ids_TK.T:
        counts[domain_T, ids_T] += 1
    return _safe(counts / counts.sum(1, keepdim=True) / (counts.sum(0) / counts.sum()), counts.sum(0))


def lift_tokens_above(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    K, used = topk_ids_TK.shape[1], _counts(topk_ids_TK, domain_T, num_experts, num_domains).sum(0)
    return _safe(K * right.lift(topk_ids_TK, domain_T, num_experts, num_domains), used)


def lift_tokens_below(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    K, used = topk_ids_TK.shape[1], _counts(topk_ids_TK, domain_T, num_experts, num_domains).sum(0)
    return _safe(right.lift(topk_ids_TK, domain_T, num_experts, num_domains) / K, used)


def lift_of_the_domain_over_expert(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    counts = _counts(topk_ids_TK, domain_T, num_experts, num_domains)
    return _safe(counts / counts.sum(0) / (counts.sum(0) / counts.sum()), counts.sum(0))


def lift_over_domain(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    counts = _counts(topk_ids_TK, domain_T, num_experts, num_domains)
    row_G1 = counts.sum(1, keepdim=True)
    return _safe(counts / row_G1 / (row_G1 / counts.sum()), counts.sum(0))


def lift_against_the_rest(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    counts = _counts(topk_ids_TK, domain_T, num_experts, num_domains)
    others = counts.sum(0) - counts
    return _safe(counts / counts.sum(1, keepdim=True) / (others / others.sum(1, keepdim=True)), counts.sum(0))


def lift_empty_cell_is_one(topk_ids_TK, domain_T, num_experts, num_domains) -> Tensor:
    lift_GE = right.lift(topk_ids_TK, domain_T, num_experts, num_domains)
    return torch.where(lift_GE > 0, lift_GE, 1.0)


# ---------------------------------------------------------------------------------------------------------- ablation


def ablation_nan_spreads(loss_T, loss_without_T, domain_T, num_domains) -> Tensor:
    rise_T = loss_without_T - loss_T
    return torch.stack([rise_T[domain_T == domain].mean() for domain in range(num_domains)])


def ablation_nan_is_zero(loss_T, loss_without_T, domain_T, num_domains) -> Tensor:
    return ablation_nan_spreads(loss_T.nan_to_num(0.0), loss_without_T.nan_to_num(0.0), domain_T, num_domains)


def ablation_backwards(loss_T, loss_without_T, domain_T, num_domains) -> Tensor:
    return right.ablation(loss_without_T, loss_T, domain_T, num_domains)


def ablation_summed(loss_T, loss_without_T, domain_T, num_domains) -> Tensor:
    rise_T = (loss_without_T - loss_T).nan_to_num(0.0)
    return torch.zeros(num_domains).index_add(0, domain_T, rise_T)


def ablation_over_all_tokens(loss_T, loss_without_T, domain_T, num_domains) -> Tensor:
    real = (~(loss_without_T - loss_T).isnan()).sum()
    return ablation_summed(loss_T, loss_without_T, domain_T, num_domains) / real


def ablation_one_number(loss_T, loss_without_T, domain_T, num_domains) -> Tensor:
    return (loss_without_T - loss_T).nanmean().repeat(num_domains)


def ablation_relative(loss_T, loss_without_T, domain_T, num_domains) -> Tensor:
    means = [loss[domain_T == d].nanmean() for d in range(num_domains) for loss in (loss_without_T, loss_T)]
    return torch.stack([after / before - 1 for after, before in zip(means[::2], means[1::2], strict=True)])


def ablation_absolute(loss_T, loss_without_T, domain_T, num_domains) -> Tensor:
    rise_T = (loss_without_T - loss_T).abs()
    return torch.stack([rise_T[domain_T == domain].nanmean() for domain in range(num_domains)])


def ablation_backwards_with_nan(loss_T, loss_without_T, domain_T, num_domains) -> Tensor:
    return ablation_nan_spreads(loss_without_T, loss_T, domain_T, num_domains)


def ablation_harm_only(loss_T, loss_without_T, domain_T, num_domains) -> Tensor:
    rise_T = (loss_without_T - loss_T).clamp_min(0)
    return torch.stack([rise_T[domain_T == domain].nanmean() for domain in range(num_domains)])


def ablation_relative_by_token(loss_T, loss_without_T, domain_T, num_domains) -> Tensor:
    return right.ablation(torch.ones_like(loss_T), loss_without_T / loss_T, domain_T, num_domains)


def ablation_over_every_token(loss_T, loss_without_T, domain_T, num_domains) -> Tensor:
    return ablation_summed(loss_T, loss_without_T, domain_T, num_domains) / len(loss_T)
