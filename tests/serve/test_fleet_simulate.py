"""The simulated fleet against what is known exactly, and what must hold whatever befalls it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.serve.fleet.autoscale import Autoscale
from labkit.serve.fleet.policies import POLICIES, policy
from labkit.serve.fleet.queueing import erlang_c, mean_seconds, mean_wait, share_as_long
from labkit.serve.fleet.simulate import Dies, Router, Slow, simulate_fleet
from labkit.serve.fleet.simulated import Call, Engine
from labkit.serve.fleet.traffic import traffic

PLAIN = {"prefill": 0.0, "decode": 1e-3, "cache": 0}


def exponential(count, rate, mean, seed=0):
    """Poisson arrivals whose answers take exponentially distributed time, in milliseconds: one token each."""
    draw, now, calls = random.Random(seed), 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate)
        calls.append(Call(now, 1, max(1, round(1000 * draw.expovariate(1 / mean)))))
    return calls


@pytest.mark.parametrize(("slots", "load"), [(1, 0.6), (4, 0.7), (16, 0.8)])
def test_one_replica_waits_as_erlang_says(slots, load):
    calls = exponential(60_000, load * slots, 1.0, seed=3)
    told = simulate_fleet(1, policy("round_robin"), calls, Engine(slots=slots, **PLAIN))
    assert told.mean_ttft == pytest.approx(mean_wait(slots, load * slots, 1.0), rel=0.1)
    waited = sum(first > 1e-9 for _, first in told.firsts) / told.answered
    assert waited == pytest.approx(erlang_c(slots, load * slots), rel=0.1)


@pytest.mark.parametrize(("name", "choices"), [("random", 1), ("power_of_two", 2)])
def test_many_replicas_of_one_slot_take_the_time_that_theory_says(name, choices):
    calls = exponential(60_000, 0.7 * 80, 1.0)
    told = simulate_fleet(80, policy(name), calls, Engine(slots=1, **PLAIN))
    assert told.mean_total == pytest.approx(mean_seconds(0.7, choices), rel=0.05)


def test_with_two_choices_the_longest_queue_is_short():
    calls = exponential(60_000, 0.9 * 500, 1.0)
    longest = {
        name: simulate_fleet(500, policy(name), calls, Engine(slots=1, **PLAIN)).longest
        for name in ("random", "power_of_two")
    }
    assert longest["power_of_two"] <= 6  # theory: fewer than one queue in 10^6 has seven
    assert 500 * share_as_long(7, 0.9) < 1
    assert longest["random"] > 3 * longest["power_of_two"]


def test_theory_at_its_edges():
    assert erlang_c(3, 0.0) == 0
    assert share_as_long(0, 0.5) == 1
    assert mean_seconds(0.0) == 1
    for wrong in (lambda: erlang_c(2, 2.0), lambda: share_as_long(1, 1.0), lambda: erlang_c(0, 0.5)):
        with pytest.raises(ValueError, match="give"):
            wrong()


FAULTS = st.lists(
    st.one_of(
        st.builds(
            Dies, at=st.floats(0, 20), replica=st.integers(0, 2), back=st.sampled_from([5.0, 30.0, float("inf")])
        ),
        st.builds(Slow, at=st.floats(0, 20), replica=st.integers(0, 2), factor=st.floats(1, 20), until=st.just(15.0)),
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(POLICIES)),
    FAULTS,
    st.builds(Router, notice=st.floats(0, 5), retries=st.integers(0, 3), stale=st.sampled_from([0.0, 0.5])),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
)
def test_every_call_ends_in_one_way_whatever_happens(name, faults, router, waiting, scales):
    calls = traffic(300, 15.0, seed=1, groups=5, shared=256)
    rule = Autoscale(target=4, least=1, most=6, up_after=1, down_after=2, starts_in=2) if scales else None
    engine = Engine(slots=4, waiting=waiting, cache=2000)
    told = simulate_fleet(3, policy(name, 2), calls, engine, router=router, faults=faults, autoscale=rule)
    assert told.sent == 300 == told.answered + told.refused + told.broken + told.lost
    assert len(told.firsts) == told.answered
    assert len(told.failures) == 300 - told.answered
    assert all(first >= 0 for _, first in told.firsts)
    assert 0 <= told.cached_tokens <= told.prompt_tokens
    again = simulate_fleet(3, policy(name, 2), calls, engine, router=router, faults=faults, autoscale=rule)
    assert (told.firsts, told.failures, told.work) == (again.firsts, again.failures, again.work)


def test_a_death_breaks_what_was_streaming_and_nothing_else():
    calls = [Call(0.01 * at, 100, 200) for at in range(40)]
    told = simulate_fleet(2, policy("round_robin"), calls, Engine(slots=4), faults=[Dies(1.0, 0)])
    assert told.broken == 4  # one in each slot
    assert (told.lost, told.refused) == (0, 0)
    assert told.retried == 16
    assert told.answered == 36


def test_without_retries_an_unnoticed_death_loses_its_share():
    calls = [Call(0.1 * at, 10, 5) for at in range(400)]
    told = simulate_fleet(
        4, policy("round_robin"), calls, router=Router(notice=10.0, retries=0), faults=[Dies(10.0, 1)]
    )
    assert told.lost + told.broken == pytest.approx(25, abs=2)  # a quarter of ten seconds' calls
    again = simulate_fleet(
        4, policy("round_robin"), calls, router=Router(notice=10.0, retries=1), faults=[Dies(10.0, 1)]
    )
    assert again.lost == 0


def test_all_dead_is_refused_and_one_that_returns_answers():
    calls = [Call(float(at), 10, 5) for at in range(20)]
    told = simulate_fleet(1, policy("power_of_two"), calls, faults=[Dies(4.5, 0, back=9.5)])
    assert (told.refused, told.answered) == (5, 15)


def test_a_cache_saves_reading_and_a_restart_empties_it():
    calls = [Call(10.0 * at, 1100, 5, group=1, shared=1000) for at in range(4)]
    engine = Engine(prefill=1e-3)
    told = simulate_fleet(1, policy("prefix_aware"), calls, engine)
    assert [round(first, 6) for _, first in told.firsts] == [1.1, 0.1, 0.1, 0.1]
    assert told.hit_rate == pytest.approx(3000 / 4400)
    told = simulate_fleet(1, policy("prefix_aware"), calls, engine, faults=[Dies(15.0, 0, back=16.0)])
    assert [round(first, 6) for _, first in told.firsts] == [1.1, 0.1, 1.1, 0.1]
    told = simulate_fleet(1, policy("prefix_aware"), calls, Engine(prefill=1e-3, cache=999))
    assert told.hit_rate == 0


def test_prompts_are_read_one_after_the_other_and_a_crowd_is_slower():
    calls = [Call(0.0, 1000, 10)] * 3
    told = simulate_fleet(1, policy("random"), calls, Engine(prefill=1e-3, decode=0.1, crowd=0.05))
    assert [round(first, 6) for _, first in told.firsts] == [1.0, 2.0, 3.0]
    assert told.total.at(1.0) == pytest.approx(3.0 + 10 * 0.2)


def test_prefixes_find_their_replica_only_when_the_router_looks():
    calls = traffic(4000, 40.0, groups=60, shared=1024)
    engine = Engine(slots=16, cache=12_000, prefill=2e-4)
    told = {name: simulate_fleet(8, policy(name), calls, engine) for name in ("round_robin", "prefix_aware")}
    assert told["prefix_aware"].hit_rate > told["round_robin"].hit_rate + 0.2
    assert told["prefix_aware"].ttft.at(0.99) < told["round_robin"].ttft.at(0.99)


def test_a_slow_replica_hurts_who_does_not_look():
    calls = traffic(4000, 20.0, seed=2)
    slow = [Slow(0.0, 0, 6.0)]
    told = {
        name: simulate_fleet(4, policy(name), calls, Engine(), faults=slow) for name in ("round_robin", "power_of_two")
    }
    assert told["power_of_two"].ttft.at(0.99) < told["round_robin"].ttft.at(0.99) / 3


def test_old_news_makes_the_least_loaded_a_herd():
    """Mitzenmacher 2000, How Useful Is Old Information?: with stale loads everyone runs to the same replica."""
    calls = traffic(8000, 130.0, seed=3)
    p99 = {
        (name, stale): simulate_fleet(16, policy(name), calls, router=Router(stale=stale)).ttft.at(0.99)
        for name in ("least_loaded", "power_of_two")
        for stale in (0.0, 4.0)
    }
    assert p99["least_loaded", 0.0] <= p99["power_of_two", 0.0]
    assert p99["least_loaded", 4.0] > p99["power_of_two", 4.0]


def test_the_autoscaler_follows_the_load_and_sends_nobody_away_in_mid_answer():
    calls = traffic(4000, lambda second: 60.0 if 30 < second < 60 else 6.0, seed=4)
    rule = Autoscale(target=8, least=2, most=20, up_after=2, down_after=20, starts_in=5)
    told = simulate_fleet(2, policy("power_of_two"), calls, Engine(), autoscale=rule)
    counts = [count for _, count in told.scale]
    assert told.answered == 4000
    assert max(counts) > 5
    assert counts[-1] < max(counts)
    fixed = simulate_fleet(2, policy("power_of_two"), calls, Engine())
    assert told.ttft.at(0.99) < fixed.ttft.at(0.99)
    assert told.replica_seconds < max(counts) * told.seconds


def test_wrong_values_say_what_is_wanted():
    with pytest.raises(ValueError, match="sort"):
        simulate_fleet(1, policy("random"), [Call(2.0, 1, 1), Call(1.0, 1, 1)])
    with pytest.raises(ValueError, match="replica 3"):
        simulate_fleet(2, policy("random"), [], faults=[Dies(0.0, 3)])
    for wrong in (
        lambda: Engine(slots=0),
        lambda: Engine(decode=-1.0),
        lambda: Router(retries=-1),
        lambda: Autoscale(target=0, least=1, most=2),
        lambda: traffic(3, 1.0, shared=10),
    ):
        with pytest.raises(ValueError, match="give"):
            wrong()
