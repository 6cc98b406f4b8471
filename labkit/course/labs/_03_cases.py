"""Lab 03: right answers of the five small exercises, as `reveal` shows them, and the inputs they are compared on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.attempt import Case


def normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Seeded normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def chosen(logits_TE: Tensor, k: int) -> Tensor:
    """Each token's K best experts."""
    return logits_TE.topk(k, dim=-1).indices


def _weights(seed: int, T: int, E: int, k: int) -> tuple[Tensor, Tensor]:
    """Ids and renormalised softmax weights of a router without any faults."""
    values, ids = normal(seed, T, E, scale=1.5).softmax(-1).topk(k, dim=-1)
    return ids, values / values.sum(-1, keepdim=True)


def aux_loss(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    E = logits_TE.shape[1]
    probs_TE, choices_TE = logits_TE.softmax(dim=-1), F.one_hot(topk_ids_TK, E).sum(dim=1).float()
    if mask_T is not None:
        probs_TE, choices_TE = probs_TE[mask_T], choices_TE[mask_T]
    return E * (choices_TE.mean(dim=0) * probs_TE.mean(dim=0)).sum()


def aux_cases(seed: int) -> list[Case]:
    first, logits_TE, wide = normal(seed, 1, 3), normal(seed + 1, 7, 5), normal(seed + 2, 20, 6, scale=2.0)
    other_TE = normal(seed + 4, 7, 5)
    mask_T = torch.tensor([True, True, False, True, False, False, True])
    crowd = torch.cat([normal(seed + 3, 8, 4), torch.tensor([[9.0, 0.0, 0.0, 0.0]]).repeat(12, 1)])
    real = torch.arange(20) < 8
    return [
        Case((first, chosen(first, 1)), label="one token, K = 1"),
        Case((logits_TE, chosen(logits_TE, 2)), label="K = 2"),
        Case((wide, chosen(wide, 1)), label="K = 1"),
        Case((wide, chosen(wide - wide.mean(0), 3)), label="chosen with a bias: not the K highest logits"),
        Case((torch.zeros(4, 4), torch.arange(4)[:, None]), label="an even load"),
        Case((other_TE, chosen(other_TE[:, :3], 2)), label="nobody chose the last two experts"),
        Case((logits_TE, chosen(logits_TE, 2), mask_T), label="three tokens are padding"),
        Case((crowd, chosen(crowd, 2), real), label="more padding than text, all of it on expert 0"),
        Case((logits_TE, chosen(logits_TE, 2), torch.ones(7, dtype=torch.bool)), label="a mask, and no padding"),
        Case((other_TE, chosen(other_TE, 2)), label="gradients flow back", needs_grad=True),
        Case((other_TE, chosen(other_TE, 2), mask_T), label="gradients flow back past the mask", needs_grad=True),
    ]


def z_loss(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    squares_T = logits_TE.logsumexp(dim=-1) ** 2
    return squares_T.mean() if mask_T is None else squares_T[mask_T].mean()


def z_cases(seed: int) -> list[Case]:
    mask_T = torch.tensor([True, False, True, True, False])
    return [
        Case((normal(seed, 1, 4),), label="one token"),
        Case((normal(seed + 1, 5, 3, scale=2.0),)),
        Case((normal(seed + 2, 6, 7) - 3,), label="low logits"),
        Case((normal(seed + 3, 4, 6, scale=60.0) + 200,), label="big logits"),
        Case((normal(seed + 4, 5, 4, scale=2.0), mask_T), label="two tokens are padding"),
        Case((normal(seed + 5, 5, 4, scale=2.0), mask_T), label="gradients flow back", needs_grad=True),
    ]


def update_bias(bias_E: Tensor, tokens_per_expert_E: Tensor, rate: float) -> Tensor:
    counts_E = tokens_per_expert_E.float()
    return bias_E + rate * torch.sign(counts_E.mean() - counts_E)


def bias_cases(seed: int) -> list[Case]:
    def counts(at: int, E: int, high: int) -> Tensor:
        return torch.randint(0, high, (E,), generator=torch.Generator().manual_seed(at))

    return [
        Case((torch.zeros(2), torch.tensor([3, 1]), 0.1), label="two experts"),
        Case((torch.zeros(4), torch.tensor([9, 0, 0, 1]), 0.01), label="a mean that is no whole number"),
        Case((normal(seed, 4, scale=0.1), torch.tensor([5, 5, 5, 5]), 0.01), label="an even load: nothing moves"),
        Case((normal(seed + 1, 5, scale=0.1), torch.tensor([4, 2, 6, 4, 4]), 0.01), label="three at the mean already"),
        Case((normal(seed + 2, 7, scale=0.1), counts(seed + 3, 7, 50), 0.001)),
        Case((normal(seed + 4, 16, scale=0.1), counts(seed + 5, 16, 4000), 0.02), label="many tokens"),
        Case((normal(seed + 6, 6, scale=0.1), torch.tensor([60, 0, 0, 0, 0, 0]), 0.01), label="collapsed"),
    ]


def keep(topk_ids_TK: Tensor, topk_scores_TK: Tensor, capacity: int, policy: str = "position") -> Tensor:
    T, K = topk_ids_TK.shape
    ids_N = topk_ids_TK.T.flatten()
    if policy == "position":
        order_N = torch.arange(T * K)
    elif policy == "score":
        order_N = topk_scores_TK.T.flatten().argsort(descending=True, stable=True)
    else:
        raise ValueError(f"policy is {policy!r}; choose position or score")
    queue_N = ids_N[order_N]
    place_N = F.one_hot(queue_N).cumsum(dim=0).gather(1, queue_N[:, None])[:, 0]
    kept_N = torch.empty(T * K, dtype=torch.bool)
    kept_N[order_N] = place_N <= capacity
    return kept_N.view(K, T).T


def keep_cases(seed: int) -> list[Case]:
    cases = []
    for i, (T, E, k, capacity, label) in enumerate((
        (4, 2, 1, 1, "K = 1, one place an expert"),
        (3, 3, 2, 1, "K = 2, one place an expert"),
        (12, 4, 2, 4, "K = 2"),
        (15, 3, 1, 4, "K = 1, crowded"),
        (6, 4, 2, 12, "room for all"),
        (9, 8, 3, 2, "K = 3, some experts idle"),
        (5, 3, 2, 0, "no room at all"),
    )):  # fmt: skip
        ids, weights = _weights(seed + i, T, E, k)
        cases += [Case((ids, weights, capacity, policy), label=f"{label}, by {policy}") for policy in POLICIES]
    ids, weights = _weights(seed + 20, 8, 3, 1)
    unfair = torch.linspace(0.2, 0.9, 8)[:, None]
    cases.append(Case((torch.zeros_like(ids), unfair, 3, "score"), label="the best come last, by score"))
    cases.append(Case((ids, weights, 2), label="the default"))
    cases.append(Case((ids, weights, 2, "random"), label="an unknown policy: ValueError"))
    return cases


POLICIES = ("position", "score")


def expert_choice(scores_TE: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    scores_EC, tokens_EC = scores_TE.T.topk(capacity, dim=-1)
    return tokens_EC, scores_EC


def expert_choice_cases(seed: int) -> list[Case]:
    def scores(at: int, T: int, E: int) -> Tensor:
        return normal(seed + at, T, E, scale=1.5).softmax(-1)

    crowd = (torch.tensor([3.0, 0.0, 0.0]) + 0.2 * normal(seed + 4, 6, 3)).softmax(-1)
    return [
        Case((scores(0, 3, 2), 1), label="one token an expert"),
        Case((scores(1, 8, 4), 2)),
        Case((scores(2, 5, 3), 5), label="every expert takes every token"),
        Case((scores(3, 4, 4), 3), label="as many tokens as experts"),
        Case((crowd, 2), label="every token likes expert 0 best"),
        Case((scores(5, 11, 3), 4), label="gradients flow back", needs_grad=True),
    ]
