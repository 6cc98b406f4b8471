"""The simulated clock: exact on small cases, whole over many requests, and a million of them in a minute or so.

`LABKIT_REQUESTS=1000000` makes the long test drive a million; otherwise it drives fifty thousand.
"""

from __future__ import annotations

import math
import os
import random

import pytest

from labkit.serve.scheduler import Limits, Scheduler
from labkit.serve.scheduler.simulate import Cost, Job, Spread, simulate

SECOND = Cost(fixed=1.0, per_token=0.0, per_position=0.0)


def test_times_are_counted_from_arrival_to_token_to_token():
    jobs = [Job(0.5, (1, 2, 3), 3), Job(0.75, (4, 5), 2), Job(10.0, (6,), 1)]
    report = simulate(Scheduler(Limits(8, block_size=2)), jobs, SECOND)
    # steps end at 1.5 (first), 2.5 (both), 3.5 (both); nothing happens until 10; then 11
    assert (report.steps, report.seconds, report.finished, report.output_tokens) == (4, 11.0, 3, 6)
    assert [report.ttft.at(share) for share in (0.3, 0.6, 1)] == [1.0, 1.0, 1.75]
    assert (len(report.ttft), len(report.gaps), report.gaps.at(1)) == (3, 3, 1.0)
    assert (report.prompt_tokens, report.computed_tokens, report.most_running) == (6, 9, 2)
    assert report.tokens_per_second == 6 / 11


def test_a_step_costs_its_tokens_and_what_they_look_at():
    scheduler = Scheduler(Limits(8, block_size=2))
    report = simulate(scheduler, [Job(0.0, (1, 2, 3), 2)], Cost(fixed=100.0, per_token=10.0, per_position=1.0))
    assert report.seconds == (100 + 30 + 3) + (100 + 10 + 4)


def test_clients_that_leave_and_jobs_that_find_the_queue_full_are_counted():
    jobs = [Job(0.0, (1,), 5, leaves=2.0), Job(0.0, (2,), 5, leaves=100.0), Job(0.0, (3,), 5), Job(0.0, (4,), 5)]
    scheduler = Scheduler(Limits(8, block_size=2, max_sequences=1, max_waiting=3))
    report = simulate(scheduler, jobs, SECOND)
    assert (report.finished, report.cancelled, report.refused) == (2, 1, 1)
    assert report.output_tokens == 10


def test_the_same_jobs_take_the_same_time():
    def run() -> tuple[object, ...]:
        report = simulate(Scheduler(Limits(64, block_size=4)), traffic(300, rate=400.0))
        return report.seconds, report.steps, report.preemptions, report.ttft.at(0.9), report.gaps.at(0.9)

    assert run() == run()


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9, 1])
def test_a_spread_gives_the_nearest_rank(share):
    values = [random.Random(3).randrange(20) for _ in range(101)]
    ordered = sorted(values)
    assert Spread({value: values.count(value) for value in values}).at(share) == ordered[math.ceil(101 * share) - 1]


def test_what_makes_no_sense_is_refused():
    jobs = [Job(1.0, (1,), 1), Job(0.5, (1,), 1)]
    with pytest.raises(ValueError, match="sort them"):
        simulate(Scheduler(Limits(8)), jobs)
    with pytest.raises(ValueError, match="never fit"):
        simulate(Scheduler(Limits(1, block_size=2)), [Job(0.0, (1, 2, 3), 1)])
    used = Scheduler(Limits(8))
    simulate(used, jobs[:1])
    with pytest.raises(ValueError, match="worked before"):
        simulate(used, jobs[:1])
    with pytest.raises(ValueError, match="time would stand still"):
        Cost(0, 0, 1)
    with pytest.raises(ValueError, match="fixed is -1"):
        Cost(-1)
    with pytest.raises(ValueError, match="of 0 durations"):
        Spread({}).at(0.5)
    with pytest.raises(ValueError, match="share is 0"):
        Spread({1.0: 1}).at(0)


def test_a_long_prompt_holds_nobody_up_for_longer_than_one_step():
    limits = Limits(num_blocks=1024, max_tokens_per_step=64, max_sequences=8)
    jobs = [Job(0.0, (at,), 200) for at in range(4)] + [Job(0.05, tuple(range(4000)), 1)]
    cost = Cost(fixed=1e-3, per_token=1e-4, per_position=0.0)
    report = simulate(Scheduler(limits), jobs, cost)
    assert report.gaps.at(1) == pytest.approx(1e-3 + 64e-4)
    whole = Limits(num_blocks=1024, max_tokens_per_step=4096, max_sequences=8)
    assert simulate(Scheduler(whole), jobs, cost).gaps.at(1) > 0.4


def test_ten_times_the_load_is_refused_and_the_rest_waits_no_longer_than_the_queue_is_long():
    limits = Limits(num_blocks=256, max_sequences=8, max_waiting=16)
    jobs = [Job(at / 100, (at,) * 4, 10) for at in range(3000)]  # 10 tokens each; 8 tokens in 0.1 s can be made
    report = simulate(Scheduler(limits), jobs, Cost(0.1, 0.0, 0.0))
    assert report.finished + report.refused == 3000
    assert report.refused > 2500
    assert report.ttft.at(1) <= 0.1 * 10 * (16 / 8 + 1) + 0.2
    assert report.tokens_per_second == pytest.approx(80, rel=0.05)


def traffic(count: int, rate: float, seed: int = 0, leave: float = 0.02):
    """Short requests, most of them with one of fifty beginnings; some clients leave."""
    draw, now = random.Random(seed), 0.0
    beginnings = [tuple(draw.choices(range(50_000), k=16)) for _ in range(50)]
    for at in range(count):
        now += draw.expovariate(rate)
        own = (at & 0xFFFF, at >> 16, 1, 2)
        prompt = beginnings[int(draw.random() * 50)] + own if draw.random() < 0.8 else own
        leaves = draw.random() / 5 if draw.random() < leave else math.inf
        yield Job(now, prompt, 1 + int(draw.random() * 4), leaves, int(draw.random() * 3) - 1)


def test_after_ten_thousand_requests_in_a_tiny_pool_no_block_is_lost():
    limits = Limits(num_blocks=24, block_size=4, max_sequences=16, max_tokens_per_step=40, reserve=0, max_waiting=10**5)
    scheduler = Scheduler(limits)

    def look(step, now):
        if step.number % 25 == 0 or step.preempted:
            scheduler.check()

    report = simulate(scheduler, traffic(10_000, rate=1200.0, leave=0.1), Cost(2e-3, 1e-5, 0.0), look)
    assert report.finished + report.cancelled == 10_000
    assert report.preemptions > 100
    assert report.cancelled > 100
    assert report.cached_tokens > 10_000
    nothing_is_left(scheduler)


def test_a_million_requests_pass_through_the_scheduler():
    count = int(os.environ.get("LABKIT_REQUESTS", "50000"))
    scheduler = Scheduler(Limits(num_blocks=2048, max_waiting=10**5))
    report = simulate(scheduler, traffic(count, rate=2500.0), Cost(fixed=5e-3, per_token=5e-6))
    assert report.finished + report.cancelled == count
    assert report.finished > 0.9 * count
    assert report.ttft.at(0.99) < 0.1, "the queue grew"
    nothing_is_left(scheduler)


def nothing_is_left(scheduler: Scheduler) -> None:
    """Nobody holds anything, and the books agree."""
    scheduler.check()
    assert (scheduler.pool.held, scheduler.pool.free) == (0, scheduler.limits.num_blocks)
    assert len(scheduler) == len(scheduler.waiting) == len(scheduler.running) == scheduler.waiting_tokens == 0
