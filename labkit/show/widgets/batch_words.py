"""A timeline in words: all of it, one step, one sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from labkit.core.timeline import (
    CACHED,
    DECODE,
    ENDS,
    IDLE,
    PADDING,
    PREEMPTED,
    PREFILL,
    WAITING,
    Event,
    Moment,
    Span,
    Timeline,
)

MOST_NAMED = 5


def counted(n: int, what: str) -> str:
    """How many of what.

    >>> counted(1, "step"), counted(1200, "step")
    ('1 step', '1,200 steps')
    """
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def percent(share: float) -> str:
    """The share in per cent, three digits.

    >>> percent(0.12345)
    '12.3 %'
    """
    return f"{100 * share:.3g} %"


def named(ids: Sequence[str], rows: Sequence[int]) -> str:
    """Some rows by name.

    >>> named(list("abcdefgh"), [0, 1, 2, 3, 4, 6, 7])
    'a, b, c, d, e and 2 more'
    """
    more = f" and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
    return ", ".join(short(ids[row]) for row in rows[:MOST_NAMED]) + more


def short(id: str, most: int = 40) -> str:
    """An id that leaves room for others.

    >>> short("request-0123456789", most=10)
    'request-0…'
    """
    return id if len(id) <= most else id[: most - 1] + "…"


def duration(seconds: float) -> str:
    """Seconds, or milliseconds where they are few.

    >>> duration(0.0051), duration(18.2137)
    ('5.1 ms', '18.21 s')
    """
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:,.2f} s"


def of_all(t: Timeline) -> str:
    """A whole timeline in two or three sentences."""
    took = "" if t.lasted is None else f" ({duration(t.lasted)})"
    said = f"{t.name}: {counted(len(t.ids), 'sequence')} in {counted(t.num_steps, 'step')}{took}. "
    why = "as padding" if t.padded else "for the second time"
    said += f"{counted(t.tokens, 'token')} computed, {percent(t.wasted)} of them {why}."
    if found := t.count(CACHED):
        said += f" {counted(found, 'token')} found in the cache."
    if lost := t.count(PREEMPTED):
        said += f" {counted(lost, 'preemption')}."
    return said + (f" {counted(t.missing, 'later step')} not recorded." if t.missing else "")


def of_step(t: Timeline, now: Moment) -> str:
    """What goes on in one step."""
    clock = "" if now.began is None else f" (at {now.began - t.began[0]:.3f} s, takes {duration(now.seconds)})"
    said = f"Step {now.step:,}{clock}: {_work(now)}."
    if t.num_blocks:
        said += f" {_blocks(t, now)}."
    for what, verb in ((PREEMPTED, "Preempted"), *((end, end.capitalize()) for end in ENDS)):
        if rows := now.having(what):
            said += f" {verb}: {named(t.ids, rows)}."
    if now.copies:
        said += f" Blocks copied: {', '.join(f'{c.source} to {c.target}' for c in now.copies[:MOST_NAMED])}."
    return said


def _work(now: Moment) -> str:
    count: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for span in now.spans:
        count[span.kind] += 1
        tokens[span.kind] += span.tokens
    parts = [
        f"{count[PREFILL]} compute a prompt ({counted(tokens[PREFILL], 'token')})" if count[PREFILL] else "",
        f"{count[DECODE]} decode" if count[DECODE] else "",
        f"{count[PADDING]} compute padding" if count[PADDING] else "",
        f"{count[IDLE]} hold blocks and compute nothing" if count[IDLE] else "",
        f"{count[WAITING]} wait" if count[WAITING] else "",
    ]
    wasted = f"; of {counted(now.tokens, 'token')} {now.wasted:,} wasted" if now.wasted else ""
    return ", ".join(part for part in parts if part) + wasted


def _blocks(t: Timeline, now: Moment) -> str:
    shared = sum(len(rows) > 1 for rows in now.holders.values())
    said = f"{len(now.holders):,} of {counted(t.num_blocks, 'block')} held"
    said += f", {shared:,} of them by more than one" if shared else ""
    return said + (f"; {len(now.kept):,} kept" if now.kept else "")


def of_row(t: Timeline, row: int, now: Moment) -> str:
    """One sequence, and what it does in this step."""
    mine = [event for event in t.events if event.row == row]
    said = f"Sequence {short(t.ids[row])}: {counted(t.prompts[row], 'token')} of prompt, {t.outputs[row]:,} of answer"
    said += "".join(f"; {event.what} at step {event.step:,}" for event in _told(mine)) + "."
    return f"{said} Now it {_does(t, row, now)}."


def _told(mine: Sequence[Event]) -> list[Event]:
    few = [event for event in mine if event.what != CACHED]
    return few if len(few) <= MOST_NAMED else [*few[: MOST_NAMED - 1], few[-1]]


def _does(t: Timeline, row: int, now: Moment) -> str:
    span = t.span(row, now.step)
    if span is None:
        return "is not there yet" if now.step < t.by_row[row][0].first else "has ended"
    mine = [holders for holders in now.holders.values() if row in holders]
    shared = sum(len(holders) > 1 for holders in mine)
    holds = f", with {counted(len(mine), 'block')}" + (f", {shared} of them shared" if shared else "") if mine else ""
    return _doing(span.one(now.step)) + holds


def _doing(span: Span) -> str:
    last = span.start + span.tokens - 1
    if span.kind == PREFILL:
        wasted = f", {span.wasted:,} of them for nothing" if span.wasted else ""
        return f"computes positions {span.start:,} to {last:,}{wasted}"
    return {
        DECODE: f"decodes at position {span.start:,}" + (", for the second time" if span.wasted else ""),
        PADDING: "has its answer, and computes padding until the batch ends",
        WAITING: "waits",
        IDLE: "holds its blocks and computes nothing",
    }[span.kind]
