"""The ladder of batching, counted: what each way computes, and how much of that anybody needed.

Nothing runs here. The static ways are arithmetic; the continuous one asks the scheduler itself. A static batch is
done when its longest answer is: until then every row computes a token a step, needed or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from labkit.core.config import ModelConfig
from labkit.core.cost import model_flops_per_token
from labkit.core.whole import need_whole
from labkit.serve.scheduler.limits import Limits
from labkit.serve.scheduler.scheduler import Scheduler
from labkit.serve.scheduler.simulate import Job, simulate
from labkit.serve.scheduler.step import Step

Pair = tuple[int, int]  # tokens of a prompt, and of its answer


@dataclass(frozen=True)
class Work:
    """What a model computes: `tokens` go through its layers, attention looks at `pairs` of positions (each token at
    itself and all before it), and `samples` go through the head."""

    tokens: int = 0
    pairs: int = 0
    samples: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.pairs + other.pairs, self.samples + other.samples)

    def __sub__(self, other: Work) -> Work:
        return Work(self.tokens - other.tokens, self.pairs - other.pairs, self.samples - other.samples)

    def flops(self, model: ModelConfig) -> int:
        """FLOPs of it, two for a multiply-add; layers whose attention slides are counted as if it did not."""
        one = model_flops_per_token(model, context=1)
        return self.tokens * (one.total - one.scores - one.head) + self.pairs * one.scores + self.samples * one.head


def span(start: int, end: int, samples: int = 0) -> Work:
    """The work of computing one sequence's positions from `start` up to `end`.

    >>> span(2, 4)
    Work(tokens=2, pairs=7, samples=0)
    """
    return Work(end - start, (end * (end + 1) - start * (start + 1)) // 2, samples)


@dataclass(frozen=True)
class Tally:
    """One way of batching on one workload.

    `useful` is what of `computed` was for a token that somebody asked for, and for the first time. `reused_tokens` were
    found in the cache and not computed.
    """

    name: str
    steps: int
    computed: Work
    useful: Work
    reused_tokens: int = 0

    @property
    def wasted(self) -> float:
        """Share of the computed tokens that nobody needed."""
        return 1 - self.useful.tokens / self.computed.tokens

    def wasted_flops(self, model: ModelConfig) -> float:
        """Share of the FLOPs that nobody needed."""
        return 1 - self.useful.flops(model) / self.computed.flops(model)


def to_maximum(lengths: Iterable[Pair], batch_size: int, prompt: int, output: int) -> Tally:
    """Every prompt padded to `prompt` tokens, every batch `output` steps long. Raises ValueError for longer ones."""
    rows = _checked(lengths, batch_size)
    for long in rows:
        if long[0] > prompt or long[1] > output:
            raise ValueError(f"a request of {long[0]} and {long[1]} tokens is longer than {prompt} and {output}")
    return _static("maximum", _slices(rows, batch_size), (prompt, output))


def to_longest(lengths: Iterable[Pair], batch_size: int) -> Tally:
    """Batches in order of arrival, each as long as its longest prompt and then its longest answer.

    >>> to_longest([(4, 1), (2, 3)], batch_size=2)
    Tally(name='longest', steps=3, computed=Work(tokens=12, pairs=42, samples=6), useful=Work(tokens=8, pairs=20,
    samples=4), reused_tokens=0)
    """
    return _static("longest", _slices(_checked(lengths, batch_size), batch_size))


def by_bucket(lengths: Iterable[Pair], batch_size: int, edges: Sequence[int]) -> Tally:
    """Prompts of similar length share batches; how long an answer will be, nobody knows before.

    Args:
        edges: rising; a prompt goes into the first bucket whose edge it does not exceed, or into one after the last.

    Raises ValueError for edges that do not rise.
    """
    rows, edges = _checked(lengths, batch_size), list(edges)
    if edges != sorted(set(edges)):
        raise ValueError(f"edges are {edges}; give prompt lengths that rise")
    buckets: list[list[Pair]] = [[] for _ in range(len(edges) + 1)]
    for row in rows:
        buckets[sum(row[0] > edge for edge in edges)].append(row)
    return _static("bucket", [batch for bucket in buckets for batch in _slices(bucket, batch_size)])


def continuous(jobs: Iterable[Job], limits: Limits) -> Tally:
    """The scheduler's own steps; wasted is only what was computed again after a preemption.

    Args:
        jobs: see `workload.arrivals`; limits: with `reuse_prefixes`, common beginnings are computed once.
    """
    reached: dict[str, int] = {}
    computed, again = [0, 0, 0], [0, 0, 0]

    def look(step: Step, _: float) -> None:
        for chunk in step.chunks:
            end, before = chunk.start + len(chunk.tokens), reached.get(chunk.id, 0)
            _count(computed, span(chunk.start, end, int(chunk.samples)))
            if before > chunk.start:
                _count(again, span(chunk.start, min(end, before)))
            reached[chunk.id] = max(end, before)

    report = simulate(Scheduler(limits), jobs, look=look)
    if report.refused:
        raise ValueError(f"{report.refused} jobs found the queue full; raise max_waiting and max_waiting_tokens")
    name = "continuous, prefixes reused" if limits.reuse_prefixes else "continuous"
    return Tally(name, report.steps, Work(*computed), Work(*computed) - Work(*again), report.cached_tokens)


def _count(into: list[int], work: Work) -> None:
    into[0] += work.tokens
    into[1] += work.pairs
    into[2] += work.samples


def _static(name: str, batches: Iterable[Sequence[Pair]], to: Pair | None = None) -> Tally:
    steps, computed, useful = 0, Work(), Work()
    for batch in batches:
        prompt, output = to or (max(row[0] for row in batch), max(row[1] for row in batch))
        steps += output
        for row in batch:
            computed += span(0, prompt + output - 1, output)
            useful += span(0, row[0] + row[1] - 1, row[1])
    return Tally(name, steps, computed, useful)


def _slices(rows: Sequence[Pair], size: int) -> list[Sequence[Pair]]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def _checked(lengths: Iterable[Pair], batch_size: int) -> list[Pair]:
    rows = list(lengths)
    if not rows or any(min(row) < 1 for row in rows):
        raise ValueError("lengths hold no request, or one without a prompt or an answer; give pairs of 1 or more")
    need_whole("batch_size", batch_size)
    return rows
