"""Calls that take turns: what the machine does in one minute and not in the next then happens to all of them.

A round gives every call one turn, in an order that rotates and every other time runs backwards. A turn is a few calls,
each between two events on the stream and after a write that empties the L2 cache; the turn's time is their median.
Nothing waits between the calls of a turn, so the Python of a call is hidden behind that write (0.1 ms) and the call
before it. On a GPU a first round does not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from labkit.kernels.bench.peers import reason
from labkit.kernels.measure import FLUSH_BYTES


def order(names: Sequence[str], number: int) -> list[str]:
    """Who comes when in a round: over 2·n rounds of n names, everyone stands at every place twice.

    >>> ["".join(order("abc", number)) for number in range(6)]
    ['abc', 'cba', 'bca', 'acb', 'cab', 'bac']
    """
    if not names:
        return []
    first = number // 2 % len(names)
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if number % 2 else turned


def take_turns(
    calls: Mapping[str, Callable[[], Any]], device: torch.device, *, rounds: int, repeats: int
) -> tuple[dict[str, tuple[float, ...]], dict[str, str]]:
    """Seconds of each call in each round, and why those are missing that failed on the way.

    Args:
        calls: by name, each compiled, tuned and run before.
        rounds: how many count; repeats: calls in a turn.

    Raises ValueError for less than one round or repeat.
    """
    if min(rounds, repeats) < 1:
        raise ValueError(f"rounds is {rounds} and repeats is {repeats}; give 1 or more")
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if device.type == "cuda" else None
    running, failed = dict(calls), {}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-1 if flush is not None else 0, rounds):
        for name in order(list(running), number):
            try:
                took = _turn(running[name], repeats, flush)
            except Exception as error:  # whatever one does, the others go on
                failed[name] = f"in round {max(0, number) + 1} of {rounds}: {reason(error)}"
                del running[name]
                continue
            if number >= 0:
                seconds[name].append(took)
    return {name: tuple(seconds[name]) for name in running}, failed


def _turn(call: Callable[[], Any], repeats: int, flush: torch.Tensor | None) -> float:
    if flush is None:
        return statistics.median(_wall(call) for _ in range(repeats))
    events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(repeats)]
    for start, end in events:
        flush.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


def _wall(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
