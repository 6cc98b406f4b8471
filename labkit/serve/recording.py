"""A scheduler's steps as a timeline, while it works: what each step changed is kept, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labkit.core.timeline import (
    ARRIVED,
    CACHED,
    CANCELLED,
    DECODE,
    FAILED,
    FINISHED,
    IDLE,
    NOBODY,
    PREEMPTED,
    PREFILL,
    WAITING,
    Copy,
    Event,
    Hold,
    Span,
    Timeline,
)
from labkit.serve.scheduler.scheduler import Scheduler
from labkit.serve.scheduler.sequence import Sequence as Continuation
from labkit.serve.scheduler.sequence import Status
from labkit.serve.scheduler.step import Chunk, Step

_ENDS = {"cancelled": CANCELLED, "error": FAILED}


class Recording:
    """What `labkit.serve.timeline.record` returns: call it after every step, ask for its `timeline` at any time.

    A sequence that comes and ends within one step is taken to have finished if it got a token; one that comes and is
    cancelled between two steps, or forked off and ended within one, is never seen.
    """

    def __init__(self, scheduler: Scheduler, most_steps: int) -> None:
        self.scheduler, self.most_steps, self.missing = scheduler, most_steps, 0
        self.ids: list[str] = []
        self.prompts: list[int] = []
        self.outputs: list[int] = []
        self.began: list[float] = []
        self.seconds: list[float] = []
        self.live: dict[str, Continuation | None] = {}  # None: it came and ended within this step
        self.rows: dict[str, int] = {}  # of those that live
        self.computing: dict[int, Span] = {}  # by row: what it did last, but for waiting
        self.waiting: dict[int, int] = {}  # by row: since which step
        self.spans: list[Span] = []
        self.events: list[Event] = []
        self.copies: list[Copy] = []
        self.reached: dict[int, int] = {}  # by row: positions that were computed once
        self.blocks = _Blocks()

    def __call__(self, seen: Any, ended: float | None = None) -> None:
        """Note one step that has just been computed.

        Args:
            seen: the `Step`, with the second at which it `ended`; or a report with `step`, `began`, `seconds`, and, if
                it knows, `ended`: pairs of a sequence and why it ended.
        """
        if len(self.began) == self.most_steps:
            self._note_lengths()
            self.missing += 1
            return
        step: Step = getattr(seen, "step", seen)
        why = dict(getattr(seen, "ended", ()))
        began = getattr(seen, "began", step.now)
        self._sweep(step, why)
        self._arrive(step)
        self._work(step)
        self._end(step, why)
        self.began.append(began)
        self.seconds.append(getattr(seen, "seconds", (began if ended is None else ended) - began))

    def timeline(self, name: str = "continuous", named: Mapping[str, str] | None = None) -> Timeline:
        """What was recorded so far.

        Args:
            name: of the way in which the work was batched.
            named: readable names for sequences, by their ids; whoever has none keeps the id.

        Raises ValueError if nothing was recorded.
        """
        if not self.began:
            raise ValueError("nothing was recorded; give the recording to simulate as `look`, or to engine.observers")
        self._note_lengths()
        limits, steps = self.scheduler.limits, len(self.began)
        waits = [Span(row, WAITING, first, steps) for row, first in self.waiting.items()]
        spans = sorted([*self.spans, *self.computing.values(), *waits], key=lambda span: (span.row, span.first))
        return Timeline(
            name, tuple((named or {}).get(id, id) for id in self.ids), tuple(self.prompts), tuple(self.outputs), steps,
            tuple(spans), self.blocks.holds(steps), tuple(self.events), tuple(self.copies),
            limits.num_blocks, limits.block_size, tuple(self.began), tuple(self.seconds), self.missing,
        )  # fmt: skip

    # --- who comes and goes

    def _gone(self) -> list[tuple[str, Continuation | None]]:
        """Who is no longer with the scheduler; an id that came again is another one."""
        return sorted(self.live.items() - self.scheduler.sequences.items(), key=lambda pair: self.rows[pair[0]])

    def _sweep(self, step: Step, why: dict[str, str]) -> None:
        """Those that left between the last step and this one."""
        here = {chunk.id for chunk in step.chunks} | set(step.preempted)
        for id, continuation in self._gone():
            if id not in here or id in self.scheduler.sequences:
                self._leave(id, continuation, len(self.began) - 1, why.get(id))

    def _arrive(self, step: Step) -> None:
        """Those seen for the first time: first those that start now, which is the order in which they came."""
        now = self.scheduler.sequences
        for chunk in step.chunks:
            if chunk.id not in self.live:
                continuation = now.get(chunk.id)
                prompt = len(continuation.prompt) if continuation else chunk.start + len(chunk.tokens)
                self._enter(chunk.id, continuation, prompt)
        if now.keys() - self.live.keys():
            for id, continuation in now.items():
                if id not in self.live:
                    self._enter(id, continuation, len(continuation.prompt))

    def _enter(self, id: str, continuation: Continuation | None, prompt: int) -> None:
        self.live[id], self.rows[id] = continuation, len(self.ids)
        self.events.append(Event(len(self.began), len(self.ids), ARRIVED))
        self.ids.append(id)
        self.prompts.append(prompt)
        self.outputs.append(0)

    def _end(self, step: Step, why: dict[str, str]) -> None:
        """Those that left in this step, or right after it."""
        if gone := self._gone():
            samples = {chunk.id: chunk.samples for chunk in step.chunks}
            for id, continuation in gone:
                got_one = continuation is None and samples[id]
                self.outputs[self.rows[id]] = int(got_one)
                self._leave(id, continuation, len(self.began), why.get(id, "length" if got_one else None))

    def _leave(self, id: str, continuation: Continuation | None, step: int, why: str | None) -> None:
        row = self.rows.pop(id)
        del self.live[id]
        how = FINISHED
        if continuation is not None:
            self.outputs[row] = len(continuation.tokens) - len(continuation.prompt)
        if why is not None:
            how = _ENDS.get(why, FINISHED)
        elif continuation is None or continuation.status is not Status.FINISHED:
            how = CANCELLED
        self.events.append(Event(step, row, how))

    def _note_lengths(self) -> None:
        """How long the answers are that go on; not what came after the last recorded step."""
        for id, continuation in self.live.items():
            if continuation is not None and not self.missing:
                self.outputs[self.rows[id]] = len(continuation.tokens) - len(continuation.prompt)

    # --- what is done

    def _work(self, step: Step) -> None:
        at, tables = len(self.began), {}
        self.events += [Event(at, self.rows[id], PREEMPTED) for id in step.preempted if id in self.rows]
        for chunk in step.chunks:
            row = self.rows[chunk.id]
            self._compute(row, chunk, step.cached.get(chunk.id))
            tables[row] = chunk.blocks
        for continuation in self.scheduler.running.items:
            row = self.rows[continuation.id]
            if row not in tables:
                self._do(Span(row, IDLE, at, at + 1))
                tables[row] = continuation.blocks
        self._wait({self.rows[one.id] for one in self.scheduler.waiting.items})
        self.copies += [Copy(at, source, target) for source, target in step.copies]
        self.blocks.note(at, tables, self.scheduler.pool.kept_blocks)

    def _wait(self, rows: set[int]) -> None:
        at = len(self.began)
        for row in self.waiting.keys() - rows:
            self.spans.append(Span(row, WAITING, self.waiting.pop(row), at))
        for row in rows - self.waiting.keys():
            self.waiting[row] = at

    def _compute(self, row: int, chunk: Chunk, cached: int | None) -> None:
        at, end, reached = len(self.began), chunk.start + len(chunk.tokens), self.reached.get(row, 0)
        if cached is None and row in self.waiting:
            cached = chunk.start  # it starts again
        if cached:
            self.events.append(Event(at, row, CACHED, cached))
        decodes = len(chunk.tokens) == 1 and chunk.start >= self.prompts[row]
        wasted = max(0, min(end, reached) - chunk.start)
        self.reached[row] = max(end, reached)
        self._do(Span(row, DECODE if decodes else PREFILL, at, at + 1, chunk.start, len(chunk.tokens), wasted))

    def _do(self, new: Span) -> None:
        """One step of a row: more of what it did before, or something else."""
        row, kind, at, _, start, tokens, wasted = new
        old = self.computing.get(row)
        if old is not None:
            follows = old.end == at and start == old.start + (at - old.first) * old.tokens
            if follows and (kind, tokens, wasted) == (old.kind, old.tokens, old.wasted):
                new = Span(row, kind, old.first, at + 1, old.start, tokens, wasted)
            else:
                self.spans.append(old)
        self.computing[row] = new


class _Blocks:
    """Which row holds which block since when, and which blocks are kept."""

    def __init__(self) -> None:
        self.tables: dict[int, tuple[int, ...]] = {}
        self.since: dict[tuple[int, int], int] = {}  # by row and place
        self.holders: Counter[int] = Counter()
        self.last: dict[int, tuple[int, int]] = {}  # by block: the row and place where it was held last
        self.kept: dict[int, Hold] = {}
        self.closed: list[Hold] = []

    def note(self, at: int, tables: dict[int, Sequence[int]], kept: Iterable[int]) -> None:
        for row in self.tables.keys() - tables.keys():
            self._change(at, row, ())
        for row, table in tables.items():
            if table is not self.tables.get(row):
                self._change(at, row, tuple(table))
        now = set(kept).difference(self.holders)
        for block in self.kept.keys() - now:
            self.closed.append(self.kept.pop(block)._replace(end=at))
        for block in now - self.kept.keys():
            row, place = self.last.get(block, (NOBODY, 0))
            self.kept[block] = Hold(block, row, place, at, at + 1, kept=True)

    def _change(self, at: int, row: int, table: tuple[int, ...]) -> None:
        before = self.tables.pop(row, ())
        for place, block in enumerate(before):
            if table[place : place + 1] != (block,):
                self.closed.append(Hold(block, row, place, self.since.pop((row, place)), at))
                self.holders[block] -= 1
                if not self.holders[block]:
                    del self.holders[block]
        for place, block in enumerate(table):
            if before[place : place + 1] != (block,):
                self.since[row, place] = at
                self.holders[block] += 1
                self.last[block] = row, place
        if table:
            self.tables[row] = table

    def holds(self, end: int) -> tuple[Hold, ...]:
        """All of them, those that go on until the end too."""
        held = [
            Hold(block, row, place, self.since[row, place], end)
            for row, table in self.tables.items()
            for place, block in enumerate(table)
        ]
        every = [*self.closed, *held, *(hold._replace(end=end) for hold in self.kept.values())]
        return tuple(sorted(every, key=lambda hold: (hold.first, hold.block, hold.row)))
