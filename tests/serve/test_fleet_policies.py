"""Who gets a request: never one that is not ready, evenly enough, and back to its prefix."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.serve.fleet.policies import POLICIES, Asked, NobodyReady, PrefixAware, Seen, load, policy

LOADS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), min_size=1, max_size=9)


def fleet_of(loads):
    return [Seen(f"r{at}", queue, running, ready) for at, (queue, running, ready) in enumerate(loads)]


@given(st.sampled_from(sorted(POLICIES)), st.lists(LOADS, min_size=1, max_size=6), st.integers(0, 2**32))
def test_only_ready_ones_are_chosen_and_the_same_seed_chooses_the_same(name, fleets, seed):
    prompts = [Asked((at % 3,) * 40) for at in range(len(fleets))]

    def chosen():
        mine = policy(name, seed)
        for loads, asked in zip(fleets, prompts, strict=True):
            replicas = fleet_of(loads)
            if not any(replica.ready for replica in replicas):
                with pytest.raises(NobodyReady, match="none of"):
                    mine.choose(replicas, asked)
                continue
            at = mine.choose(replicas, asked)
            assert replicas[at].ready
            yield at

    assert list(chosen()) == list(chosen())


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_no_replicas_at_all(name):
    with pytest.raises(NobodyReady):
        policy(name).choose([], Asked())


@pytest.mark.parametrize("name", ["round_robin", "random", "power_of_two", "least_loaded"])
def test_equal_replicas_get_equal_shares(name):
    mine, fleet = policy(name, 1), [Seen(str(at), ready=at != 2) for at in range(5)]
    counts = Counter(mine.choose(fleet, Asked()) for _ in range(4000))
    assert sorted(counts) == [0, 1, 3, 4]
    assert all(abs(count - 1000) < 120 for count in counts.values())


def test_two_choices_take_the_busiest_only_if_forced():
    fleet = [Seen("a", 5, 5), Seen("b", 1, 1), Seen("c", 3, 3)]
    mine = policy("power_of_two", 0)
    counts = Counter(mine.choose(fleet, Asked()) for _ in range(3000))
    assert counts[0] == 0  # whoever is drawn beside it is less loaded
    assert abs(counts[1] - 2000) < 150  # two pairs of three hold b
    assert mine.choose(fleet[:1], Asked()) == 0


def test_load_is_what_waits_and_what_runs():
    fleet = [Seen("waits", queue=1, running=1), Seen("runs", queue=0, running=3)]
    assert load(fleet[0]) == 2
    assert all(policy("power_of_two", seed).choose(fleet, Asked()) == 0 for seed in range(20))


def test_a_prefix_goes_back_until_its_replica_is_too_busy():
    mine, asked = PrefixAware(seed=0, slack=4), Asked((1,) * 64)
    idle = [Seen(str(at)) for at in range(6)]
    home = mine.choose(idle, asked)
    busy = [Seen(str(at), queue=4 * (at == home)) for at in range(6)]
    assert all(mine.choose(busy, Asked((1,) * 64 + (at,) * 64)) == home for at in range(10))
    busier = [Seen(str(at), queue=5 * (at == home)) for at in range(6)]
    away = mine.choose(busier, asked)
    assert away != home
    assert mine.choose(busier, asked) == away  # it has read the prefix by now


def test_a_prefix_survives_that_others_come_and_go():
    mine, asked = PrefixAware(seed=3), Asked(b"a system prompt of some length, " * 8, block=64)
    fleet = [Seen(str(at)) for at in range(5)]
    home = fleet[mine.choose(fleet, asked)].id
    fewer = [replica for replica in fleet if replica.id in (home, "0", "1")]
    assert fewer[mine.choose(fewer, asked)].id == home
    more = [Seen("new"), *fleet]
    assert more[mine.choose(more, asked)].id == home
    gone = [replica for replica in more if replica.id != home]
    assert gone[mine.choose(gone, asked)].id != home


def test_too_little_in_common_is_no_prefix():
    mine, fleet = PrefixAware(seed=0, match=0.5), [Seen(str(at)) for at in range(8)]
    start = (9,) * 16
    chosen = {mine.choose(fleet, Asked(start + (at,) * 160)) for at in range(40)}
    assert len(chosen) > 4  # one block of eleven is common


def test_what_is_remembered_has_an_end():
    mine = PrefixAware(entries=10)
    for at in range(50):
        mine.choose([Seen("a")], Asked((at,) * 64))
    assert len(mine._held) == 10


@given(st.lists(st.integers(0, 3), max_size=80), st.lists(st.integers(0, 3), max_size=80), st.integers(1, 9))
def test_prompts_share_as_many_prefixes_as_whole_blocks(one, two, block):
    common = next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    mine, theirs = (Asked(tuple(prompt), block=block).prefixes for prompt in (one, two))
    assert (len(mine), len(theirs)) == (len(one) // block, len(two) // block)
    assert len(set(mine) & set(theirs)) == common // block


def test_wrong_values_say_what_is_wanted():
    with pytest.raises(ValueError, match="round_robin"):
        policy("fastest")
    with pytest.raises(ValueError, match="ratio"):
        PrefixAware(ratio=0.5)
    with pytest.raises(ValueError, match="entries"):
        PrefixAware(entries=0)
