"""What arrives at a fleet: many short requests and a few long ones, with beginnings in common. Seeded."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import accumulate

from labkit.core.whole import need_whole
from labkit.serve.fleet.simulated import Call
from labkit.serve.workload import lognormal_lengths


def traffic(
    count: int,
    rate: float | Callable[[float], float],
    *,
    seed: int = 0,
    groups: int = 0,
    shared: int = 0,
    skew: float = 1.0,
) -> list[Call]:
    """Calls with the course's lengths, in the order of their arrival.

    Args:
        count: how many.
        rate: per second, in a Poisson process; or a function of the second, above 0 everywhere and even over a gap.
        groups: system prompts; each call begins with one, the n-th as often as n^-skew. 0: none.
        shared: tokens of such a beginning; they come in front of the call's own.

    Raises ValueError for values out of range.

    >>> calls = traffic(1000, rate=10.0, groups=4, shared=512)
    >>> min(call.prompt for call in calls) > 512, max(call.group for call in calls)
    (True, 3)
    """
    need_whole("groups", groups, 0)
    need_whole("shared", shared, 1 if groups else 0)
    if not groups and shared:
        raise ValueError(f"shared is {shared} and groups 0; give a number of groups too")
    draw = random.Random(seed)
    upto = list(accumulate((at + 1) ** -skew for at in range(groups)))
    now, calls = 0.0, []
    for prompt, output in lognormal_lengths(count, seed):
        now += draw.expovariate(rate(now) if callable(rate) else rate)
        group = draw.choices(range(groups), cum_weights=upto)[0] if groups else -1
        calls.append(Call(now, shared + prompt, output, group, shared))
    return calls
