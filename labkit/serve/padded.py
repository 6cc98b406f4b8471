"""Timelines of static batches: rectangles of prompts and answers, with all that is computed for nobody.

A batch takes its sequences together, pads their prompts to one length, and ends when its longest answer does. Nothing
runs here; `labkit.serve.batching` counts the same batches without laying them out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from labkit.core.timeline import ARRIVED, DECODE, FINISHED, PADDING, PREFILL, WAITING, Event, Hold, Span, Timeline
from labkit.core.whole import need_whole
from labkit.serve.batching import by_bucket, to_longest, to_maximum
from labkit.serve.scheduler.simulate import Cost

Pair = tuple[int, int]  # tokens of a prompt, and of its answer


def in_batches(lengths: Sequence[Pair], batch_size: int, edges: Iterable[int] | None = None) -> list[list[int]]:
    """The rows of each batch: in order, or, with edges, prompts of similar length together.

    Args:
        edges: rising; a prompt goes into the first bucket whose edge it does not exceed, or into one after the last.

    Raises ValueError for lengths and edges that `labkit.serve.batching` refuses.

    >>> in_batches([(4, 1), (9, 1), (3, 1)], batch_size=2, edges=[4])
    [[0, 2], [1]]
    """
    edges = list(edges or ())
    by_bucket(lengths, batch_size, edges)
    buckets: list[list[int]] = [[] for _ in range(len(edges) + 1)]
    for row, (prompt, _) in enumerate(lengths):
        buckets[bisect_left(edges, prompt)].append(row)
    return [rows[at : at + batch_size] for rows in buckets for at in range(0, len(rows), batch_size)]


def padded(
    name: str,
    lengths: Sequence[Pair],
    batches: Sequence[Sequence[int]],
    to: Pair | None = None,
    *,
    arrivals: Sequence[float] | None = None,
    block_size: int = 16,
    cost: Cost | None = None,
) -> Timeline:
    """The timeline of static batches, one after the other.

    Args:
        lengths: tokens of each prompt and of its answer.
        batches: the rows of each, as `in_batches` gives them; every row in one batch.
        to: tokens of prompt and answer to which every row is padded; by default the longest of its batch.
        arrivals: seconds, rising; a batch begins when all of it is there. By default all at once.
        block_size: positions in a block; every row gets room for its whole rectangle in advance.
        cost: of a step; by default `Cost()`.

    Raises ValueError for rows that are longer than `to`, and for batches that leave one out or name it twice.
    """
    (to_longest(lengths, 1) if to is None else to_maximum(lengths, 1, *to))  # they check
    need_whole("block_size", block_size)
    if sorted(row for batch in batches for row in batch) != list(range(len(lengths))):
        raise ValueError(f"the batches are not of rows 0 to {len(lengths) - 1}, each in one; use in_batches")
    arrivals = [0.0] * len(lengths) if arrivals is None else list(arrivals)
    if len(arrivals) != len(lengths) or arrivals != sorted(arrivals):
        raise ValueError(
            f"{len(arrivals)} arrivals for {len(lengths)} rows; give one a row, in the order of their rows"
        )
    layout = _Layout(lengths, arrivals, block_size, cost or Cost())
    for batch in batches:
        layout.add(batch, to)
    return layout.timeline(name)


class _Layout:
    """Batches laid out so far."""

    def __init__(self, lengths: Sequence[Pair], arrivals: Sequence[float], block_size: int, cost: Cost) -> None:
        self.lengths, self.arrivals, self.block_size, self.cost = lengths, arrivals, block_size, cost
        self.began: list[float] = []
        self.seconds: list[float] = []
        self.first: dict[int, int] = {}  # by row: the step at which its batch begins
        self.spans: list[Span] = []
        self.holds: list[Hold] = []
        self.ends: list[Event] = []

    def add(self, batch: Sequence[int], to: Pair | None) -> None:
        at = len(self.began)
        width, steps = to or tuple(max(self.lengths[row][i] for row in batch) for i in (0, 1))
        blocks = -(-(width + steps - 1) // self.block_size)
        for i, row in enumerate(batch):
            self.first[row] = at
            self._row(row, at, width, steps)
            self.holds += [Hold(i * blocks + place, row, place, at, at + steps) for place in range(blocks)]
        self._clock(batch, width, steps)

    def _row(self, row: int, at: int, width: int, steps: int) -> None:
        prompt, output = self.lengths[row]
        self.spans.append(Span(row, PREFILL, at, at + 1, 0, width, width - prompt))
        for kind, first, end in ((DECODE, 1, output), (PADDING, output, steps)):
            if first < end:
                self.spans.append(Span(row, kind, at + first, at + end, width + first - 1, 1, int(kind == PADDING)))
        self.ends.append(Event(at + output - 1, row, FINISHED))

    def _clock(self, batch: Sequence[int], width: int, steps: int) -> None:
        now, cost, rows = max(self.arrivals[row] for row in batch), self.cost, len(batch)
        if self.began:
            now = max(now, self.began[-1] + self.seconds[-1])
        for step in range(steps):
            tokens = width if step == 0 else 1
            seconds = cost.fixed + rows * (tokens * cost.per_token + (width + step) * cost.per_position)
            self.began.append(now)
            self.seconds.append(seconds)
            now += seconds

    def timeline(self, name: str) -> Timeline:
        events = list(self.ends)
        for row, arrival in enumerate(self.arrivals):
            came = min(bisect_left(self.began, arrival), self.first[row])
            events.append(Event(came, row, ARRIVED))
            if came < self.first[row]:
                self.spans.append(Span(row, WAITING, came, self.first[row]))
        return Timeline(
            name,
            tuple(map(str, range(len(self.lengths)))),
            *map(tuple, zip(*self.lengths, strict=True)),
            len(self.began),
            tuple(sorted(self.spans, key=lambda span: (span.row, span.first))),
            tuple(sorted(self.holds, key=lambda hold: (hold.first, hold.block))),
            tuple(sorted(events)),
            num_blocks=1 + max(hold.block for hold in self.holds),
            block_size=self.block_size,
            began=tuple(self.began),
            seconds=tuple(self.seconds),
            padded=True,
        )  # fmt: skip
