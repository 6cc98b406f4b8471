"""What a batch did, step by step: who computed which positions, who waited, and who held which block of the cache.

Everything is kept as intervals of steps, since little changes from one step to the next: a sequence that decodes for
two hundred steps is one `Span`, a block that it holds meanwhile one `Hold`. Thousands of steps of a thousand sequences
fit into some ten thousand tuples. `Timeline.at` gives one step with everything in it. Pure Python, no torch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from labkit.core.whole import need_whole

PREFILL, DECODE, PADDING = "prefill", "decode", "padding"
WAITING, IDLE = "waiting", "idle"
KINDS = (PREFILL, DECODE, PADDING, WAITING, IDLE)
"""What a sequence does in a step: computes a prompt (or anew what it lost), one token, or nothing that anybody needs;
waits without blocks; or has blocks and computes nothing, because the step was full."""

ARRIVED, CACHED, PREEMPTED = "arrived", "cached", "preempted"
FINISHED, CANCELLED, FAILED = ENDS = ("finished", "cancelled", "failed")
HAPPENINGS = (ARRIVED, CACHED, PREEMPTED, *ENDS)
NOBODY = -1


class Span(NamedTuple):
    """What one sequence does from step `first` up to `end`: in each step `tokens` positions, on from `start`.

    Of the tokens of each step, `wasted` are padding or were computed before.
    """

    row: int
    kind: str
    first: int
    end: int
    start: int = 0
    tokens: int = 0
    wasted: int = 0

    def one(self, step: int) -> Span:
        """Its part in one step.

        >>> Span(0, DECODE, 4, 9, start=20, tokens=1).one(6)
        Span(row=0, kind='decode', first=6, end=7, start=22, tokens=1, wasted=0)
        """
        return self._replace(first=step, end=step + 1, start=self.start + (step - self.first) * self.tokens)


class Hold(NamedTuple):
    """A block in the hands of one sequence from step `first` up to `end`, as number `place` of its blocks.

    A block that is `kept` belongs to nobody, but what is in it can be found again; `row` held it last, or is `NOBODY`
    where that was before the recording began.
    """

    block: int
    row: int
    place: int
    first: int
    end: int
    kept: bool = False


class Event(NamedTuple):
    """Something that happened to a sequence at a step: one of `HAPPENINGS`.

    An arrival is noted at the first step that could have taken it, an end at the last step that was still asked for.
    `tokens` says how many were found in the cache.
    """

    step: int
    row: int
    what: str
    tokens: int = 0


class Copy(NamedTuple):
    """Before this step's computation a block was copied into another one, because its holders part."""

    step: int
    source: int
    target: int


@dataclass(frozen=True)
class Moment:
    """One step of a timeline.

    `spans` hold one step each, in order of the rows: what every sequence did. `holders` gives the rows of each held
    block, `kept` the row that held a kept block last. `began` and `seconds` are None without a clock.
    """

    step: int
    spans: tuple[Span, ...]
    holders: Mapping[int, tuple[int, ...]]
    kept: Mapping[int, int]
    events: tuple[Event, ...] = ()
    copies: tuple[Copy, ...] = ()
    began: float | None = None
    seconds: float | None = None

    def doing(self, kind: str) -> tuple[int, ...]:
        """The rows that do this in the step, one of `KINDS`."""
        return tuple(span.row for span in self.spans if span.kind == kind)

    def having(self, what: str) -> tuple[int, ...]:
        """The rows to which this happened, one of `HAPPENINGS`."""
        return tuple(event.row for event in self.events if event.what == what)

    @property
    def tokens(self) -> int:
        """Positions computed."""
        return sum(span.tokens for span in self.spans)

    @property
    def wasted(self) -> int:
        """Of them padding, or computed before."""
        return sum(span.wasted for span in self.spans)


@dataclass(frozen=True)
class Timeline:
    """Some steps of a batch; see `labkit.serve.timeline`, which records one.

    Args:
        name: of the way of batching.
        ids: of the sequences, in order of arrival; their positions here are the rows of all that follows.
        prompts, outputs: tokens of each prompt, and of each answer so far.
        num_steps: steps are 0 up to this.
        spans: at most one for each row and step; rows and steps in rising order.
        holds, events, copies: in order of their steps.
        num_blocks, block_size: of the cache; no blocks where none were looked at.
        began, seconds: of each step, or nothing.
        missing: later steps that were not recorded.
        padded: whether prompts are padded, so that a row's positions are not all of its own tokens.

    Raises ValueError for what contradicts itself.
    """

    name: str
    ids: tuple[str, ...]
    prompts: tuple[int, ...]
    outputs: tuple[int, ...]
    num_steps: int
    spans: tuple[Span, ...]
    holds: tuple[Hold, ...] = field(default=(), repr=False)
    events: tuple[Event, ...] = field(default=(), repr=False)
    copies: tuple[Copy, ...] = field(default=(), repr=False)
    num_blocks: int = 0
    block_size: int = 16
    began: tuple[float, ...] = field(default=(), repr=False)
    seconds: tuple[float, ...] = field(default=(), repr=False)
    missing: int = 0
    padded: bool = False

    def __post_init__(self) -> None:
        for name, least in (("num_steps", 1), ("num_blocks", 0), ("block_size", 1), ("missing", 0)):
            need_whole(name, getattr(self, name), least)
        if not self.ids or not len(self.ids) == len(self.prompts) == len(self.outputs):
            raise ValueError(
                f"a timeline got {len(self.ids)} ids, {len(self.prompts)} prompts and {len(self.outputs)} outputs; "
                "give one of each for every sequence, at least one sequence"
            )
        clocks = {len(self.began), len(self.seconds)}
        if clocks != {0} and clocks != {self.num_steps}:
            raise ValueError(
                f"a timeline of {self.num_steps} steps got {len(self.began)} beginnings and {len(self.seconds)} "
                "durations; give one of each for every step, or none at all"
            )
        self._check_spans()
        self._check_holds()
        for event in self.events:
            self._check_place(event, event.row, event.step, event.step + 1)
            if event.what not in HAPPENINGS:
                raise ValueError(f"{event} is none of {', '.join(HAPPENINGS)}")
        for step, source, target in self.copies:
            if not (0 <= step < self.num_steps and max(source, target) < self.num_blocks and min(source, target) >= 0):
                raise ValueError(
                    f"a copy of block {source} into {target} at step {step} lies outside {self.num_blocks} blocks and "
                    f"{self.num_steps} steps"
                )

    def _check_spans(self) -> None:
        row, free = 0, 0
        for span in self.spans:
            self._check_place(span, span.row, span.first, span.end)
            if span.kind not in KINDS:
                raise ValueError(f"{span} has an unknown kind; give one of {', '.join(KINDS)}")
            if span.row < row or (span.row == row and span.first < free):
                raise ValueError(f"{span} comes too late, or a step is taken; sort spans by row, then by step")
            if not 0 <= span.wasted <= span.tokens or bool(span.tokens) == (span.kind in (WAITING, IDLE)):
                raise ValueError(f"{span} has tokens that do not fit its kind, or wastes more than it computes")
            row, free = span.row, span.end

    def _check_holds(self) -> None:
        for hold in self.holds:
            self._check_place(hold, hold.row, hold.first, hold.end)
            if not 0 <= hold.block < self.num_blocks or hold.place < 0:
                raise ValueError(f"{hold} is no block of {self.num_blocks}, or has no place")

    def _check_place(self, what: NamedTuple, row: int, first: int, end: int) -> None:
        lowest = NOBODY if isinstance(what, Hold) and what.kept else 0
        if not (lowest <= row < len(self.ids) and 0 <= first < end <= self.num_steps):
            raise ValueError(f"{what} lies outside {len(self.ids)} rows and {self.num_steps} steps")

    # --- one step, one row

    def at(self, step: int) -> Moment:
        """Everything in one step. Raises ValueError for a step that was not recorded."""
        self.need_step(step)
        holders: dict[int, list[int]] = {}
        kept: dict[int, int] = {}
        for hold in self.holds:
            if hold.first <= step < hold.end:
                if hold.kept:
                    kept[hold.block] = hold.row
                else:
                    holders.setdefault(hold.block, []).append(hold.row)
        return Moment(
            step,
            tuple(span.one(step) for row in range(len(self.ids)) if (span := self.span(row, step))),
            {block: tuple(sorted(rows)) for block, rows in sorted(holders.items())},
            dict(sorted(kept.items())),
            tuple(event for event in self.events if event.step == step),
            tuple(copy for copy in self.copies if copy.step == step),
            self.began[step] if self.began else None,
            self.seconds[step] if self.seconds else None,
        )

    def need_step(self, step: int) -> None:
        """Raise ValueError unless this is one of the steps."""
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < self.num_steps:
            raise ValueError(f"step is {step!r}; give a whole number from 0 to {self.num_steps - 1}")

    @cached_property
    def by_row(self) -> tuple[tuple[Span, ...], ...]:
        """The spans of each row, in order of steps."""
        rows: list[list[Span]] = [[] for _ in self.ids]
        for span in self.spans:
            rows[span.row].append(span)
        return tuple(map(tuple, rows))

    def span(self, row: int, step: int) -> Span | None:
        """What a row does in a step; None before it arrived and after its end."""
        spans = self.by_row[row]
        at = bisect_right(spans, step, key=lambda span: span.first) - 1
        return spans[at] if at >= 0 and step < spans[at].end else None

    def alive(self, first: int, end: int) -> list[int]:
        """The rows that do anything, waiting included, from step `first` up to `end`."""
        spans = self.by_row
        return [row for row in range(len(self.ids)) if any(s.first < end and s.end > first for s in spans[row])]

    def filled_from(self, hold: Hold) -> int:
        """The step at which something of use first stands in a held block; `hold.end` if it never does."""
        first = hold.place * self.block_size  # of its positions
        own = 0  # tokens of the row since then, padding left out
        spans = self.by_row[hold.row]
        for span in spans[max(0, bisect_right(spans, hold.first, key=lambda span: span.first) - 1) :]:
            here, end = max(span.first, hold.first), min(span.end, hold.end)
            if span.first >= hold.end:
                break
            if not span.tokens or here >= end:
                continue
            start = own if self.padded else span.one(here).start
            tokens = span.tokens - (span.wasted if self.padded else 0)
            if start > first:  # it was found in the cache
                return here
            if tokens and here + (first - start) // tokens < end:
                return here + (first - start) // tokens
            own += tokens * (end - here)
        return hold.end

    # --- sums

    @cached_property
    def computed(self) -> Counter[str]:
        """Positions computed in all steps, by kind, and `wasted` of them."""
        sums: Counter[str] = Counter()
        for span in self.spans:
            if span.tokens:
                sums[span.kind] += span.tokens * (span.end - span.first)
                sums["wasted"] += span.wasted * (span.end - span.first)
        return sums

    @property
    def tokens(self) -> int:
        """Positions computed in all steps."""
        return self.computed.total() - self.computed["wasted"]

    @property
    def wasted(self) -> float:
        """Share of the computed positions that were padding, or computed before."""
        return self.computed["wasted"] / self.tokens if self.tokens else 0.0

    def count(self, what: str) -> int:
        """How often this happened, one of `HAPPENINGS`; for `CACHED` the tokens that were found."""
        return sum(event.tokens if what == CACHED else 1 for event in self.events if event.what == what)

    @property
    def lasted(self) -> float | None:
        """Seconds from the beginning of the first step to the end of the last one; None without a clock."""
        return self.began[-1] + self.seconds[-1] - self.began[0] if self.began else None
