"""Timelines of batches: recorded while a scheduler works, and the whole ladder from padding to reused prefixes.

No torch is loaded; what a timeline is, `labkit.core.timeline` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from labkit.core.timeline import Timeline
from labkit.core.whole import need_whole
from labkit.serve.padded import in_batches, padded
from labkit.serve.recording import Recording
from labkit.serve.scheduler.limits import Limits
from labkit.serve.scheduler.scheduler import Scheduler
from labkit.serve.scheduler.simulate import Cost, Job, simulate


def record(source: Any, most_steps: int = 10_000) -> Recording:
    """A recording of what a scheduler does; of an engine's, if it has one as `scheduler`.

    Args:
        source: a `Scheduler`, or an engine; one made with `ahead=False`, since books that are a step ahead of what is
            reported would be noted at the wrong step.
        most_steps: that are recorded; later ones are counted as `missing`.

    Raises ValueError for anything else.

    >>> scheduler = Scheduler(Limits(num_blocks=4, block_size=2))
    >>> look = record(scheduler)
    >>> report = simulate(scheduler, [Job(0.0, (1, 2, 3), 3), Job(0.0, (4,), 2)], look=look)
    >>> timeline = look.timeline()
    >>> timeline.num_steps, timeline.tokens, timeline.outputs
    (3, 7, (3, 2))
    """
    scheduler = getattr(source, "scheduler", source)
    if not isinstance(scheduler, Scheduler):
        raise ValueError(f"record got {type(source).__name__}; give a Scheduler, or an engine that has one")
    if getattr(source, "ahead", None) is not None:
        raise ValueError("this engine sends steps ahead of their results; make the one to record with ahead=False")
    need_whole("most_steps", most_steps)
    return Recording(scheduler, most_steps)


def ladder(
    jobs: Iterable[Job],
    limits: Limits,
    batch_size: int,
    *,
    maximum: tuple[int, int] | None = None,
    edges: Sequence[int] | None = None,
    cost: Cost | None = None,
) -> dict[str, Timeline]:
    """The same jobs in five ways: padded to a maximum, to the longest, by bucket, continuous, with reused prefixes.

    Args:
        jobs: in order of arrival; static batches look at their lengths only.
        limits: of the continuous ways; static ones have as much memory as they need, in blocks of the same size.
        batch_size: of the static ways.
        maximum: tokens of prompt and answer; by default the longest of each.
        edges: between buckets of prompt lengths; by default powers of two.
        cost: of a step, for all of them.

    Raises ValueError as `labkit.serve.batching` does, and if a job finds the queue full, leaves early, or has a
    priority.
    """
    jobs, cost = list(jobs), cost or Cost()
    if any(job.leaves < float("inf") for job in jobs):
        raise ValueError("a job leaves before its end; a padded batch cannot let it go: give jobs that stay")
    if any(job.priority for job in jobs):
        raise ValueError("a job has a priority; padded batches take jobs as they come: give jobs without one")
    lengths = [(len(job.prompt), job.output) for job in jobs]
    arrivals = [job.arrival for job in jobs]
    if edges is None:
        edges = [2**n for n in range(4, max((p for p, _ in lengths), default=1).bit_length())]

    def static(name: str, batches: list[list[int]], to: tuple[int, int] | None = None) -> Timeline:
        return padded(name, lengths, batches, to, arrivals=arrivals, block_size=limits.block_size, cost=cost)

    in_order = in_batches(lengths, batch_size)
    longest = (max(p for p, _ in lengths), max(o for _, o in lengths))
    ways = [
        static("maximum", in_order, maximum or longest),
        static("longest", in_order),
        static("bucket", in_batches(lengths, batch_size, edges)),
        _continuous("continuous", jobs, replace(limits, reuse_prefixes=False), cost),
        _continuous("continuous, prefixes reused", jobs, replace(limits, reuse_prefixes=True), cost),
    ]
    return {timeline.name: timeline for timeline in ways}


def _continuous(name: str, jobs: list[Job], limits: Limits, cost: Cost) -> Timeline:
    scheduler = Scheduler(limits)
    look = record(scheduler)
    report = simulate(scheduler, jobs, cost, look)
    if report.refused:
        raise ValueError(f"{report.refused} jobs found the queue full; raise max_waiting and max_waiting_tokens")
    return look.timeline(name)
