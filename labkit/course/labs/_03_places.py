"""Lab 03: the mistakes that the checks of `keep` and `expert_choice` know: what each does, and the words for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.judge import Mistake

Pair = tuple[Tensor, Tensor]

# -------------------------------------------------------------------------------------------------------------- keep


def _queue(ids_TK: Tensor, scores_TK: Tensor, policy: str) -> Tensor:
    """The pairs, counted slot by slot, in the order in which they are seated."""
    if policy == "position":
        return torch.arange(ids_TK.numel())
    if policy == "score":
        return scores_TK.T.flatten().argsort(descending=True, stable=True)
    raise ValueError(f"policy is {policy!r}")


def _places(queue_N: Tensor) -> Tensor:
    """1 for the first in the queue of its expert, 2 for the second, …"""
    return F.one_hot(queue_N).cumsum(0).gather(1, queue_N[:, None])[:, 0]


def _seated(ids_TK: Tensor, order_N: Tensor, capacity: int) -> Tensor:
    kept_N = torch.empty(ids_TK.numel(), dtype=torch.bool)
    kept_N[order_N] = _places(ids_TK.T.flatten()[order_N]) <= capacity
    return kept_N.view(ids_TK.T.shape).T


def keep_position_only(ids: Tensor, scores: Tensor, capacity: int, policy: str = "position") -> Tensor:
    _queue(ids, scores, policy)
    return _seated(ids, _queue(ids, scores, "position"), capacity)


def keep_score_only(ids: Tensor, scores: Tensor, capacity: int, policy: str = "position") -> Tensor:
    _queue(ids, scores, policy)
    return _seated(ids, _queue(ids, scores, "score"), capacity)


def keep_worst(ids: Tensor, scores: Tensor, capacity: int, policy: str = "position") -> Tensor:
    return _seated(ids, _queue(ids, -scores, policy), capacity)


def keep_one_more(ids: Tensor, scores: Tensor, capacity: int, policy: str = "position") -> Tensor:
    return _seated(ids, _queue(ids, scores, policy), capacity + 1)


def keep_one_less(ids: Tensor, scores: Tensor, capacity: int, policy: str = "position") -> Tensor:
    return _seated(ids, _queue(ids, scores, policy), capacity - 1)


def keep_dropped(ids: Tensor, scores: Tensor, capacity: int, policy: str = "position") -> Tensor:
    return ~_seated(ids, _queue(ids, scores, policy), capacity)


def keep_token_by_token(ids: Tensor, scores: Tensor, capacity: int, policy: str = "position") -> Tensor:
    if policy != "position":
        return _seated(ids, _queue(ids, scores, policy), capacity)
    return (_places(ids.flatten()) <= capacity).view(ids.shape)


def keep_by_best_score(ids: Tensor, scores: Tensor, capacity: int, policy: str = "position") -> Tensor:
    best = scores.amax(1, keepdim=True) - 10 * torch.arange(ids.shape[1]) if policy == "score" else scores
    return _seated(ids, _queue(ids, best, policy), capacity)


def keep_places_per_slot(ids: Tensor, scores: Tensor, capacity: int, policy: str = "position") -> Tensor:
    pairs = zip(ids.split(1, dim=1), scores.split(1, dim=1), strict=True)
    return torch.cat([_seated(i, _queue(i, s, policy), capacity) for i, s in pairs], dim=1)


def keep_whole_tokens(ids: Tensor, scores: Tensor, capacity: int, policy: str = "position") -> Tensor:
    return _seated(ids, _queue(ids, scores, policy), capacity).all(1, keepdim=True).expand(ids.shape).clone()


def keep_one_queue(ids: Tensor, scores: Tensor, capacity: int, policy: str = "position") -> Tensor:
    return _seated(torch.zeros_like(ids), _queue(ids, scores, policy), capacity)


def keep_unsorted(ids: Tensor, scores: Tensor, capacity: int, policy: str = "position") -> Tensor:
    order_N = _queue(ids, scores, policy)
    return (_places(ids.T.flatten()[order_N]) <= capacity).view(ids.T.shape).T


def keep_reshaped(ids: Tensor, scores: Tensor, capacity: int, policy: str = "position") -> Tensor:
    return _seated(ids, _queue(ids, scores, policy), capacity).T.reshape(ids.shape)


def keep_sorted_twice(ids: Tensor, scores: Tensor, capacity: int, policy: str = "position") -> Tensor:
    order_N = _queue(ids, scores, policy)
    return (_places(ids.T.flatten()[order_N]) <= capacity)[order_N].view(ids.T.shape).T


def keep_slot_by_slot(ids: Tensor, scores: Tensor, capacity: int, policy: str = "position") -> Tensor:
    slots = scores - 10 * torch.arange(ids.shape[1]) if policy == "score" else scores
    return _seated(ids, _queue(ids, slots, policy), capacity)


# ----------------------------------------------------------------------------------------------------- expert_choice


def choice_of_tokens(scores_TE: Tensor, capacity: int) -> Pair:
    values, ids = scores_TE.topk(capacity, dim=-1)
    return ids, values


def choice_transposed(scores_TE: Tensor, capacity: int) -> Pair:
    values, ids = scores_TE.topk(capacity, dim=0)
    return ids, values


def choice_values_first(scores_TE: Tensor, capacity: int) -> Pair:
    values, ids = scores_TE.T.topk(capacity, dim=-1)
    return values, ids


def choice_worst(scores_TE: Tensor, capacity: int) -> Pair:
    values, ids = scores_TE.T.topk(capacity, dim=-1, largest=False)
    return ids, values


def choice_ascending(scores_TE: Tensor, capacity: int) -> Pair:
    values, ids = scores_TE.T.topk(capacity, dim=-1)
    return ids.flip(-1), values.flip(-1)


def choice_in_text_order(scores_TE: Tensor, capacity: int) -> Pair:
    ids = scores_TE.T.topk(capacity, dim=-1).indices.sort(dim=-1).values
    return ids, scores_TE.T.gather(1, ids)


def choice_renormalised(scores_TE: Tensor, capacity: int) -> Pair:
    values, ids = scores_TE.T.topk(capacity, dim=-1)
    return ids, values / values.sum(-1, keepdim=True)


def choice_softmax_again(scores_TE: Tensor, capacity: int) -> Pair:
    values, ids = scores_TE.T.softmax(-1).topk(capacity, dim=-1)
    return ids, values


def choice_one_token_once(scores_TE: Tensor, capacity: int) -> Pair:
    left, ids = scores_TE.T.detach().clone(), []
    for expert in range(len(left)):
        best = left[expert].argsort(descending=True, stable=True)[:capacity]
        left[:, best] = -1.0
        ids.append(best)
    ids = torch.stack(ids)
    return ids, scores_TE.T.gather(1, ids)


def choice_reshaped(scores_TE: Tensor, capacity: int) -> Pair:
    values, ids = scores_TE.topk(capacity, dim=0)
    return ids.reshape(-1, capacity), values.reshape(-1, capacity)


def choice_softmax_over_experts(scores_TE: Tensor, capacity: int) -> Pair:
    values, ids = scores_TE.softmax(-1).T.topk(capacity, dim=-1)
    return ids, values


# ------------------------------------------------------------------------------------------------------------- words

KEEP = (
    Mistake(
        "position_only",
        "`policy` is not read: also by score, whoever comes first gets the place.",
        like=keep_position_only,
    ),
    Mistake(
        "score_only",
        "`policy` is not read: also by position, the highest score gets the place.",
        like=keep_score_only,
    ),
    Mistake(
        "worst_first",
        "By score, the tokens with the lowest scores were seated first. argsort sorts upwards.",
        like=keep_worst,
    ),
    Mistake(
        "one_too_many",
        "Each expert took one token more than it has places: a place counted from 0 must be below the capacity, one "
        "counted from 1 may equal it.",
        like=keep_one_more,
    ),
    Mistake(
        "one_too_few",
        "Each expert left one place empty: a place counted from 1 may equal the capacity.",
        like=keep_one_less,
    ),
    Mistake("dropped_not_kept", "This says who is dropped. True should mean kept.", like=keep_dropped),
    Mistake(
        "token_by_token",
        "By position, each token brought all its choices at once, so an early token's second choice takes the place of "
        "a later one's first. All first choices stand before any second.",
        like=keep_token_by_token,
    ),
    Mistake(
        "tokens_ranked",
        "By score, the tokens were ranked by their best weight, all first choices before any second. That is how V-MoE "
        "does it. Here the pairs of token and expert are ranked, each by its own weight.",
        like=keep_by_best_score,
    ),
    Mistake(
        "places_for_each_slot",
        "First and second choices were counted apart, so an expert takes up to K times its capacity. One queue for "
        "each expert.",
        like=keep_places_per_slot,
    ),
    Mistake(
        "whole_tokens",
        "A token that lost one choice lost all. Only the pair without a place is dropped.",
        like=keep_whole_tokens,
    ),
    Mistake(
        "one_queue_for_all",
        "All experts share one queue. Each has `capacity` places of its own.",
        like=keep_one_queue,
    ),
    Mistake(
        "not_sorted_back",
        "By position it is right, by score the answers stand in the order of the scores. Row t has to speak of "
        "token t.",
        like=keep_unsorted,
    ),
    Mistake(
        "sorted_twice",
        "By position it is right. By score the way back was taken with the order itself: `kept[order]` sorts once "
        "more. Write to those places instead: `back[order] = kept`.",
        like=keep_sorted_twice,
    ),
    Mistake(
        "reshaped",
        "A queue with all first choices, then all second ones, was shaped to [T, K] row by row. Shape it to [K, T], "
        "then transpose.",
        like=keep_reshaped,
    ),
    Mistake(
        "slot_by_slot",
        "By score, all first choices were seated before any second. That order belongs to the policy by position; by "
        "score there is one queue of all pairs, and a strong second choice comes before a weak first one.",
        like=keep_slot_by_slot,
    ),
)

EXPERT_CHOICE = (
    Mistake(
        "tokens_choose",
        "The tokens chose their experts, as in every router so far. Here a row is an expert, and it picks tokens.",
        like=choice_of_tokens,
    ),
    Mistake("transposed", "The right tokens, as [C, E]. One row an expert: [E, C].", like=choice_transposed),
    Mistake(
        "reshaped",
        "The right tokens, but [C, E] was reshaped to [E, C] row by row, which mixes the experts. Transpose it.",
        like=choice_reshaped,
    ),
    Mistake("scores_first", "Right numbers, wrong order: tokens first, then scores.", like=choice_values_first),
    Mistake("least_wanted", "Each expert took the tokens that like it least.", like=choice_worst),
    Mistake("worst_first", "The right tokens, the least wanted first.", like=choice_ascending),
    Mistake(
        "in_the_order_of_the_text",
        "The right tokens in the order of the text. The most wanted comes first.",
        like=choice_in_text_order,
    ),
    Mistake(
        "renormalised",
        "Each expert's scores were divided by their sum. A score is how much the *token* likes the expert; an expert "
        "with more tokens would count less for each of them.",
        like=choice_renormalised,
    ),
    Mistake(
        "softmax_again",
        "A softmax over the tokens came on top. The scores are a softmax over the experts already; use them as they "
        "are.",
        like=choice_softmax_again,
    ),
    Mistake(
        "softmax_over_experts_again",
        "A second softmax over the experts came on top. The scores are a softmax already; a second one flattens them.",
        like=choice_softmax_over_experts,
    ),
    Mistake(
        "each_token_once",
        "A token that one expert took was not offered to the others. It may be taken by several experts, or by none.",
        like=choice_one_token_once,
    ),
)
