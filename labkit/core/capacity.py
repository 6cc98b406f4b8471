"""Experts with a limited number of places: who gets one, and what a token keeps when it gets none.

All tokens of a record compete in one group. Nothing here moves a token to another expert.

Legend: T tokens, E experts, K experts per token, C capacity (places of one expert).
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from labkit.core.padding import real_tokens
from labkit.core.routing import Routing
from labkit.core.whole import need_whole

Policy = Literal["position", "score"]

POLICIES = ("position", "score")


def expert_capacity(num_tokens: int, num_experts: int, top_k: int = 1, factor: float = 1.0) -> int:
    """C: how many tokens one expert takes, ⌈factor · T · K / E⌉.

    Equation 3 of Switch Transformers (Fedus et al. 2021, arXiv 2101.03961) for K = 1. Rounded up, so that an even load
    loses nothing from a factor of 1 on. The factor is taken as the decimal number it is printed as: 1.1 of 10 is 11.

    Raises ValueError if a size is not a whole number (T from 0 on, E from 1, K from 1 to E) or the factor is not a
    positive number.

    >>> expert_capacity(num_tokens=100, num_experts=8, top_k=2, factor=1.25)
    32
    """
    for name, value, least in (("num_tokens", num_tokens, 0), ("num_experts", num_experts, 1), ("top_k", top_k, 1)):
        need_whole(f"expert_capacity: {name}", value, least)
    if top_k > num_experts:
        raise ValueError(f"expert_capacity: top_k is {top_k} of {num_experts} experts; give {num_experts} or fewer")
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"expert_capacity: factor is {factor}; give a positive number")
    return math.ceil(Fraction(str(float(factor))) * num_tokens * top_k / num_experts)


def kept(routing: Routing, capacity: int, policy: Policy = "position", mask_T: Tensor | None = None) -> Tensor:
    """Which choices get a place when no expert takes more than `capacity` tokens; [T, K], bool, without gradient.

    The choices queue, and an expert seats its first `capacity` of them:

    - "position": first come, first served. The first choices of all tokens stand before any second choice, each in the
      order of the batch (GShard, Lepikhin et al. 2020, arXiv 2006.16668, algorithm 1; Switch Transformers for K = 1).
      Late tokens lose, whatever they are.
    - "score": the highest score first, so that every expert keeps what would count most. For K = 1 this is batch
      prioritised routing (V-MoE, Riquelme et al. 2021, arXiv 2106.05974, section 4.1), which for K > 1 orders whole
      tokens by their highest score and still seats first choices first. Equal scores, such as all of them after a
      renormalisation with K = 1, go by the softmax probability of the expert; what is still equal, by position.

    Args:
        routing: T tokens.
        capacity: C, places of each expert, from 0 on; T or more seats everyone.
        policy: one of `POLICIES`.
        mask_T: [T] or any shape of T elements, true or 1 where a token is real. Padding takes no place and is not kept.

    Raises ValueError for another policy, capacity or mask.

    >>> r = Routing.of(torch.zeros(3, 2), torch.tensor([[0], [0], [0]]), torch.tensor([[0.2], [0.9], [0.5]]))
    >>> kept(r, 1).flatten().tolist(), kept(r, 1, "score").flatten().tolist()
    ([True, False, False], [False, True, False])
    """
    if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 0:
        raise ValueError(f"capacity is {capacity!r}; give a whole number of 0 or more (`expert_capacity` makes one)")
    real_T = real_tokens(mask_T, routing.num_tokens, routing.topk_ids_TK.device)
    queue_N = _order(routing, policy)
    ids_TK = torch.where(real_T[:, None], routing.topk_ids_TK, routing.num_experts)  # padding queues elsewhere
    kept_N = torch.empty_like(queue_N, dtype=torch.bool)
    kept_N[queue_N] = _place(ids_TK.T.reshape(-1)[queue_N]) < capacity
    kept_TK = kept_N.reshape(routing.top_k, routing.num_tokens).T
    return kept_TK & real_T[:, None]


def drop(
    routing: Routing,
    capacity: int,
    policy: Policy = "position",
    mask_T: Tensor | None = None,
    *,
    renormalise: bool = False,
) -> Routing:
    """The same record with a score of zero for every choice that gets no place, ready for `kernels.dispatch.experts`.

    The chosen experts stay in the record, and `tokens_per_expert_E` still counts them: it tells what was asked for.
    A token that loses all its choices gets nothing from the experts; only a residual connection carries it on.

    Args:
        routing, capacity, policy, mask_T: as for `kept`.
        renormalise: scale what a token keeps, so that its scores have the sum they had before.

    Gradients flow through the scores that are kept, and with `renormalise` through those dropped, since the sum knew
    them. Raises ValueError as `kept` does.

    >>> r = Routing.of(torch.zeros(2, 2), torch.tensor([[0, 1], [0, 1]]), torch.tensor([[0.5, 0.5], [0.75, 0.25]]))
    >>> drop(r, 1, "score").topk_scores_TK.tolist()
    [[0.0, 0.5], [0.75, 0.0]]
    """
    kept_TK = kept(routing, capacity, policy, mask_T)
    scores_TK = routing.topk_scores_TK.masked_fill(~kept_TK, 0)
    if renormalise:
        left_T1 = scores_TK.sum(1, keepdim=True)
        nothing_T1 = left_T1 == 0
        before_T1 = routing.topk_scores_TK.sum(1, keepdim=True).masked_fill(nothing_T1, 0)
        scores_TK = scores_TK * (before_T1 / left_T1.masked_fill(nothing_T1, 1))
    return dataclasses.replace(routing, topk_scores_TK=scores_TK)


def _order(routing: Routing, policy: Policy) -> Tensor:
    """The choices in the order in which they are seated; [K·T], int64, numbered as in `topk_ids_TK.T`."""
    ids_TK, scores_TK = routing.topk_ids_TK, routing.topk_scores_TK.detach()
    if policy == "position":
        return torch.arange(ids_TK.numel(), device=ids_TK.device)
    if policy != "score":
        raise ValueError(f"policy is {policy!r}; choose one of {', '.join(POLICIES)}")
    likelihood_TK = routing.logits_TE.detach().log_softmax(1).gather(1, ids_TK)  # tells probabilities near one apart
    order_N = likelihood_TK.T.reshape(-1).argsort(descending=True, stable=True)
    return order_N[scores_TK.T.reshape(-1)[order_N].argsort(descending=True, stable=True)]


def _place(queue_N: Tensor) -> Tensor:
    """How many before each entry of the queue wanted the same expert; [N], int64."""
    sorted_N, order_N = queue_N.sort(stable=True)
    place_N = torch.empty_like(order_N)
    place_N[order_N] = torch.arange(len(order_N), device=order_N.device) - torch.searchsorted(sorted_N, sorted_N)
    return place_N
