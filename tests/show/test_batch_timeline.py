"""The batch timeline's kernel side: what is sent is the record's, however long that is, and the words say the same."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from records import payload

from labkit import show
from labkit.core.timeline import (
    ARRIVED,
    CACHED,
    CANCELLED,
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
    Span,
    Timeline,
)
from labkit.show.style import GREY, LIT, PALETTE
from labkit.show.widgets import batch_views, batch_words
from labkit.show.widgets.batch_timeline import BatchTimeline, batch_timeline

# Row 0 decodes to its end; row 1 loses its blocks at step 3 and computes again at step 5; row 2 waits and is gone.
SMALL = Timeline(
    name="small",
    ids=("a", "b", "c"),
    prompts=(5, 6, 3),
    outputs=(4, 2, 0),
    num_steps=6,
    spans=(
        Span(0, PREFILL, 0, 1, 0, 5), Span(0, DECODE, 1, 4, 5, 1),
        Span(1, WAITING, 0, 1), Span(1, PREFILL, 1, 2, 4, 2), Span(1, DECODE, 2, 3, 6, 1), Span(1, WAITING, 3, 5),
        Span(1, PREFILL, 5, 6, 4, 4, 3),
        Span(2, WAITING, 1, 4),
    ),
    holds=(
        Hold(0, 0, 0, 0, 4), Hold(1, 0, 1, 0, 4), Hold(0, 1, 0, 1, 3), Hold(2, 1, 1, 1, 3), Hold(3, 1, 2, 1, 3),
        Hold(0, 0, 0, 4, 5, kept=True), Hold(0, 1, 0, 5, 6), Hold(1, 1, 1, 5, 6),
    ),
    events=(
        Event(0, 0, ARRIVED), Event(0, 1, ARRIVED), Event(1, 1, CACHED, 4), Event(1, 2, ARRIVED),
        Event(3, 0, FINISHED), Event(3, 1, PREEMPTED), Event(3, 2, CANCELLED), Event(5, 1, CACHED, 4),
    ),
    copies=(Copy(2, 1, 2),),
    num_blocks=5,
    block_size=4,
    began=(0.0, 0.5, 1.0, 1.5, 2.0, 2.5),
    seconds=(0.5,) * 6,
)  # fmt: skip


def drawn(steps: int, rows: int, blocks: int, seed: int = 0, busiest: bool = False) -> Timeline:
    """Any timeline of this size: rows that compute, wait, hold; blocks that change hands. `busiest`: at every step."""
    draw, spans, holds = random.Random(seed), [], []
    for row in range(rows):
        at = draw.randrange(max(1, steps // 2))
        while at < steps - 1:
            end = min(steps, at + (1 if busiest else draw.randint(1, 60)))
            kind = draw.choice([PREFILL, DECODE, WAITING, IDLE])
            tokens = {PREFILL: draw.randint(2, 64), DECODE: 1}.get(kind, 0)
            spans.append(Span(row, kind, at, end, draw.randint(0, 900), tokens))
            at = end if draw.random() < 0.97 or busiest else steps
    for block in range(blocks):
        at = 0
        while at < steps:
            end = min(steps, at + draw.randint(1, 3 if busiest else 90))
            row = draw.randrange(rows)
            holds.append(Hold(block, row, draw.randint(0, 5), at, end, kept=draw.random() < 0.2))
            if draw.random() < 0.2:
                holds.append(Hold(block, (row + 1) % rows, 0, at, end))
            at = end + draw.randint(0, 4)
    holds.sort(key=lambda hold: (hold.first, hold.block))
    events = tuple(Event(draw.randrange(steps), draw.randrange(rows), PREEMPTED) for _ in range(steps // 4))
    ids = tuple(f"request-{row}" for row in range(rows))
    return Timeline(
        "drawn", ids, (9,) * rows, (9,) * rows, steps, tuple(spans), tuple(holds), tuple(sorted(events)),
        num_blocks=blocks,
    )  # fmt: skip


def test_the_rows_sent_are_the_record():
    w = batch_timeline(SMALL)
    assert (w.shown, w.sizes, w.num_steps) == (30, [30], 6)
    assert (w.rows["first"], w.rows["end"], w.rows["count"], w.rows["least"]) == (0, 6, 3, 1)
    assert [row["id"] for row in w.rows["rows"]] == ["a", "b", "c"]
    assert w.rows["rows"][1] == {
        "row": 1,
        "id": "b",
        "runs": [
            (WAITING, 0, 1, 0, 0, 0), (PREFILL, 1, 2, 4, 2, 0), (DECODE, 2, 3, 6, 1, 0), (WAITING, 3, 5, 0, 0, 0),
            (PREFILL, 5, 6, 4, 4, 3),
        ],
        "marks": [[0, ARRIVED, 0], [1, CACHED, 4], [3, PREEMPTED, 0], [5, CACHED, 4]],
    }  # fmt: skip


def test_the_pool_sent_is_the_record():
    HELD, KEPT, RESERVED = batch_views.HELD, batch_views.KEPT, batch_views.RESERVED
    want = [
        [0, 0, 1, HELD, 0, 1, 1], [0, 1, 3, HELD, 0, 2, 1], [0, 3, 4, HELD, 0, 1, 1], [0, 4, 5, KEPT, 0, 1, 1],
        [0, 5, 6, HELD, 1, 1, 1], [1, 0, 4, HELD, 0, 1, 1], [1, 5, 6, HELD, 1, 1, 1], [2, 1, 3, HELD, 1, 1, 1],
        [3, 1, 3, RESERVED, 1, 1, 1],
    ]  # fmt: skip
    w = batch_timeline(SMALL)
    assert (w.pool["cells"], w.pool["per_cell"], w.pool["first"], w.pool["end"]) == (5, 1, 0, 6)
    assert w.pool["segments"] == want
    w.selected = 1  # a shared block shows the one in hand
    assert w.pool["segments"][1] == [0, 1, 3, HELD, 1, 2, 1]


@pytest.mark.parametrize("blocks", [7, 1500])
def test_every_step_of_the_pool_counts_what_the_record_holds(blocks):
    timeline = drawn(150, 20, blocks)
    for step in range(0, 150, 11):
        pool = batch_views.pool_view(timeline, step, selected=3)
        assert pool["first"] <= step < pool["end"]
        here = [segment for segment in pool["segments"] if segment[1] <= step < segment[2]]
        assert len({cell for cell, *_ in here}) == len(here)
        now = timeline.at(step)
        held = sum(n for *_, state, _, _, n in here if state != batch_views.KEPT)
        assert held == len(now.holders) == batch_views.held_blocks(timeline)[step]
        for cell, _, _, state, row, holders, _ in here:
            blocks_of = range(cell * pool["per_cell"], (cell + 1) * pool["per_cell"])
            rows = [rows for block in blocks_of if (rows := now.holders.get(block))]
            if state != batch_views.KEPT:
                assert holders == max(map(len, rows))
                assert row in itertools.chain(*rows)
                assert row == 3 or all(3 not in each for each in rows)


def test_a_padded_row_fills_its_blocks_with_its_own_tokens_only():
    holds = tuple(Hold(place, 0, place, 0, 4) for place in range(4))
    spans = (Span(0, PREFILL, 0, 1, 0, 6, 4), Span(0, DECODE, 1, 3, 6, 1), Span(0, PADDING, 3, 4, 8, 1, 1))
    padded = Timeline("padded", ("a",), (2,), (3,), 4, spans, holds, num_blocks=4, block_size=2, padded=True)
    assert [padded.filled_from(hold) for hold in holds] == [0, 1, 4, 4]
    straight = Timeline("straight", ("a",), (6,), (3,), 4, spans, holds, num_blocks=4, block_size=2)
    assert [straight.filled_from(hold) for hold in holds] == [0, 0, 0, 1]


def test_the_overview_adds_up():
    whole = batch_views.overview(SMALL)
    assert whole["edges"] == list(range(7))
    assert whole["prefill"] == [5, 2, 0, 0, 0, 1]
    assert whole["decode"] == [0, 1, 2, 1, 0, 0]
    assert whole["wasted"] == [0, 0, 0, 0, 0, 3]
    assert whole["held"] == [0.4, 0.8, 0.8, 0.4, 0, 0.4]
    assert whole["preempted"] == [0, 0, 0, 1, 0, 0]
    long = drawn(1000, 30, 40)
    binned = batch_views.overview(long)
    widths = [high - low for low, high in itertools.pairwise(binned["edges"])]
    assert len(widths) == batch_views.BINS
    for name in (PREFILL, DECODE):
        total = sum(mean * width for mean, width in zip(binned[name], widths, strict=True))
        assert total == pytest.approx(long.computed[name], rel=1e-3)
    assert sum(binned["preempted"]) == long.count(PREEMPTED)


def test_words_of_the_whole_a_step_and_a_sequence():
    w = batch_timeline(SMALL)
    assert w.note == (
        "small: 3 sequences in 6 steps (3.00 s). 15 tokens computed, 20 % of them for the second time. 8 tokens found "
        "in the cache. 1 preemption."
    )
    w.step = 2
    assert w.says == (
        "Step 2 (at 1.000 s, takes 500 ms): 2 decode, 1 wait. 4 of 5 blocks held, 1 of them by more than one. Blocks "
        "copied: 1 to 2."
    )
    w.step = 3
    assert w.says.endswith("2 of 5 blocks held. Preempted: b. Finished: a. Cancelled: c.")
    w.step = 5
    assert "1 compute a prompt (4 tokens); of 4 tokens 3 wasted" in w.says
    w.selected = 1
    assert w.detail == (
        "Sequence b: 6 tokens of prompt, 2 of answer; arrived at step 0; preempted at step 3. Now it computes "
        "positions 4 to 7, 3 of them for nothing, with 2 blocks."
    )
    w.step, w.selected = 1, 0
    assert w.detail.endswith("Now it decodes at position 5, with 2 blocks, 1 of them shared.")
    w.step = 4
    assert w.detail.endswith("Now it has ended.")
    w.step, w.selected = 0, 2
    assert w.detail.endswith("Now it is not there yet.")


def test_the_page_of_rows_holds_the_one_in_hand():
    timeline = drawn(200, 100, 30)
    w = batch_timeline(timeline)
    assert w.selected == 0
    order = batch_views.in_sight(timeline, 0, 200)
    assert w.rows["count"] == len(order) == 100
    for place in (0, 23, 24, 60, 99):
        w.selected = order[place]
        shown = [row["row"] for row in w.rows["rows"]]
        first = place // batch_views.ROWS * batch_views.ROWS
        assert shown == order[first : first + batch_views.ROWS]
        assert w.rows["before"] == (order[first - 1] if first else -1)
        assert w.rows["after"] == (order[first + 24] if first + 24 < 100 else -1)
    assert "24 of 100 sequences" in batch_timeline(timeline).sampled


def test_rows_that_work_come_before_rows_that_wait():
    spans = (Span(0, WAITING, 0, 9), Span(1, WAITING, 0, 4), Span(1, DECODE, 4, 5, 1, 1), Span(2, DECODE, 0, 9, 3, 1))
    timeline = Timeline("order", ("a", "b", "c"), (1,) * 3, (1,) * 3, 9, spans)
    assert batch_views.in_sight(timeline, 0, 9) == [1, 2, 0]
    assert batch_views.in_sight(timeline, 0, 4) == [2, 0, 1]
    assert batch_views.in_sight(timeline, 5, 9) == [2, 0]


@pytest.mark.parametrize("busiest", [False, True])
def test_ten_thousand_steps_of_a_thousand_sequences_send_little(busiest):
    timeline = drawn(1_200 if busiest else 10_000, 60 if busiest else 1_000, 80, busiest=busiest)
    w = batch_timeline(timeline)
    for step, shown in ((0, 120), (timeline.num_steps - 1, w.sizes[-1]), (timeline.num_steps // 2, w.sizes[-1])):
        w.step, w.shown = step, shown
        json.dumps([w.rows, w.pool, w.whole], allow_nan=False)
        assert sum(len(row["runs"]) for row in w.rows["rows"]) <= batch_views.MOST_RUNS
        assert len(w.pool["segments"]) <= batch_views.MOST_SEGMENTS
        assert payload(w) < 300_000
    if busiest:
        assert "are drawn as their neighbours" in w.sampled


def test_short_runs_are_put_into_their_neighbours_and_no_step_is_lost():
    timeline = drawn(500, 1, 4, busiest=True)
    found = batch_views.runs(timeline.by_row[0], 0, 500)
    for least in (2, 8, 64):
        fewer = batch_views.coarse(found, least)
        assert len(fewer) < len(found)
        assert (fewer[0][1], fewer[-1][2]) == (found[0][1], found[-1][2])
        assert all(before[2] == after[1] for before, after in itertools.pairwise(fewer))
        assert sum(run[4] for run in fewer) == sum(run[4] for run in found)


def test_colours_name_up_to_eight_and_one_in_hand_leaves_the_rest_grey():
    few, many = batch_timeline(SMALL), batch_timeline(drawn(60, 9, 4))
    assert [few.color(row) for row in range(3)] == list(PALETTE[:3])
    few.selected = 1
    assert [few.color(row) for row in range(3)] == [GREY, PALETTE[1], GREY]
    assert (many.selected, [many.color(row) for row in range(3)]) == (0, [LIT, GREY, GREY])
    many.selected = -1
    assert {many.color(row) for row in range(9)} == {GREY}


def ladder() -> dict[str, Timeline]:
    """The same three sequences in a second way that has fewer steps."""
    short = Timeline("short", ("a", "b", "c"), (5, 6, 3), (4, 2, 0), 2, (Span(0, PREFILL, 0, 2, 0, 7, 2),), padded=True)
    return {"small": SMALL, "short": short}


def test_ways_are_compared():
    w = batch_timeline(ladder())
    assert w.ways == [["small", 6, 3.0, 15, 0.2], ["short", 2, None, 14, 0.28571]]
    w.step = 5
    w.way = 1
    assert (w.step, w.num_steps, w.timeline.name, w.pool["cells"]) == (1, 2, "short", 0)
    assert w.note == "short: 3 sequences in 2 steps. 14 tokens computed, 28.6 % of them as padding."
    assert w.says == "Step 1: 1 compute a prompt (7 tokens); of 7 tokens 2 wasted."
    assert "short: 2 steps, 28.6 % wasted" in w.picture().alt


def test_one_message_says_what_several_say():
    change = {"way": 0, "step": 130, "selected": 40, "shown": 60}

    def sent(widget: BatchTimeline) -> dict:
        state = widget.get_state()
        return {name: value for name, value in state.items() if not name.startswith("_") and name != "layout"}

    timelines = [drawn(150, 50, 8, busiest=True), drawn(20, 50, 4)]

    def build() -> BatchTimeline:
        w = batch_timeline(timelines)
        w.way = 1
        return w

    one_by_one = build()
    for trait, value in change.items():
        one_by_one.set_state({trait: value})
    for order in itertools.permutations(change):
        together = build()
        together.set_state({trait: change[trait] for trait in order})
        assert sent(together) == sent(one_by_one), order


def test_a_value_out_of_range_from_the_browser_changes_nothing():
    w = batch_timeline(ladder())
    before = w.get_state()
    for wrong in ({"step": 6}, {"step": -1}, {"selected": 3}, {"selected": -2}, {"way": 2}, {"shown": 31}):
        with pytest.raises(ValueError, match=r"give |choose "):
            w.set_state(wrong)
    assert w.get_state() == before


@pytest.mark.parametrize(
    "timeline",
    [
        SMALL, ladder()["short"], drawn(3, 1, 1), drawn(400, 30, 1100), drawn(40, 9, 64),
        Timeline("waits", ("alone",), (1,), (0,), 1, (Span(0, WAITING, 0, 1),)),
    ],
    ids=["small", "no blocks", "tiny", "large", "many colours", "nothing computed"],
)  # fmt: skip
def test_every_size_has_a_picture_with_words(timeline):
    w = batch_timeline(timeline)
    w.step = timeline.num_steps - 1
    data, meta = w._repr_mimebundle_()
    alt = meta["image/png"]["alt"]
    assert len(data["image/png"]) > 5_000
    assert f"steps {w.rows['first']} to {w.rows['end'] - 1} of {timeline.num_steps:,}" in alt
    for words in (w.note, w.says, w.detail, w.sampled):
        assert words in alt
    assert "  " not in alt


def test_both_panels_of_the_picture_end_together():
    steps, sequences = batch_timeline(SMALL).picture().axes[:2]
    assert SMALL.num_steps < batch_timeline(SMALL).shown
    assert steps.get_xlim() == sequences.get_xlim() == (0, SMALL.num_steps)


def test_what_was_not_recorded_is_said():
    from dataclasses import replace

    w = batch_timeline(replace(SMALL, missing=1200))
    assert w.note.endswith("1,200 later steps not recorded.")
    assert w.sampled == "1,200 later steps were not recorded."


def test_long_ids_leave_room():
    assert batch_words.named(["x" * 99, "b"], [0, 1]) == "x" * 39 + "…, b"
    w = batch_timeline(Timeline("long", ("x" * 99,), (1,), (0,), 1, (Span(0, WAITING, 0, 1),)))
    assert w.ids == w.rows["rows"][0]["id"].split() == ["x" * 39 + "…"]


def test_script_asks_nothing_of_the_network():
    source = str(BatchTimeline._esm)
    assert "export default { render }" in source
    assert "http" not in source.replace("http://www.w3.org/2000/svg", "")
    assert "import " not in source


def test_it_is_offered_by_name():
    assert show.batch_timeline is batch_timeline
    assert show.BatchTimeline is BatchTimeline


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: batch_timeline(3), "batch_timeline got int; give a Timeline"),
        (lambda: batch_timeline([]), "batch_timeline got nothing; give a Timeline"),
        (lambda: batch_timeline([SMALL, 3]), "got Timeline, int; give|got int, Timeline|Timeline, int"),
        (lambda: batch_timeline([SMALL] * 9), "got 9 timelines; give at most 8"),
        (lambda: batch_timeline([SMALL, drawn(3, 1, 1)]), "'drawn' has other sequences than 'small'"),
        (lambda: setattr(batch_timeline(SMALL), "step", 6), "step is 6; give 0 to 5"),
        (lambda: setattr(batch_timeline(SMALL), "shown", 7), "shown is 7; choose one of 30"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
