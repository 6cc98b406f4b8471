"""Hands can be faster than the kernel; then several changes come in one message, and their order must not matter."""

from __future__ import annotations

import itertools

import pytest
from records import make

from labkit.core.timeline import Span, Timeline
from labkit.show.widgets.ablation import ablation
from labkit.show.widgets.batch_timeline import batch_timeline
from labkit.show.widgets.coactivation import coactivation_map
from labkit.show.widgets.contexts import contexts
from labkit.show.widgets.flow import flow
from labkit.show.widgets.lift import lift_map
from labkit.show.widgets.load_map import load_map
from labkit.show.widgets.ribbon import ribbon
from labkit.show.widgets.tiles import tiles
from labkit.show.widgets.training import balance_over_training

SIZES = {"T": 120, "E": 6, "K": 2, "L": 3, "domains": ("code", "english")}


def records(seed=0):
    return make(seed=seed, **SIZES)


def training():
    return balance_over_training({name: {s: records(s + n) for s in (0, 10, 20)} for n, name in enumerate(("a", "b"))})


def batches():
    spans = tuple(Span(row, "decode", row, 40 + row, 3, 1) for row in range(30))
    one, two = (Timeline(name, tuple(map(str, range(30))), (3,) * 30, (40,) * 30, 70, spans) for name in ("a", "b"))
    return batch_timeline([one, two])


VIEWS = {
    "ablation": (lambda: ablation(records()[1]), {"expert": 3, "domain": "english", "sort": "load"}),
    "batch_timeline": (batches, {"way": 1, "step": 65, "selected": 29, "shown": 30}),
    "coactivation": (
        lambda: coactivation_map(records()),
        {"layer": 2, "pair": [1, 4], "mode": "raw", "order_by": "cluster"},
    ),
    "contexts": (lambda: contexts(records()), {"layer": 1, "occurrence": 1}),
    "flow": (lambda: flow(records()), {"layer": 2, "capacity_factor": 0.5, "policy": "score", "path": [1, 3]}),
    "lift": (lambda: lift_map(records()), {"layer": 1, "domain": "english", "sort": "lift", "brush": [2, 4]}),
    "load_map": (lambda: load_map(records()), {"layer": 2, "expert": 5, "sort": "layer"}),
    "ribbon": (lambda: ribbon(records(), length=20), {"layer": 1, "token": 50, "start": 40, "lit_expert": 2}),
    "tiles": (lambda: tiles([45, 0, 300, 7]), {"block_m": 32, "block_n": 64, "multiprocessors": 108, "expert": 3}),
    "training": (training, {"step": 10, "run": "b", "layer": 1}),
}


def sent(widget) -> dict:
    return {name: value for name, value in widget.get_state().items() if not name.startswith("_") and name != "layout"}


@pytest.mark.parametrize("name", VIEWS)
def test_one_message_says_what_several_say(name):
    build, change = VIEWS[name]
    one_by_one = build()
    for trait, value in change.items():
        one_by_one.set_state({trait: value})
    for trait, value in change.items():
        got = getattr(one_by_one, trait)
        assert (list(got) if isinstance(value, list) else got) == value
    for order in itertools.permutations(change):
        together = build()
        together.set_state({trait: change[trait] for trait in order})
        assert sent(together) == sent(one_by_one), order


def test_a_brush_and_a_domain_may_come_together():
    w = lift_map(records())
    w.set_state({"domain": "english", "brush": [4]})
    assert set(w.brushed) == {"code", "english"}
    assert "of the choices of english" in w.view["note"]
