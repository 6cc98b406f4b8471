"""Lab 04: right answers, as `reveal` shows them, and the inputs they are compared on."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.course.attempt import Case
from labkit.kernels import reference


def _normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def _fractions(seed: int, *shape: int) -> Tensor:
    """Scores in (0, 1) with no two equal in a row, as sigmoids are."""
    return (_normal(seed, *shape) * 1.5).sigmoid()


def _decisions(seed: int, T: int, E: int, K: int) -> tuple[Tensor, Tensor]:
    """K different experts a token and weights that do not sum to one."""
    return _normal(seed, T, E).topk(K).indices, _fractions(seed + 1, T, K) * 1.7


# ----------------------------------------------------------------------------------------------------- split_experts


def split_experts(router_ED: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    E, D, F = down_EDF.shape
    if F % m:
        raise ValueError(f"m is {m}, which does not divide the expert width {F}")
    gate_up = gate_up_E2FD.reshape(E, 2, m, F // m, D).transpose(1, 2).reshape(E * m, 2 * F // m, D)
    down = down_EDF.reshape(E, D, m, F // m).transpose(1, 2).reshape(E * m, D, F // m)
    return router_ED.repeat_interleave(m, dim=0), gate_up, m * down


def split_cases(seed: int) -> list[Case]:
    def layer(at: int, E: int, D: int, F: int) -> tuple[Tensor, Tensor, Tensor]:
        return _normal(at, E, D), _normal(at + 1, E, 2 * F, D), _normal(at + 2, E, D, F)

    return [
        Case((*layer(seed, 2, 3, 4), 2), label="two experts, two parts each"),
        Case((*layer(seed + 3, 3, 5, 6), 3), label="three experts, three parts each"),
        Case((*layer(seed + 6, 3, 4, 5), 1), label="m = 1: nothing changes"),
        Case((*layer(seed + 9, 1, 2, 4), 4), label="one expert, parts of width one"),
        Case((*layer(seed + 12, 2, 4, 4), 2), label="gradients flow back", needs_grad=True),
        Case((*layer(seed + 15, 2, 3, 4), 3), label="m does not divide F: ValueError"),
    ]


# ----------------------------------------------------------------------------------------------------- shared_expert


def shared_expert(
    x_TD: Tensor, topk_ids_TK: Tensor, topk_scores_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor,
    shared_gate_up_S2FD: Tensor, shared_down_SDF: Tensor,
) -> Tensor:  # fmt: skip
    y_TD = reference.experts_loop(x_TD, topk_ids_TK, topk_scores_TK, gate_up_E2FD, down_EDF)
    for gate_up_2FD, down_DF in zip(shared_gate_up_S2FD, shared_down_SDF, strict=True):
        y_TD = y_TD + reference.swiglu(x_TD, gate_up_2FD, down_DF)
    return y_TD


def shared_cases(seed: int) -> list[Case]:
    def layer(at: int, T: int, E: int, K: int, S: int, D: int = 4, F: int = 3) -> tuple[Tensor, ...]:
        routed = (_normal(at + 2, E, 2 * F, D), _normal(at + 3, E, D, F))
        shared = (_normal(at + 4, S, 2 * F, D), _normal(at + 5, S, D, F))
        return _normal(at, T, D), *_decisions(at + 6, T, E, K), *routed, *shared

    return [
        Case(layer(seed, 1, 3, 2, 1), label="one token, one shared expert"),
        Case(layer(seed + 10, 7, 5, 2, 2), label="two shared experts"),
        Case(layer(seed + 20, 4, 4, 4, 3), label="K = E, three shared experts"),
        Case(layer(seed + 30, 5, 3, 1, 0), label="no shared expert at all"),
        Case(layer(seed + 40, 3, 3, 2, 2), label="gradients flow back", needs_grad=True),
    ]


# ------------------------------------------------------------------------------------------------ group_limited_top_k


def group_limited_top_k(
    scores_TE: Tensor, bias_E: Tensor, k: int, num_groups: int, top_groups: int, group_score: str = "top2_sum"
) -> tuple[Tensor, Tensor]:
    choice_TE = scores_TE + bias_E
    choice_TGN = choice_TE.unflatten(1, (num_groups, -1))
    best = 2 if group_score == "top2_sum" else 1
    worth_TG = choice_TGN.topk(best, dim=-1).values.sum(dim=-1)
    kept_TG = torch.zeros_like(worth_TG, dtype=torch.bool).scatter(1, worth_TG.topk(top_groups).indices, True)
    choice_TE = choice_TGN.masked_fill(~kept_TG[..., None], float("-inf")).flatten(1)
    topk_ids_TK = choice_TE.topk(k, dim=-1).indices
    return topk_ids_TK, scores_TE.gather(1, topk_ids_TK)


def group_cases(seed: int) -> list[Case]:
    none = torch.zeros(12)
    telling = torch.tensor([[0.90, 0.10, 0.62, 0.60, 0.55, 0.70, 0.30, 0.20]])
    bias = torch.tensor([0.0, 0.0, 0.03, -0.02, 0.05, -0.04, 0.40, 0.35])
    return [
        Case((telling, torch.zeros(8), 3, 4, 2), label="one token, no bias"),
        Case((telling, bias, 3, 4, 2), label="one token, biased"),
        Case((_fractions(seed, 9, 12), none, 4, 4, 2, "max"), label="a group is worth its best expert"),
        Case((_fractions(seed + 1, 9, 12), _normal(seed + 2, 12, scale=0.2) + 0.5, 4, 4, 2), label="a random bias"),
        Case((_fractions(seed + 3, 9, 12), _normal(seed + 4, 12, scale=0.2) + 0.5, 3, 3, 2, "max")),
        Case((_fractions(seed + 5, 6, 12), none, 6, 4, 2), label="K uses up both groups: only the order is open"),
        Case((_fractions(seed + 6, 6, 12), none, 4, 1, 1), label="one group: no limit"),
        Case((_fractions(seed + 7, 6, 12), none, 3, 3, 3), label="all groups allowed: no limit"),
        Case((_fractions(seed + 8, 6, 12), _normal(seed + 9, 12, scale=0.2) - 2.0, 3, 4, 2), label="negative biases"),
        Case((_fractions(seed + 11, 9, 12), _normal(seed + 12, 12), 5, 4, 2), label="biases larger than the scores"),
        Case((_fractions(seed + 10, 4, 12), none, 3, 4, 2), label="gradients flow back", needs_grad=True),
    ]


# -------------------------------------------------------------------------------------------------------------- lift


def lift(topk_ids_TK: Tensor, domain_T: Tensor, num_experts: int, num_domains: int) -> Tensor:
    chosen_TE = torch.zeros(len(topk_ids_TK), num_experts, device=topk_ids_TK.device).scatter(1, topk_ids_TK, 1.0)
    counts_GE = torch.zeros(num_domains, num_experts, device=chosen_TE.device).index_add(0, domain_T, chosen_TE)
    share_GE = counts_GE / counts_GE.sum(dim=1, keepdim=True)
    overall_E = counts_GE.sum(dim=0) / counts_GE.sum()
    return torch.where(overall_E > 0, share_GE / overall_E, 1.0)


def lift_cases(seed: int) -> list[Case]:
    def labels(at: int, T: int, G: int) -> Tensor:
        """Domains of unequal size, each with a token."""
        drawn = torch.rand(T, generator=torch.Generator().manual_seed(at)).square() * G
        drawn = drawn.long().clamp_max(G - 1)
        drawn[:G] = torch.arange(G)
        return drawn

    hand = torch.tensor([[0, 1], [0, 2], [0, 1], [2, 1]])
    return [
        Case((hand, torch.tensor([0, 0, 0, 1]), 3, 2), label="four tokens, three of them of domain 0"),
        Case((hand, torch.tensor([0, 0, 0, 1]), 4, 2), label="an expert that nobody chose"),
        Case((_decisions(seed, 40, 5, 2)[0], labels(seed + 1, 40, 3), 5, 3), label="unequal domains"),
        Case((_decisions(seed + 2, 33, 6, 1)[0], labels(seed + 3, 33, 4), 6, 4), label="K = 1"),
        Case((_decisions(seed + 4, 20, 3, 3)[0], labels(seed + 5, 20, 2), 3, 2), label="K = E: no preference at all"),
        Case((_decisions(seed + 6, 12, 4, 2)[0], torch.zeros(12, dtype=torch.int64), 4, 1), label="one domain"),
    ]


# ---------------------------------------------------------------------------------------------------------- ablation


def ablation(loss_T: Tensor, loss_without_T: Tensor, domain_T: Tensor, num_domains: int) -> Tensor:
    rise_T = loss_without_T - loss_T
    real_T = ~rise_T.isnan()
    return torch.stack([rise_T[real_T & (domain_T == domain)].mean() for domain in range(num_domains)])


def ablation_cases(seed: int) -> list[Case]:
    def losses(at: int, T: int, G: int, missing: bool) -> tuple[Tensor, Tensor, Tensor, int]:
        domain_T = torch.arange(T) * G // T
        before_T = _normal(at, T).square() + 0.5
        after_T = before_T + 0.3 * _normal(at + 1, T) + 0.2 * (domain_T + 1)
        if missing:
            before_T[4::5] = float("nan")
            after_T[4::5] = float("nan")
        return before_T, after_T, domain_T, G

    uneven = (torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([1.5, 2.0, 4.0, 4.0]), torch.tensor([0, 0, 0, 1]), 2)
    return [
        Case(uneven, label="four tokens, three of them of domain 0"),
        Case(losses(seed, 24, 3, missing=False), label="three domains"),
        Case(losses(seed + 2, 30, 3, missing=True), label="NaN where nothing follows"),
        Case(losses(seed + 4, 7, 1, missing=True), label="one domain"),
    ]
