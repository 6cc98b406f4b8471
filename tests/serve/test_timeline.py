"""Recorded timelines against what was seen with one's own eyes, step by step; padded ones against their counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.timeline import ARRIVED, CACHED, CANCELLED, DECODE, FAILED, FINISHED, IDLE, PADDING, PREEMPTED, WAITING
from labkit.serve.batching import by_bucket, continuous, to_longest, to_maximum
from labkit.serve.padded import in_batches, padded
from labkit.serve.scheduler import Limits, Scheduler, Sequence, Step
from labkit.serve.scheduler.simulate import Cost, Job, simulate
from labkit.serve.timeline import ladder, record
from labkit.serve.workload import arrivals, lognormal_lengths

PAIRS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=14)
TIGHT = Limits(12, block_size=2, max_tokens_per_step=8, max_sequences=5, reserve=0)


@dataclass
class Eyes:
    """Looks at the scheduler after each step, writes all down, and hands on to the recording."""

    scheduler: Scheduler
    steps: list[dict] = field(default_factory=list)

    seen: set[tuple[str, int]] = field(default_factory=set)  # positions that were computed

    def __post_init__(self) -> None:
        self.recording = record(self.scheduler)

    def again(self, step: Step) -> int:
        """Positions of the step that were computed before."""
        here = {(chunk.id, chunk.start + i) for chunk in step.chunks for i in range(len(chunk.tokens))}
        again = len(here & self.seen)
        self.seen |= here
        return again

    def __call__(self, step: Step, ended: float) -> None:
        running = {sequence.id: sequence.blocks for sequence in self.scheduler.running.items}
        tables = running | {chunk.id: chunk.blocks for chunk in step.chunks}
        holders: dict[int, set[str]] = {}
        for id, blocks in tables.items():
            for block in blocks:
                holders.setdefault(block, set()).add(id)
        self.steps.append(
            {
                "computed": {chunk.id: (chunk.start, len(chunk.tokens)) for chunk in step.chunks},
                "waiting": {sequence.id for sequence in self.scheduler.waiting.items} - {c.id for c in step.chunks},
                "idle": running.keys() - {chunk.id for chunk in step.chunks},
                "holders": holders,
                "kept": set(self.scheduler.pool.kept_blocks) - holders.keys(),
                "preempted": set(step.preempted),
                "copies": set(step.copies),
                "clock": (step.now, ended - step.now),
                "again": self.again(step),
            }
        )
        self.recording(step, ended)


def check(timeline, seen: list[dict]) -> None:
    ids = timeline.ids
    assert timeline.num_steps == len(seen)
    for at, want in enumerate(seen):
        moment = timeline.at(at)
        assert {ids[s.row]: (s.start, s.tokens) for s in moment.spans if s.tokens} == want["computed"]
        assert {ids[row] for row in moment.doing(WAITING)} == want["waiting"]
        assert {ids[row] for row in moment.doing(IDLE)} == want["idle"]
        assert {block: {ids[row] for row in rows} for block, rows in moment.holders.items()} == want["holders"]
        assert set(moment.kept) == want["kept"]
        assert {ids[row] for row in moment.having(PREEMPTED)} == want["preempted"]
        assert {(copy.source, copy.target) for copy in moment.copies} == want["copies"]
        assert (moment.began, moment.seconds) == want["clock"]
        assert moment.wasted == want["again"]


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.sampled_from([1.0, 40.0, float("inf")]), st.booleans(), st.integers(5, 14), st.integers(0, 1))
def test_every_step_is_what_eyes_saw(lengths, rate, reuse, blocks, reserve):
    limits = Limits(
        blocks + 2, block_size=2, max_tokens_per_step=7, max_sequences=4, reserve=reserve, reuse_prefixes=reuse
    )
    jobs = list(arrivals(lengths, rate, vocab_size=2, beginnings=2, beginning_tokens=4))
    jobs = [job._replace(leaves=0.08 if at % 4 == 3 else job.leaves) for at, job in enumerate(jobs)]
    eyes = Eyes(Scheduler(limits))
    report = simulate(eyes.scheduler, jobs, look=eyes)
    timeline = eyes.recording.timeline()
    check(timeline, eyes.steps)
    assert timeline.tokens == report.computed_tokens
    assert timeline.count(PREEMPTED) == report.preemptions
    assert timeline.count(CACHED) == report.cached_tokens
    assert timeline.count(FINISHED) == report.finished
    assert timeline.count(CANCELLED) <= report.cancelled  # who came and left between two steps was never seen
    finished = {event.row for event in timeline.events if event.what == FINISHED}
    assert all(timeline.outputs[row] == jobs[int(timeline.ids[row])].output for row in finished)
    assert all(timeline.prompts[row] == len(jobs[int(id)].prompt) for row, id in enumerate(timeline.ids))


def driven(scheduler: Scheduler, eyes: Eyes, steps: int) -> None:
    for _ in range(steps):
        step = scheduler.schedule(float(len(eyes.steps)))
        scheduler.update(step, {chunk.id: 0 for chunk in step.chunks if chunk.samples})
        eyes(step, step.now + 0.5)


def test_who_is_interrupted_twice_computes_all_of_it_again():
    scheduler = Scheduler(Limits(6, block_size=2, max_tokens_per_step=3, max_sequences=2, reserve=0))
    eyes = Eyes(scheduler)
    jobs = [Job(0.0, (1, 2, 3), 8), Job(0.0, (4, 5, 6, 7), 6), Job(0.1, (8, 9), 5)]
    simulate(scheduler, [job._replace(salt=str(at)) for at, job in enumerate(jobs)], look=eyes)
    timeline = eyes.recording.timeline()
    check(timeline, eyes.steps)
    assert timeline.count(PREEMPTED) > 0


def test_a_lost_worker_makes_everybody_wait_again():
    scheduler = Scheduler(TIGHT)
    eyes = Eyes(scheduler)
    for id in "ab":
        scheduler.add(Sequence(id, (1, 2, 3), 9))
    driven(scheduler, eyes, 2)
    scheduler.schedule(2.0)
    scheduler.reset()
    driven(scheduler, eyes, 3)
    timeline = eyes.recording.timeline()
    check(timeline, eyes.steps)
    assert timeline.at(2).wasted == 4 + 3  # of eight tokens in a step, five are for one and three for the other


def test_forks_share_their_blocks_and_part():
    scheduler = Scheduler(Limits(8, block_size=4))
    eyes = Eyes(scheduler)
    scheduler.add(Sequence("a", (1, 2, 3, 4, 5), 4))
    driven(scheduler, eyes, 1)
    scheduler.fork("a", ["b"])
    driven(scheduler, eyes, 2)
    timeline = eyes.recording.timeline()
    check(timeline, eyes.steps)
    assert timeline.ids == ("a", "b")
    assert timeline.at(1).holders[0] == (0, 1)
    assert len(timeline.copies) == 1
    assert timeline.prompts == (5, 5)
    assert timeline.outputs == (3, 3)


def test_an_id_that_comes_again_is_another_row():
    scheduler = Scheduler(TIGHT)
    eyes = Eyes(scheduler)
    scheduler.add(Sequence("a", (1, 2, 3), 9))
    driven(scheduler, eyes, 2)
    scheduler.cancel("a")
    scheduler.add(Sequence("a", (1, 2), 9))
    driven(scheduler, eyes, 2)
    timeline = eyes.recording.timeline()
    assert timeline.ids == ("a", "a")
    assert [(e.step, e.row, e.what) for e in timeline.events if e.what != CACHED] == [
        (0, 0, ARRIVED), (1, 0, CANCELLED), (2, 1, ARRIVED),
    ]  # fmt: skip
    assert timeline.prompts == (3, 2)
    assert timeline.outputs == (2, 2)


@dataclass
class Reported:
    """What an engine tells its observers."""

    step: Step
    began: float
    seconds: float
    ended: tuple = ()


def test_an_engine_reports_when_and_why():
    class Engine:
        scheduler = Scheduler(TIGHT)

    scheduler, look = Engine.scheduler, record(Engine())
    for id in "abcd":
        scheduler.add(Sequence(id, (1, 2), 1 if id == "d" else 5))
    step = scheduler.schedule(3.0)
    scheduler.update(step, {chunk.id: 0 for chunk in step.chunks})
    scheduler.finish("a", forget=True)
    scheduler.finish("d")
    look(Reported(step, 7.0, 0.25, (("a", "error"), ("d", "stop"))))
    scheduler.finish("b", forget=True)
    step = scheduler.schedule(4.0)
    scheduler.update(step, {chunk.id: 0 for chunk in step.chunks})
    scheduler.cancel("c")
    look(Reported(step, 8.0, 0.5, (("b", "error"), ("c", "cancelled"))))
    timeline = look.timeline("served")
    ends = {timeline.ids[e.row]: (e.step, e.what) for e in timeline.events if e.what not in (ARRIVED, CACHED)}
    assert ends == {"a": (0, FAILED), "d": (0, FINISHED), "b": (0, FAILED), "c": (1, CANCELLED)}
    assert (timeline.began, timeline.seconds, timeline.name) == ((7.0, 8.0), (0.25, 0.5), "served")


def test_what_is_not_recorded_is_counted():
    scheduler = Scheduler(TIGHT)
    look = record(scheduler, most_steps=3)
    report = simulate(scheduler, arrivals([(4, 6)] * 3), look=look)
    timeline = look.timeline()
    assert (timeline.num_steps, timeline.missing) == (3, report.steps - 3)
    assert timeline.count(FINISHED) == 0
    assert max(timeline.outputs) < 6


def test_intervals_stay_few_over_thousands_of_steps():
    scheduler = Scheduler(Limits(512, max_tokens_per_step=128, max_sequences=16))
    look = record(scheduler)
    report = simulate(scheduler, arrivals(lognormal_lengths(300)), look=look)
    timeline = look.timeline()
    assert report.steps > 1_500
    assert len(timeline.spans) < 5 * 300
    assert len(timeline.holds) < 2 * (report.computed_tokens / 16 + 300)  # each block held once and kept once


@settings(max_examples=50, deadline=None)
@given(PAIRS, st.integers(1, 5))
def test_padded_batches_compute_what_their_tally_says(lengths, size):
    edges = [3, 6]
    ways = [
        (to_maximum(lengths, size, 9, 6), in_batches(lengths, size), (9, 6)),
        (to_longest(lengths, size), in_batches(lengths, size), None),
        (by_bucket(lengths, size, edges), in_batches(lengths, size, edges), None),
    ]
    for tally, batches, to in ways:
        timeline = padded(tally.name, lengths, batches, to, block_size=4)
        assert (timeline.num_steps, timeline.tokens) == (tally.steps, tally.computed.tokens)
        assert timeline.wasted == pytest.approx(tally.wasted)
        for row, (prompt, output) in enumerate(lengths):
            spans = timeline.by_row[row]
            useful = sum((span.tokens - span.wasted) * (span.end - span.first) for span in spans)
            assert useful == prompt + output - 1
            (end,) = (event.step for event in timeline.events if event.row == row and event.what == FINISHED)
            assert all(span.kind == PADDING for span in spans if span.first > end)
            assert timeline.span(row, end).kind != PADDING
        check_slabs(timeline, batches)


def check_slabs(timeline, batches) -> None:
    """In every step the rows of one batch, and nobody else, hold blocks, and of each the same number."""
    for at in range(timeline.num_steps):
        moment = timeline.at(at)
        held = [row for rows in moment.holders.values() for row in rows]
        assert set(held) in [set(batch) for batch in batches]
        assert set(held) == {span.row for span in moment.spans if span.tokens}
        assert len({held.count(row) for row in held}) == 1


def test_a_padded_batch_waits_for_all_of_it_and_takes_time():
    cost = Cost(fixed=1.0, per_token=0.1, per_position=0.0)
    timeline = padded("late", [(2, 1), (3, 2)], [[0, 1]], arrivals=[0.0, 5.0], cost=cost)
    assert timeline.began == (5.0, 6.6)
    assert timeline.seconds == pytest.approx((1.6, 1.2))
    two = padded("two", [(2, 1), (3, 2), (1, 1)], [[0, 1], [2]], arrivals=[0.0, 0.0, 2.0], cost=cost)
    assert two.span(2, 0) is None
    assert two.span(2, 1) is None or two.began[1] >= 2.0
    assert [event.step for event in two.events if event.row == 2 and event.what == ARRIVED] == [2]
    assert two.began == pytest.approx((0.0, 1.6, 2.8))


def test_the_ladder_has_the_same_jobs_on_every_rung():
    lengths = lognormal_lengths(24, seed=3)
    jobs = list(arrivals(lengths, beginnings=1, beginning_tokens=32))
    limits = Limits(256, max_tokens_per_step=256, max_sequences=8)
    ways = ladder(jobs, limits, batch_size=8, maximum=(1024, 256))
    assert list(ways) == ["maximum", "longest", "bucket", "continuous", "continuous, prefixes reused"]
    for name, timeline in ways.items():
        assert timeline.name == name
        assert timeline.outputs == tuple(output for _, output in lengths)
        assert timeline.prompts == tuple(prompt for prompt, _ in lengths)
        assert timeline.count(FINISHED) == 24
    short = ladder([Job(0.0, (1, 2), output) for output in (3, 1, 2, 1)], limits, batch_size=2)
    assert {timeline.ids for timeline in short.values()} == {("0", "1", "2", "3")}
    assert {timeline.outputs for timeline in short.values()} == {(3, 1, 2, 1)}
    wasted = [timeline.wasted for timeline in ways.values()]
    assert wasted[0] > wasted[1] > wasted[2] > wasted[3]
    tally = continuous(jobs, limits)
    last = ways["continuous, prefixes reused"]
    assert (last.num_steps, last.tokens) == (tally.steps, tally.computed.tokens)
    assert last.wasted == pytest.approx(tally.wasted)
    assert last.count(CACHED) == tally.reused_tokens > 0 == ways["continuous"].count(CACHED)


def test_decoding_is_told_from_a_prompt_cut_short():
    scheduler = Scheduler(Limits(8, block_size=4, max_tokens_per_step=2, max_sequences=1))
    look = record(scheduler)
    simulate(scheduler, [Job(0.0, (1, 2, 3), 3)], look=look)
    assert [(s.kind, s.first, s.end) for s in look.timeline().spans] == [
        ("prefill", 0, 1), ("prefill", 1, 2), (DECODE, 2, 4),
    ]  # fmt: skip


def test_sequences_can_be_named():
    scheduler = Scheduler(Limits(8, block_size=4))
    look = record(scheduler)
    simulate(scheduler, [Job(0.0, (1, 2, 3), 3), Job(0.0, (4,), 2)], look=look)
    first, second = look.ids
    assert look.timeline(named={first: "request 1"}).ids == ("request 1", second)
    assert look.timeline().ids == (first, second)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: record(3), "record got int; give a Scheduler"),
        (lambda: record(SimpleNamespace(scheduler=Scheduler(TIGHT), ahead=object())), "one to record with ahead=False"),
        (lambda: record(Scheduler(TIGHT), most_steps=0), "most_steps is 0"),
        (lambda: record(Scheduler(TIGHT)).timeline(), "nothing was recorded; give the recording to simulate"),
        (lambda: padded("x", [(1, 1), (1, 1)], [[0]]), "not of rows 0 to 1"),
        (lambda: padded("x", [(1, 1)], [[0], [0]]), "not of rows 0 to 0"),
        (lambda: padded("x", [(5, 1)], [[0]], (4, 1)), "longer than 4 and 1"),
        (lambda: padded("x", [(5, 1)], [[0]], block_size=0), "block_size is 0"),
        (lambda: padded("x", [(5, 1)], [[0]], arrivals=[0.0, 1.0]), "2 arrivals for 1 rows"),
        (lambda: padded("x", [(5, 1)] * 2, [[0, 1]], arrivals=[1.0, 0.0]), "in the order of their rows"),
        (lambda: in_batches([(1, 1)], 1, [3, 2]), "edges are"),
        (lambda: ladder([], TIGHT, 2), "no request"),
        (lambda: ladder([Job(0.0, (1,), 2, leaves=1.0)], TIGHT, 2), "cannot let it go"),
        (lambda: ladder([Job(0.0, (1,), 2, priority=1)], TIGHT, 2), "a job has a priority"),
        (lambda: ladder([Job(0.0, (1,), 2)] * 3, Limits(4, max_waiting=1), 2), "found the queue full"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
