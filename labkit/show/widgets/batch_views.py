"""What of a timeline is sent to be drawn: a window of rows and steps, a page of the block pool, and all steps in bins.

Each is bounded, however long the timeline is. Pure Python; `batch_words` says the same in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

from labkit.core.timeline import DECODE, PREEMPTED, WAITING, Hold, Span, Timeline
from labkit.show.widgets.batch_words import short

ROWS = 24
BINS = 240
CELLS = 1024
PAGE = 64  # steps of the pool that are sent at once
MOST_SEGMENTS = 4096
MOST_RUNS = 1500
KEPT, RESERVED, HELD = 0, 1, 2

Run = tuple[str, int, int, int, int, int]  # kind, first, end, start, all tokens, of them wasted


def window(step: int, size: int, num_steps: int) -> tuple[int, int]:
    """The steps that are drawn around one: pages of `size` steps, the last one cut.

    >>> window(75, 30, 80)
    (60, 80)
    """
    first = step // size * size
    return first, min(first + size, num_steps)


def in_sight(timeline: Timeline, first: int, end: int) -> list[int]:
    """The rows that do something in these steps; those that have blocks before those that only wait."""
    waits, works = [], []
    for row in timeline.alive(first, end):
        kinds = {span.kind for span in timeline.by_row[row] if first < span.end and span.first < end}
        (waits if kinds == {WAITING} else works).append(row)
    return works + waits


def runs(spans: Sequence[Span], first: int, end: int) -> list[Run]:
    """What a row does in these steps, with spans of one kind that touch put together."""
    found: list[Run] = []
    for span in spans:
        low, high = max(span.first, first), min(span.end, end)
        if low >= high:
            continue
        start, tokens, wasted = span.one(low).start, span.tokens * (high - low), span.wasted * (high - low)
        if found and found[-1][0] == span.kind and found[-1][2] == low and bool(found[-1][5]) == bool(wasted):
            kind, before, _, start, more, also = found.pop()
            found.append((kind, before, high, start, more + tokens, also + wasted))
        else:
            found.append((span.kind, low, high, start, tokens, wasted))
    return found


def coarse(found: Sequence[Run], least: int) -> list[Run]:
    """The same with runs of fewer than `least` steps put into the one before them."""
    kept: list[Run] = []
    for run in found:
        if kept and run[2] - run[1] < least and kept[-1][2] == run[1]:
            kind, first, _, start, tokens, wasted = kept.pop()
            kept.append((kind, first, run[2], start, tokens + run[4], wasted + run[5]))
        else:
            kept.append(run)
    return kept


def rows_view(timeline: Timeline, step: int, size: int, selected: int) -> dict[str, Any]:
    """The rows in sight and what they do: what the upper drawing shows.

    At most `ROWS` of `count` rows, the page that holds the selected one; `before` and `after` it stand others, or −1.
    `least` above 1: runs of fewer steps were put into their neighbours, for there were too many to send.
    """
    first, end = window(step, size, timeline.num_steps)
    order = in_sight(timeline, first, end)
    at = order.index(selected) // ROWS * ROWS if selected in order else 0
    shown, beyond = order[at : at + ROWS], order[at + ROWS : at + ROWS + 1]
    found = {row: runs(timeline.by_row[row], first, end) for row in shown}
    least = 1
    while sum(map(len, found.values())) > MOST_RUNS:
        least *= 2
        found = {row: coarse(found[row], least) for row in shown}
    marks: dict[int, list[list[Any]]] = {row: [] for row in shown}
    for event in timeline.events:
        if event.row in marks and first <= event.step < end:
            marks[event.row].append([event.step, event.what, event.tokens])
    rows = [
        {
            "row": row, "id": short(timeline.ids[row]), "runs": found[row], "marks": marks[row][: MOST_RUNS // ROWS],
        }
        for row in shown
    ]  # fmt: skip
    ends = {"before": order[at - 1] if at else -1, "after": beyond[0] if beyond else -1}
    return {"first": first, "end": end, "rows": rows, "count": len(order), "least": least, **ends}


# --- the pool


def pool_view(timeline: Timeline, step: int, selected: int) -> dict[str, Any]:
    """The pool over the page of steps that holds this one: what the lower drawing shows.

    A segment is (cell, first, end, state, row, holders, held): what a cell looks like over some steps. Its row is the
    selected one if that is among its holders; `held` counts the held blocks of a cell, or the kept ones. A cell is one
    block, or `per_cell` of them where there are more than `CELLS`.
    """
    size, per_cell = PAGE, max(1, -(-timeline.num_blocks // CELLS))
    cells, holds = -(-timeline.num_blocks // per_cell), timeline.holds
    while True:
        first, end = window(step, size, timeline.num_steps)
        holds = [hold for hold in holds if hold.first < end and hold.end > first]
        by_cell = _by_cell(timeline, holds, first, end, per_cell)
        found = [segment for cell, pieces in by_cell for segment in _segments(cell, pieces, selected)]
        if len(found) <= MOST_SEGMENTS or size == 1:
            return {"first": first, "end": end, "cells": cells, "per_cell": per_cell, "segments": found}
        size //= 2


Piece = tuple[int, int, int, Hold]  # first, end, state


def _by_cell(
    timeline: Timeline, holds: Sequence[Hold], first: int, end: int, per_cell: int
) -> Iterator[tuple[int, list[Piece]]]:
    """Pieces of holds over which nothing about them changes, by cell."""
    cells: dict[int, list[Piece]] = {}
    for hold in holds:
        low, high = max(hold.first, first), min(hold.end, end)
        pieces = cells.setdefault(hold.block // per_cell, [])
        if hold.kept:
            pieces.append((low, high, KEPT, hold))
            continue
        filled = min(max(timeline.filled_from(hold), low), high)
        if low < filled:
            pieces.append((low, filled, RESERVED, hold))
        if filled < high:
            pieces.append((filled, high, HELD, hold))
    yield from sorted(cells.items())


def _segments(cell: int, pieces: list[Piece], selected: int) -> list[list[int]]:
    found: list[list[int]] = []
    for low, high in pairwise(sorted({at for piece in pieces for at in piece[:2]})):
        here = [piece for piece in pieces if piece[0] <= low and piece[1] >= high]
        if not here:
            continue
        look = _look(here, selected)
        if found and found[-1][2] == low and found[-1][3:] == look:
            found[-1][2] = high
        else:
            found.append([cell, low, high, *look])
    return found


def _look(pieces: list[Piece], selected: int) -> list[int]:
    """State, row, holders and number of blocks of a cell."""
    held = [piece for piece in pieces if piece[2] != KEPT] or pieces
    rows = [piece[3].row for piece in held]
    state = max(piece[2] for piece in held)
    holders: dict[int, int] = {}
    for *_, hold in held:
        holders[hold.block] = holders.get(hold.block, 0) + 1
    return [state, selected if selected in rows else min(rows), max(holders.values()), len(holders)]


# --- all steps


def held_blocks(timeline: Timeline) -> list[int]:
    """How many blocks are held in each step, a shared one counted once."""
    change = [0] * (timeline.num_steps + 1)
    free = dict.fromkeys(range(timeline.num_blocks), 0)
    for hold in timeline.holds:  # in order of their first step
        if not hold.kept and (low := max(hold.first, free[hold.block])) < hold.end:
            change[low] += 1
            change[hold.end] -= 1
            free[hold.block] = hold.end
    return list(accumulate(change))[:-1]


def overview(timeline: Timeline) -> dict[str, Any]:
    """All steps in at most `BINS` bins: mean tokens a step of each kind, mean share of the pool, preemptions."""
    S = timeline.num_steps
    change = {name: [0] * (S + 1) for name in ("prefill", "decode", "wasted")}
    for span in timeline.spans:
        name = "decode" if span.kind == DECODE else "prefill"
        for what, tokens in ((name, span.tokens - span.wasted), ("wasted", span.wasted)):
            change[what][span.first] += tokens
            change[what][span.end] -= tokens
    edges = [S * i // min(S, BINS) for i in range(min(S, BINS) + 1)]

    def means(values: Sequence[float], scale: float = 1.0) -> list[float]:
        return [round(scale * sum(values[low:high]) / (high - low), 4) for low, high in pairwise(edges)]

    preempted = [0] * S
    for event in timeline.events:
        preempted[event.step] += event.what == PREEMPTED
    return {
        "edges": edges,
        **{name: means(list(accumulate(values))[:-1]) for name, values in change.items()},
        "held": means(held_blocks(timeline), 1 / timeline.num_blocks) if timeline.num_blocks else [],
        "preempted": [sum(preempted[low:high]) for low, high in pairwise(edges)],
    }
