"""Lab 06: what a learner's cached step does when they have made a known mistake."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from labkit.course.judge import Failure
from labkit.course.labs import _06_cases as right


def _attend(query, keys, values, seen, *, scale=None, tile=False):
    """What attention makes of a rotated query; `seen` is None or [B, S]."""
    per = query.shape[1] // keys.shape[1]
    if tile:
        keys, values = keys.repeat(1, per, 1, 1), values.repeat(1, per, 1, 1)
    else:
        keys, values = keys.repeat_interleave(per, dim=1), values.repeat_interleave(per, dim=1)
    logits = query @ keys.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if seen is not None:
        logits = logits.masked_fill(~seen[:, None, None], float("-inf"))
    return logits.softmax(dim=-1) @ values


def _step(query, key, value, keys, values, real, rotate, *, at=None, seen=True, turn_query=True, turn_key=True, **how):
    at = real.sum(1, keepdim=True) if at is None else at
    keys = torch.cat([keys, rotate(key, at) if turn_key else key], dim=2)
    values = torch.cat([values, value], dim=2)
    mask = F.pad(real, (0, 1), value=True) if seen is True else seen
    return _attend(rotate(query, at) if turn_query else query, keys, values, mask, **how), keys, values


def step_position_of_the_cache(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, at=torch.full((len(real), 1), real.shape[1]))


def step_position_zero(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, at=torch.zeros(len(real), 1).long())


def step_one_behind(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, at=real.sum(1, keepdim=True) - 1)


def step_one_ahead(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, at=real.sum(1, keepdim=True) + 1)


def step_query_not_rotated(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, turn_query=False)


def step_key_not_rotated(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, turn_key=False)


def step_padding_seen(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, seen=None)


def step_new_token_unseen(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, seen=F.pad(real, (0, 1), value=False))


def step_only_itself(query, key, value, keys, values, real, rotate):
    mask = F.pad(torch.zeros_like(real), (0, 1), value=True)
    return _step(query, key, value, keys, values, real, rotate, seen=mask)


def step_mask_inverted(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, seen=F.pad(~real, (0, 1), value=True))


def step_mask_without_the_new(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, seen=real)


def step_not_scaled(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, scale=1.0)


def step_scaled_by_the_width(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, scale=1 / query.shape[-1])


def step_heads_tiled(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, tile=True)


def step_heads_not_repeated(query, key, value, keys, values, real, rotate):
    _, keys, values = right.cached_step(query, key, value, keys, values, real, rotate)
    logits = rotate(query, real.sum(1, keepdim=True)) @ keys.mT * query.shape[-1] ** -0.5
    seen = F.pad(real, (0, 1), value=True)[:, None, None]
    return logits.masked_fill(~seen, -math.inf).softmax(-1) @ values, keys, values


def step_cache_rotated_again(query, key, value, keys, values, real, rotate):
    at = F.pad(real, (0, 1), value=True).cumsum(1) - 1
    keys, values = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
    keys = rotate(keys, at.clamp_min(0))
    return _attend(rotate(query, at[:, -1:]), keys, values, F.pad(real, (0, 1), value=True)), keys, values


def step_prepended(query, key, value, keys, values, real, rotate):
    at = real.sum(1, keepdim=True)
    keys, values = torch.cat([rotate(key, at), keys], dim=2), torch.cat([value, values], dim=2)
    return _attend(rotate(query, at), keys, values, F.pad(real, (1, 0), value=True)), keys, values


def step_cache_not_grown(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate)[0], keys, values


def step_last_overwritten(query, key, value, keys, values, real, rotate):
    out, keys, values = _step(query, key, value, keys[:, :, :-1], values[:, :, :-1], real[:, :-1], rotate,
                              at=real.sum(1, keepdim=True))  # fmt: skip
    return out, keys, values


def step_value_rotated(query, key, value, keys, values, real, rotate):
    return _step(query, key, rotate(value, real.sum(1, keepdim=True)), keys, values, real, rotate)


def step_repeated_in_the_cache(query, key, value, keys, values, real, rotate):
    out, keys, values = right.cached_step(query, key, value, keys, values, real, rotate)
    per = math.ceil(query.shape[1] / keys.shape[1])
    return out, keys.repeat_interleave(per, dim=1), values.repeat_interleave(per, dim=1)


def step_position_of_the_first_row(query, key, value, keys, values, real, rotate):
    at = real.sum(1, keepdim=True)[:1].expand(len(real), 1)
    return _step(query, key, value, keys, values, real, rotate, at=at)


def step_position_of_all_rows(query, key, value, keys, values, real, rotate):
    at = real.sum().expand(len(real), 1)
    return _step(query, key, value, keys, values, real, rotate, at=at)


def step_position_without_its_dimension(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, at=real.sum(1))


def step_position_of_the_last_entry(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, at=real.cumsum(1)[:, -1:])


def no_last_entry(failure: Failure) -> bool:
    """An index that an empty cache does not have."""
    return failure.case.args[5].numel() == 0 and failure.outcome.error_type == "IndexError"


def step_query_counts_padding(query, key, value, keys, values, real, rotate):
    at = torch.full((len(real), 1), real.shape[1])
    return _step(rotate(query, at), key, value, keys, values, real, rotate, turn_query=False)


def step_key_counts_padding(query, key, value, keys, values, real, rotate):
    at = torch.full((len(real), 1), real.shape[1])
    return _step(query, rotate(key, at), value, keys, values, real, rotate, turn_key=False)


def step_causal_of_one(query, key, value, keys, values, real, rotate):
    mask = F.pad(torch.zeros_like(real), (0, 1)).scatter(1, torch.zeros(len(real), 1).long(), True)
    return _step(query, key, value, keys, values, real, rotate, seen=mask)


def step_mask_in_front(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, seen=F.pad(real, (1, 0), value=True))


def _weighted(change):
    """The step with other weights: `change(logits, seen)`, both broadcasting to [B, H, 1, S + 1]."""

    def step(query, key, value, keys, values, real, rotate):
        _, keys, values = right.cached_step(query, key, value, keys, values, real, rotate)
        per, seen = query.shape[1] // keys.shape[1], F.pad(real, (0, 1), value=True)[:, None, None]
        logits = rotate(query, real.sum(1, keepdim=True)) @ keys.repeat_interleave(per, dim=1).mT
        weights = change(logits * query.shape[-1] ** -0.5, seen)
        return weights @ values.repeat_interleave(per, dim=1), keys, values

    return step


step_mask_added = _weighted(lambda logits, seen: (logits + seen).softmax(-1))
step_mask_multiplied = _weighted(lambda logits, seen: (logits * seen).softmax(-1))
step_mask_after_softmax = _weighted(lambda logits, seen: logits.softmax(-1) * seen)
step_softmax_over_queries = _weighted(lambda logits, seen: logits.masked_fill(~seen, -math.inf).softmax(-2))


def step_multiplied_by_root(query, key, value, keys, values, real, rotate):
    return _step(query, key, value, keys, values, real, rotate, scale=query.shape[-1] ** 0.5)


def step_scaled_by_all_heads(query, key, value, keys, values, real, rotate):
    scale = (query.shape[1] * query.shape[-1]) ** -0.5
    return _step(query, key, value, keys, values, real, rotate, scale=scale)


def step_stores_the_plain_key(query, key, value, keys, values, real, rotate):
    out, _, grown = right.cached_step(query, key, value, keys, values, real, rotate)
    return out, torch.cat([keys, key], dim=2), grown


def step_only_the_new(query, key, value, keys, values, real, rotate):
    out, *_ = right.cached_step(query, key, value, keys, values, real, rotate)
    return out, rotate(key, real.sum(1, keepdim=True)), value


def step_values_first(query, key, value, keys, values, real, rotate):
    out, keys, values = right.cached_step(query, key, value, keys, values, real, rotate)
    return out, values, keys
