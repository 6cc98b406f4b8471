"""What arrives: lengths as people's are, spread over time, with or without a common beginning. Seeded, pure Python."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from labkit.core.whole import need_whole
from labkit.serve.scheduler.simulate import Job


class Lengths(NamedTuple):
    """Tokens of one request's prompt and of its answer."""

    prompt: int
    output: int


def lognormal_lengths(count: int = 256, seed: int = 0) -> tuple[Lengths, ...]:
    """The workload on which the course compares engines: many short requests, a few long ones.

    Prompts lognormal(5.0, 0.8) within 16 to 1024, answers lognormal(4.5, 0.7) within 8 to 256, rounded down; all
    prompts are drawn before the first answer, so another count gives other answers. Raises ValueError for a count
    below one.

    >>> lengths = lognormal_lengths()
    >>> sum(prompt for prompt, _ in lengths), sum(output for _, output in lengths)
    (51559, 28303)
    """
    need_whole("count", count)
    draw = random.Random(seed)
    prompts = [min(max(int(draw.lognormvariate(5.0, 0.8)), 16), 1024) for _ in range(count)]
    outputs = [min(max(int(draw.lognormvariate(4.5, 0.7)), 8), 256) for _ in range(count)]
    return tuple(map(Lengths, prompts, outputs))


def arrivals(
    lengths: Iterable[tuple[int, int]],
    rate: float = math.inf,
    *,
    seed: int = 0,
    vocab_size: int = 50_000,
    beginnings: int = 0,
    beginning_tokens: int = 0,
) -> Iterator[Job]:
    """Jobs of these lengths, in their order.

    Args:
        lengths: (prompt, output) of each.
        rate: per second, in a Poisson process; infinite: all at once.
        vocab_size: token ids are drawn below it.
        beginnings: how many system prompts there are; each job begins with one of them.
        beginning_tokens: their length; a prompt that is shorter begins with as much as leaves one token of its own.

    Raises ValueError for values out of range.
    """
    if not rate > 0:
        raise ValueError(f"rate is {rate}; give requests per second, above 0")
    if vocab_size < 1 or beginnings < 0 or beginning_tokens < 0 or bool(beginnings) != bool(beginning_tokens):
        raise ValueError(
            f"vocab_size is {vocab_size}, beginnings {beginnings}, beginning_tokens {beginning_tokens}; give a "
            "vocabulary, and both a number of beginnings and their length, or neither"
        )
    draw = random.Random(seed)
    common = [tuple(draw.choices(range(vocab_size), k=beginning_tokens)) for _ in range(beginnings)]
    now = 0.0
    for prompt, output in lengths:
        now += 0.0 if rate == math.inf else draw.expovariate(rate)
        start = draw.choice(common)[: prompt - 1] if common else ()
        yield Job(now, start + tuple(draw.choices(range(vocab_size), k=prompt - len(start))), output)
