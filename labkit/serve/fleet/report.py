"""What came of all calls of a simulated fleet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from labkit.serve.scheduler.simulate import Spread


@dataclass(frozen=True)
class FleetReport:
    """What came of all calls; each sent one is answered, refused, broken or lost.

    Args:
        sent, answered: calls.
        refused: nobody was ready or the queue full, and the client was told.
        broken: the replica died when its answer had begun.
        lost: nothing had begun, and no retry was left.
        retried: how often a call was given to another replica.
        seconds: on the simulated clock; ttft: from arrival to first token; total: to the last one.
        firsts: (arrival, time to first token) of each answered call; failures: (second, how) of the others.
        prompt_tokens, cached_tokens: of prompts that were begun, and those of them that a cache held.
        longest: the longest queue that a replica ever had.
        work: busy seconds of each replica.
        scale: (second, replicas) whenever their number changed.
    """

    sent: int
    answered: int
    refused: int
    broken: int
    lost: int
    retried: int
    seconds: float
    ttft: Spread
    total: Spread
    mean_ttft: float
    mean_total: float
    firsts: tuple[tuple[float, float], ...]
    failures: tuple[tuple[float, str], ...]
    prompt_tokens: int
    cached_tokens: int
    longest: int
    work: tuple[float, ...]
    scale: tuple[tuple[float, int], ...]

    @property
    def hit_rate(self) -> float:
        """Prompt tokens that were not computed again, 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def imbalance(self) -> float:
        """Work of the busiest replica by that of the average one; 1 is even."""
        return max(self.work) * len(self.work) / sum(self.work) if sum(self.work) else 1.0

    @property
    def replica_seconds(self) -> float:
        """What has to be paid: replicas times the seconds they were there."""
        ends = [second for second, _ in self.scale[1:]] + [self.seconds]
        return sum(count * (end - start) for (start, count), end in zip(self.scale, ends, strict=True))


class Tally:
    """Counts while the simulation runs."""

    def __init__(self) -> None:
        self.sent = self.retried = self.longest = 0
        self.ended: Counter[str] = Counter()
        self.firsts: list[tuple[float, float]] = []
        self.totals: list[float] = []
        self.failures: list[tuple[float, str]] = []
        self.prompt_tokens = self.cached_tokens = 0
        self.work: list[float] = []
        self.scale: list[tuple[float, int]] = []

    def reads(self, prompt: int, cached: int) -> None:
        """A prompt is begun."""
        self.prompt_tokens += prompt
        self.cached_tokens += cached

    def answers(self, arrival: float, first: float, now: float) -> None:
        """An answer has ended whose first token came at `first`."""
        self.firsts.append((arrival, first - arrival))
        self.totals.append(now - arrival)

    def report(self, seconds: float) -> FleetReport:
        """All of it, frozen."""
        firsts, ended = [first for _, first in self.firsts], self.ended
        return FleetReport(
            self.sent, ended["answered"], ended["refused"], ended["broken"], ended["lost"], self.retried, seconds,
            Spread(Counter(firsts)), Spread(Counter(self.totals)),
            sum(firsts) / len(firsts) if firsts else 0.0, sum(self.totals) / len(firsts) if firsts else 0.0,
            tuple(sorted(self.firsts)), tuple(self.failures), self.prompt_tokens, self.cached_tokens, self.longest,
            tuple(self.work), tuple(self.scale),
        )  # fmt: skip
