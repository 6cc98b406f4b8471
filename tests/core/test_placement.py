"""Placements are valid, never above a plain greedy one, and as good as the published example."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.placement import Placement, copies_for, lower_bound, moved, pack, place, place_layers, spread

# The example in the README of deepseek-ai/EPLB at d52c72d: two layers of 12 experts in 4 groups, 16 slots on 8 GPUs of
# 2 nodes, and the slots it prints.
EXAMPLE = (
    (90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86),
    (20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27),
)
PUBLISHED = (
    (5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1),
    (7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1),
)


def greedy(load: list[int], num_slots: int, num_gpus: int) -> float:
    """The busiest GPU's load under copies one by one for the largest load per copy, then largest first."""
    copies = [1] * len(load)
    for _ in range(num_slots - len(load)):
        busiest = max(range(len(load)), key=lambda e: load[e] / copies[e])
        copies[busiest] += 1
    items = sorted((load[e] / copies[e] for e in range(len(load)) for _ in range(copies[e])), reverse=True)
    gpus = [[] for _ in range(num_gpus)]
    for item in items:
        min((g for g in gpus if len(g) < num_slots // num_gpus), key=sum).append(item)
    return max(map(sum, gpus))


@st.composite
def problems(draw):
    """A load with its slots, GPUs, nodes and groups."""
    nodes, groups, gpus = (draw(st.integers(1, top)) for top in (3, 3, 4))
    groups, gpus = groups * nodes, gpus * nodes
    experts = groups * draw(st.integers(1, 5))
    slots = -(-experts // gpus) * gpus + gpus * draw(st.integers(0, 2))
    load = draw(st.lists(st.integers(0, 1000), min_size=experts, max_size=experts))
    return load, slots, gpus, nodes, groups


@settings(max_examples=150)
@given(problems())
def test_random_loads_are_placed_at_least_as_evenly_as_greedy(problem):
    load, slots, gpus, nodes, _ = problem
    p = place(load, slots, gpus, num_nodes=nodes)
    assert set(p.experts) == set(range(len(load)))
    assert len(p.experts) == slots
    assert p.gpu_load.sum() == pytest.approx(sum(load))
    top = p.gpu_load.max()
    assert lower_bound(load, slots, gpus) <= top * (1 + 1e-9)
    assert top <= greedy(load, slots, gpus) * (1 + 1e-9)


@settings(max_examples=60)
@given(problems())
def test_a_group_never_leaves_its_node(problem):
    load, slots, gpus, nodes, groups = problem
    if slots // nodes < len(load) // nodes:
        return
    p = place(load, slots, gpus, num_nodes=nodes, num_groups=groups)
    home = {}
    for slot, expert in enumerate(p.experts):
        group, node = expert // (len(load) // groups), slot // (slots // nodes)
        assert home.setdefault(group, node) == node
    assert np.bincount(list(home.values()), minlength=nodes).tolist() == [groups // nodes] * nodes
    assert p.gpu_load.sum() == pytest.approx(sum(load))


@pytest.mark.parametrize("layer", [0, 1])
def test_as_even_as_the_published_example(layer):
    theirs = Placement(PUBLISHED[layer], EXAMPLE[layer], 8, 2)
    ours = place(EXAMPLE[layer], 16, 8, num_nodes=2, num_groups=4)
    assert ours.imbalance <= theirs.imbalance
    assert place(EXAMPLE[layer], 16, 8, num_nodes=2).imbalance < theirs.imbalance


def test_layers_one_by_one():
    both = place_layers(EXAMPLE, 16, 8, num_nodes=2, num_groups=4)
    assert both == tuple(place(load, 16, 8, num_nodes=2, num_groups=4) for load in EXAMPLE)


def test_a_perfect_packing_is_found_where_greedy_misses_it():
    weights = [7, 6, 5, 5, 4, 3]  # 7 + 5 + 3 and 6 + 5 + 4
    plain = np.bincount(pack(weights, 2, exchange=False), weights)
    assert plain.max() >= np.bincount(pack(weights, 2), weights).max() == 15


def test_one_hot_expert_gets_every_spare_slot():
    assert copies_for([100, 1, 1, 1], 8).tolist() == [5, 1, 1, 1]
    p = place([100, 0, 0, 0], 8, 4)
    assert p.imbalance == pytest.approx(1.0)
    assert p.imbalance_before == 4.0


def test_no_load_is_balanced():
    p = place([0, 0, 0, 0], 4, 2)
    assert (p.imbalance, p.imbalance_before) == (1.0, 1.0)


def test_yesterdays_placement_under_todays_load():
    p = place([8, 1, 1, 1, 1, 1], 8, 2)
    today = [1, 8, 1, 1, 1, 1]
    assert p.imbalance_under(today) > place(today, 8, 2).imbalance
    assert p.gpu_load_under(today).sum() == pytest.approx(13)
    with pytest.raises(ValueError, match="6"):
        p.gpu_load_under([1, 2])


def test_tokens_go_evenly_round_an_experts_copies():
    p = place([90, 4, 3, 3], 8, 4)
    ids = np.random.default_rng(0).choice(4, size=(500, 2), p=[0.9, 0.04, 0.03, 0.03])
    slots = spread(p, ids)
    assert (np.array(p.experts)[slots] == ids).all()
    for own in p.slots:
        counts = np.bincount(slots.reshape(-1), minlength=8)[list(own)]
        assert counts.max() - counts.min() <= 1


def test_what_a_change_of_placement_sends():
    before, after = place([9, 1, 1, 1], 6, 2), place([1, 1, 1, 9], 6, 2)
    assert moved(before, before) == ()
    for slot in moved(before, after):
        assert after.experts[slot] not in before.on_gpu(slot // 3)
    assert moved(before, after)


@pytest.mark.parametrize(
    "call",
    [
        lambda: place([], 4, 2), lambda: place([[1.0]], 1, 1), lambda: place([1, -1], 2, 1),
        lambda: place([1, float("nan")], 2, 1), lambda: place([1, 1, 1], 2, 1), lambda: place([1, 1, 1], 4, 3),
        lambda: place([1, 1], 2, 2, num_nodes=3), lambda: place([1, 1, 1], 4, 2, num_nodes=2, num_groups=2),
        lambda: place([1, 1, 1, 1], 4, 2, num_nodes=2, num_groups=1), lambda: place([1, 1], 2, 0),
        lambda: Placement((0, 0), (1.0, 1.0), 1), lambda: Placement((0, 2), (1.0, 1.0), 1),
        lambda: Placement((0, 1, 0), (1.0, 1.0), 2), lambda: spread(place([1, 1], 2, 1), [[2]]),
        lambda: spread(place([1, 1], 2, 1), [[0.5]]), lambda: pack([1, 2, 3], 2), lambda: copies_for([1, 2], 1),
        lambda: place_layers([1, 2], 2, 1), lambda: moved(place([1, 1], 2, 1), place([1, 1], 2, 2)),
    ],
)  # fmt: skip
def test_bad_input(call):
    with pytest.raises(ValueError):
        call()
