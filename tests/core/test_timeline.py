"""The record: one step out of intervals, sums, and what it refuses."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from labkit.core.timeline import (
    ARRIVED,
    CACHED,
    DECODE,
    FINISHED,
    IDLE,
    PADDING,
    PREEMPTED,
    PREFILL,
    WAITING,
    Copy,
    Event,
    Hold,
    Moment,
    Span,
    Timeline,
)

# a: computes 5 positions, then decodes, then is gone. b: waits, computes 4 of which 2 were found, loses them, waits.
SMALL = Timeline(
    name="small",
    ids=("a", "b"),
    prompts=(5, 6),
    outputs=(3, 1),
    num_steps=5,
    spans=(
        Span(0, PREFILL, 0, 1, 0, 5),
        Span(0, DECODE, 1, 4, 5, 1),
        Span(1, WAITING, 0, 1),
        Span(1, PREFILL, 1, 3, 2, 2),
        Span(1, WAITING, 3, 4),
        Span(1, PREFILL, 4, 5, 0, 7, 6),
    ),
    holds=(
        Hold(0, 0, 0, 0, 4),
        Hold(1, 0, 1, 0, 4),
        Hold(0, 1, 0, 1, 3),
        Hold(2, 1, 1, 1, 3),
        Hold(1, 0, 1, 4, 5, kept=True),
        Hold(3, -1, 0, 0, 5, kept=True),
    ),
    events=(
        Event(0, 0, ARRIVED), Event(0, 1, ARRIVED), Event(1, 1, CACHED, 2), Event(3, 0, FINISHED),
        Event(3, 1, PREEMPTED),
    ),
    copies=(Copy(2, 1, 2),),
    num_blocks=4,
    block_size=4,
    began=(0.0, 1.0, 2.0, 3.0, 5.0),
    seconds=(1.0, 1.0, 1.0, 0.5, 1.0),
)  # fmt: skip


def test_a_step_has_everything_in_it():
    assert SMALL.at(2) == Moment(
        step=2,
        spans=(Span(0, DECODE, 2, 3, 6, 1), Span(1, PREFILL, 2, 3, 4, 2)),
        holders={0: (0, 1), 1: (0,), 2: (1,)},
        kept={3: -1},
        copies=(Copy(2, 1, 2),),
        began=2.0,
        seconds=1.0,
    )
    third, last = SMALL.at(3), SMALL.at(4)
    assert (third.having(PREEMPTED), third.having(FINISHED), third.having(ARRIVED)) == ((1,), (0,), ())
    assert (third.doing(DECODE), third.doing(WAITING), third.tokens) == ((0,), (1,), 1)
    assert (last.kept, last.tokens, last.wasted, last.holders) == ({1: 0, 3: -1}, 7, 6, {})


def test_rows_are_found_by_step():
    assert SMALL.span(0, 3) == Span(0, DECODE, 1, 4, 5, 1)
    assert SMALL.span(0, 4) is None
    assert SMALL.span(1, 3).kind == WAITING
    assert SMALL.alive(0, 5) == [0, 1]
    assert SMALL.alive(4, 5) == [1]
    assert [len(spans) for spans in SMALL.by_row] == [2, 4]


def test_sums_count_every_step_of_a_span():
    assert SMALL.computed == {PREFILL: 5 + 2 * 2 + 7, DECODE: 3, "wasted": 6}
    assert SMALL.tokens == 19
    assert SMALL.wasted == 6 / 19
    assert SMALL.lasted == 6.0
    assert (SMALL.count(CACHED), SMALL.count(PREEMPTED), SMALL.count(ARRIVED)) == (2, 1, 2)


def test_without_a_clock_there_are_no_seconds():
    still = replace(SMALL, began=(), seconds=())
    assert (still.lasted, still.at(0).began, still.at(0).seconds) == (None, None, None)


def test_nothing_computed_wastes_nothing():
    waits = Timeline("waits", ("a",), (1,), (0,), 1, (Span(0, WAITING, 0, 1),))
    assert (waits.tokens, waits.wasted) == (0, 0.0)


def test_it_can_be_sent_to_another_process():
    SMALL.by_row  # noqa: B018  what is cached must not stand in the way
    assert pickle.loads(pickle.dumps(SMALL)) == SMALL


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_steps": 0}, "num_steps is 0; give a whole number of 1"),
        ({"ids": ()}, "0 ids, 2 prompts and 2 outputs"),
        ({"outputs": (1,)}, "2 ids, 2 prompts and 1 outputs"),
        ({"began": (0.0,)}, "5 steps got 1 beginnings and 5 durations"),
        ({"spans": (Span(0, "sleeps", 0, 1),)}, "unknown kind; give one of prefill, decode"),
        ({"spans": (Span(2, WAITING, 0, 1),)}, "outside 2 rows and 5 steps"),
        ({"spans": (Span(0, WAITING, 0, 6),)}, "outside 2 rows and 5 steps"),
        ({"spans": (Span(0, WAITING, 2, 2),)}, "outside 2 rows and 5 steps"),
        ({"spans": (Span(1, WAITING, 0, 1), Span(0, WAITING, 0, 1))}, "sort spans by row"),
        ({"spans": (Span(0, WAITING, 0, 2), Span(0, IDLE, 1, 3))}, "a step is taken"),
        ({"spans": (Span(0, WAITING, 0, 1, 0, 1),)}, "tokens that do not fit its kind"),
        ({"spans": (Span(0, DECODE, 0, 1),)}, "tokens that do not fit its kind"),
        ({"spans": (Span(0, PADDING, 0, 1, 0, 1, 2),)}, "wastes more than it computes"),
        ({"holds": (Hold(4, 0, 0, 0, 1),)}, "no block of 4"),
        ({"holds": (Hold(0, -1, 0, 0, 1),)}, "outside 2 rows and 5 steps"),
        ({"events": (Event(0, 0, "died"),)}, "none of arrived, cached, preempted"),
        ({"events": (Event(5, 0, FINISHED),)}, "outside 2 rows and 5 steps"),
        ({"copies": (Copy(5, 0, 1),)}, "copy of block 0 into 1 at step 5"),
        ({"copies": (Copy(0, 0, 4),)}, "copy of block 0 into 4 at step 0"),
    ],
)
def test_contradictions_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        replace(SMALL, **change)


@pytest.mark.parametrize("step", [-1, 5, 1.0, True])
def test_a_step_that_was_not_recorded_is_refused(step):
    with pytest.raises(ValueError, match="give a whole number from 0 to 4"):
        SMALL.at(step)
