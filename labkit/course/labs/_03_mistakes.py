"""Lab 03: what a learner's losses and bias do when they have made one of the mistakes that their checks know."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# ---------------------------------------------------------------------------------------------------------- aux_loss


def _parts(logits_TE: Tensor, topk_ids_TK: Tensor) -> tuple[Tensor, Tensor, int]:
    E = logits_TE.shape[1]
    return logits_TE.softmax(-1), F.one_hot(topk_ids_TK, E).sum(1).float(), E


def _real(mask_T: Tensor | None, *tensors: Tensor) -> list[Tensor]:
    return [t if mask_T is None else t[mask_T] for t in tensors]


def aux_padding(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, m, E = _parts(logits_TE, topk_ids_TK)
    return E * (m.mean(0) * p.mean(0)).sum()


def aux_padding_in_choices(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, m, E = _parts(logits_TE, topk_ids_TK)
    return E * (m.mean(0) * _real(mask_T, p)[0].mean(0)).sum()


def aux_padding_in_probabilities(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, m, E = _parts(logits_TE, topk_ids_TK)
    return E * (_real(mask_T, m)[0].mean(0) * p.mean(0)).sum()


def aux_divides_by_all(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, m, E = _parts(logits_TE, topk_ids_TK)
    T = len(p)
    p, m = _real(mask_T, p, m)
    return E * (m.sum(0) / T * p.sum(0) / T).sum()


def aux_no_factor(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, m, _ = _parts(logits_TE, topk_ids_TK)
    p, m = _real(mask_T, p, m)
    return (m.mean(0) * p.mean(0)).sum()


def aux_share_of_choices(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, m, E = _parts(logits_TE, topk_ids_TK)
    p, m = _real(mask_T, p, m)
    return E * (m.mean(0) / m.sum(1).mean() * p.mean(0)).sum()


def aux_choices_squared(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    _, m, E = _parts(logits_TE, topk_ids_TK)
    (m,) = _real(mask_T, m)
    return E * (m.mean(0) ** 2).sum()


def aux_probabilities_squared(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, _, E = _parts(logits_TE, topk_ids_TK)
    (p,) = _real(mask_T, p)
    return E * (p.mean(0) ** 2).sum()


def aux_chosen_probabilities(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, m, E = _parts(logits_TE, topk_ids_TK)
    p, m = _real(mask_T, p, m)
    return E * (m.mean(0) * (p * m).mean(0)).sum()


def aux_first_choices(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, m, E = _parts(logits_TE, topk_ids_TK[:, :1])
    p, m = _real(mask_T, p, m)
    return E * (m.mean(0) * p.mean(0)).sum()


def aux_chooses_again(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, m, E = _parts(logits_TE, logits_TE.topk(topk_ids_TK.shape[1]).indices)
    p, m = _real(mask_T, p, m)
    return E * (m.mean(0) * p.mean(0)).sum()


def aux_over_tokens(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    _, m, E = _parts(logits_TE, topk_ids_TK)
    z, m = _real(mask_T, logits_TE, m)
    return E * (m.mean(0) * z.softmax(0).mean(0)).sum()


def aux_raw_logits(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    _, m, E = _parts(logits_TE, topk_ids_TK)
    z, m = _real(mask_T, logits_TE, m)
    return E * (m.mean(0) * z.mean(0)).sum()


def aux_inverted(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, m, E = _parts(logits_TE, topk_ids_TK)
    p, m = _real(None if mask_T is None else ~mask_T, p, m)
    return E * (m.mean(0) * p.mean(0)).sum()


def aux_minus_infinity(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    if mask_T is not None:
        logits_TE = logits_TE.masked_fill(~mask_T[:, None], float("-inf"))
    return aux_padding_in_probabilities(logits_TE, topk_ids_TK, mask_T)


def aux_padding_zeroed(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    w_T1 = torch.ones(len(logits_TE), 1) if mask_T is None else mask_T[:, None].float()
    p, m, E = _parts(logits_TE * w_T1, topk_ids_TK)
    return E * ((m * w_T1).mean(0) * p.mean(0)).sum()


def aux_choices_over_all(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, m, E = _parts(logits_TE, topk_ids_TK)
    T = len(p)
    p, m = _real(mask_T, p, m)
    return E * (m.sum(0) / T * p.mean(0)).sum()


def aux_summed(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, m, E = _parts(logits_TE, topk_ids_TK)
    p, m = _real(mask_T, p, m)
    return E * (m.mean(0) * p.sum(0)).sum()


def aux_token_by_token(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, m, E = _parts(logits_TE, topk_ids_TK)
    p, m = _real(mask_T, p, m)
    return E * (m * p).sum(1).mean()


def aux_renormalised(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, m, E = _parts(logits_TE, topk_ids_TK)
    p, m = _real(mask_T, p * m / (p * m).sum(1, keepdim=True), m)
    return E * (m.mean(0) * p.mean(0)).sum()


def aux_experts_left_out(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    p, m = _real(mask_T, logits_TE.softmax(-1), F.one_hot(topk_ids_TK).sum(1).float())
    return logits_TE.shape[1] * (m.mean(0) * p.mean(0)).sum()


# ------------------------------------------------------------------------------------------------------------ z_loss


def _mean(values_T: Tensor, mask_T: Tensor | None) -> Tensor:
    return _real(mask_T, values_T)[0].mean()


def z_padding(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    return (logits_TE.logsumexp(-1) ** 2).mean()


def z_divides_by_all(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    z = logits_TE.logsumexp(-1) ** 2
    return (z if mask_T is None else z * mask_T).mean()


def z_not_squared(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    return _mean(logits_TE.logsumexp(-1), mask_T)


def z_squared_mean(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    return _mean(logits_TE.logsumexp(-1), mask_T) ** 2


def z_squared_logits(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    return _mean((logits_TE**2).sum(-1), mask_T)


def z_mean_squared_logits(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    return _mean((logits_TE**2).mean(-1), mask_T)


def z_overflows(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    return _mean(logits_TE.exp().sum(-1).log() ** 2, mask_T)


def z_over_tokens(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    return (_real(mask_T, logits_TE)[0].logsumexp(0) ** 2).mean()


def z_of_scores(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    return _mean(logits_TE.softmax(-1).logsumexp(-1) ** 2, mask_T)


def z_summed(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    return _real(mask_T, logits_TE.logsumexp(-1) ** 2)[0].sum()


def z_inverted(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    return _mean(logits_TE.logsumexp(-1) ** 2, None if mask_T is None else ~mask_T)


def z_minus_infinity(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    if mask_T is not None:
        logits_TE = logits_TE.masked_fill(~mask_T[:, None], float("-inf"))
    return z_padding(logits_TE)


def z_padding_zeroed(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    return z_padding(logits_TE if mask_T is None else logits_TE * mask_T[:, None])


def z_no_log(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    return _mean(logits_TE.exp().sum(-1) ** 2, mask_T)


def z_maximum_lost(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    return _mean((logits_TE - logits_TE.amax(-1, keepdim=True)).logsumexp(-1) ** 2, mask_T)


# ------------------------------------------------------------------------------------------------------- update_bias


def bias_backwards(bias_E: Tensor, tokens_per_expert_E: Tensor, rate: float) -> Tensor:
    counts = tokens_per_expert_E.float()
    return bias_E - rate * torch.sign(counts.mean() - counts)


def bias_proportional(bias_E: Tensor, tokens_per_expert_E: Tensor, rate: float) -> Tensor:
    counts = tokens_per_expert_E.float()
    return bias_E + rate * (counts.mean() - counts)


def bias_relative(bias_E: Tensor, tokens_per_expert_E: Tensor, rate: float) -> Tensor:
    counts = tokens_per_expert_E.float()
    return bias_E + rate * (counts.mean() - counts) / counts.mean()


def bias_no_rest(bias_E: Tensor, tokens_per_expert_E: Tensor, rate: float) -> Tensor:
    counts = tokens_per_expert_E.float()
    return bias_E + rate * torch.where(counts < counts.mean(), 1.0, -1.0)


def bias_no_rest_upwards(bias_E: Tensor, tokens_per_expert_E: Tensor, rate: float) -> Tensor:
    counts = tokens_per_expert_E.float()
    return bias_E + rate * torch.where(counts > counts.mean(), -1.0, 1.0)


def bias_whole_mean(bias_E: Tensor, tokens_per_expert_E: Tensor, rate: float) -> Tensor:
    mean = tokens_per_expert_E.sum() // len(bias_E)
    return bias_E + rate * torch.sign((mean - tokens_per_expert_E).float())


def bias_median(bias_E: Tensor, tokens_per_expert_E: Tensor, rate: float) -> Tensor:
    counts = tokens_per_expert_E.float()
    return bias_E + rate * torch.sign(counts.median() - counts)


def bias_only_up(bias_E: Tensor, tokens_per_expert_E: Tensor, rate: float) -> Tensor:
    counts = tokens_per_expert_E.float()
    return bias_E + rate * (counts < counts.mean()).float()


def bias_only_down(bias_E: Tensor, tokens_per_expert_E: Tensor, rate: float) -> Tensor:
    counts = tokens_per_expert_E.float()
    return bias_E - rate * (counts > counts.mean()).float()


def bias_step_alone(bias_E: Tensor, tokens_per_expert_E: Tensor, rate: float) -> Tensor:
    counts = tokens_per_expert_E.float()
    return rate * torch.sign(counts.mean() - counts)


def bias_in_place(bias_E: Tensor, tokens_per_expert_E: Tensor, rate: float) -> Tensor:
    counts = tokens_per_expert_E.float()
    return bias_E.add_(rate * torch.sign(counts.mean() - counts))


def bias_no_rate(bias_E: Tensor, tokens_per_expert_E: Tensor, rate: float) -> Tensor:
    return bias_backwards(bias_E, tokens_per_expert_E, -1.0)


def bias_shares(bias_E: Tensor, tokens_per_expert_E: Tensor, rate: float) -> Tensor:
    counts = tokens_per_expert_E.float()
    return bias_E + rate * (counts.mean() - counts) / counts.sum()
