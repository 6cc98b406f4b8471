"""A scheduler at work on a clock that is only counted: no model, no waiting, the same result every time.

Everything but the model is the real thing: arrivals, the queue, blocks, chunks, preemption. What a step takes is given
by a `Cost`, and every sampled token is 0. A million requests take tens of seconds.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from labkit.serve.scheduler.limits import Full
from labkit.serve.scheduler.scheduler import Scheduler
from labkit.serve.scheduler.sequence import Sequence
from labkit.serve.scheduler.step import Step


class Job(NamedTuple):
    """One request to come: at which second, with which prompt, how many tokens its answer has; `leaves` seconds after
    its arrival the client is gone."""

    arrival: float
    prompt: tuple[int, ...]
    output: int
    leaves: float = math.inf
    priority: int = 0
    salt: str = ""


@dataclass(frozen=True)
class Cost:
    """Seconds that a step takes, as a straight line.

    Args:
        fixed: whatever is computed: the weights are read, the kernels started.
        per_token: for each position computed: arithmetic.
        per_position: for each position that attention looks at, once for each chunk: the cache is read.

    Raises ValueError for negative ones, and if all are zero.
    """

    fixed: float = 5e-3
    per_token: float = 5e-6
    per_position: float = 5e-9

    def __post_init__(self) -> None:
        for name in ("fixed", "per_token", "per_position"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give seconds, 0 or more")
        if not self.fixed + self.per_token:
            raise ValueError("fixed and per_token are 0, so time would stand still; give one of them")

    def seconds(self, step: Step) -> float:
        """What this step takes."""
        tokens = positions = 0
        for _, start, fed, _, _ in step.chunks:
            tokens += len(fed)
            positions += start + len(fed)
        return self.fixed + tokens * self.per_token + positions * self.per_position


class Spread:
    """How often each duration occurred, in seconds.

    >>> Spread({1.0: 98, 5.0: 2}).at(0.99)
    5.0
    """

    def __init__(self, counts: dict[float, int]) -> None:
        self._values = sorted(counts)
        self._upto = list(accumulate(counts[value] for value in self._values))

    def __len__(self) -> int:
        return self._upto[-1] if self._upto else 0

    def at(self, share: float) -> float:
        """The smallest value that at least this share of all do not exceed: 0.5 the median, 1 the longest.

        Raises ValueError for a share that is not above 0 and up to 1, and if nothing occurred.
        """
        if not 0 < share <= 1 or not self._upto:
            raise ValueError(
                f"share is {share}, of {len(self)} durations; give a number above 0, up to 1, of one or more"
            )
        return self._values[bisect_left(self._upto, share * self._upto[-1] - 1e-9)]


@dataclass(frozen=True)
class Report:
    """What came of all jobs.

    `seconds` on the simulated clock; `prompt_tokens` and `output_tokens` of what finished; `ttft` from arrival to first
    token and `gaps` between a sequence's tokens.
    """

    finished: int
    cancelled: int
    refused: int
    steps: int
    seconds: float
    prompt_tokens: int
    output_tokens: int
    computed_tokens: int
    cached_tokens: int
    preemptions: int
    most_running: int
    ttft: Spread
    gaps: Spread

    @property
    def tokens_per_second(self) -> float:
        """New tokens of finished requests, by simulated second."""
        return self.output_tokens / self.seconds if self.seconds else 0.0


def simulate(
    scheduler: Scheduler,
    jobs: Iterable[Job],
    cost: Cost | None = None,
    look: Callable[[Step, float], None] | None = None,
) -> Report:
    """Run until everything has ended.

    Args:
        scheduler: a fresh one.
        jobs: in the order of their arrival; taken one by one, so a generator of a million is fine.
        cost: of a step; by default `Cost()`.
        look: called after each step with it and the second at which it ended.

    Raises ValueError for a scheduler that has worked, and for a job that can never run or comes before its predecessor.
    """
    if scheduler.load().steps or len(scheduler):
        raise ValueError("the scheduler has worked before; give a fresh one")
    return _Run(scheduler, iter(jobs), cost or Cost(), look).until_all_ended()


class _Run:
    """One simulation on its way."""

    def __init__(self, scheduler: Scheduler, jobs: Iterator[Job], cost: Cost, look) -> None:
        self.scheduler, self.jobs, self.cost, self.look = scheduler, jobs, cost, look
        self.clock, self.added, self.refused = 0.0, 0, 0
        self.next = next(jobs, None)
        self.leaving: list[tuple[float, str]] = []
        self.last: dict[str, float] = {}  # when each sequence had its last token
        self.ttft: Counter[float] = Counter()
        self.gaps: Counter[float] = Counter()
        self.prompt_tokens = self.output_tokens = self.most_running = 0

    def until_all_ended(self) -> Report:
        scheduler = self.scheduler
        while True:
            self._come_and_go()
            step = scheduler.schedule(self.clock)
            if step:
                self._run(step)
            elif self.next is not None:
                self.clock = self.next.arrival
            else:
                break
        load = scheduler.load()
        return Report(
            load.finished, load.cancelled, self.refused, load.steps, self.clock, self.prompt_tokens, self.output_tokens,
            load.computed_tokens, load.cached_tokens, load.preemptions, self.most_running,
            Spread(self.ttft), Spread(self.gaps),
        )  # fmt: skip

    def _come_and_go(self) -> None:
        while self.next is not None and self.next.arrival <= self.clock:
            self._add(self.next)
            before, self.next = self.next, next(self.jobs, None)
            if self.next is not None and not self.next.arrival >= before.arrival:
                raise ValueError(f"a job arrives at {self.next.arrival} s, after one of {before.arrival} s; sort them")
        while self.leaving and self.leaving[0][0] <= self.clock:
            _, id = heapq.heappop(self.leaving)
            self.scheduler.cancel(id)
            self.last.pop(id, None)

    def _add(self, job: Job) -> None:
        id = str(self.added)
        self.added += 1
        try:
            self.scheduler.add(Sequence(id, job.prompt, job.output, job.priority, job.arrival, job.salt))
        except Full:
            self.refused += 1
            return
        if job.leaves < math.inf:
            heapq.heappush(self.leaving, (job.arrival + job.leaves, id))

    def _run(self, step: Step) -> None:
        scheduler, last, gaps = self.scheduler, self.last, self.gaps
        self.clock += self.cost.seconds(step)
        self.most_running = max(self.most_running, len(scheduler.running))
        sampled = [chunk.id for chunk in step.chunks if chunk.samples]
        scheduler.update(step, dict.fromkeys(sampled, 0))
        now, sequences = self.clock, scheduler.sequences
        for id in sampled:
            sequence = sequences[id]
            if id in last:
                gaps[now - last[id]] += 1
            else:
                self.ttft[now - sequence.arrival] += 1
            last[id] = now
            if len(sequence.tokens) - len(sequence.prompt) == sequence.max_tokens:
                scheduler.finish(id)
                del last[id]
                self.prompt_tokens += len(sequence.prompt)
                self.output_tokens += sequence.max_tokens
        if self.look is not None:
            self.look(step, now)
