"""The planner's cluster view says what the cluster's cost model says, and every control changes it."""

from __future__ import annotations

import base64

import pytest

from labkit.core.cluster import Plan, cluster
from labkit.core.cluster_search import best_plan
from labkit.core.cluster_serve import ServePlan, decode
from labkit.core.cluster_train import train
from labkit.core.presets import preset
from labkit.show import planner
from labkit.show.step import step_picture
from labkit.show.widgets.planner_cluster import cluster_card, cluster_picture


def opened(**chosen):
    return planner("mixtral-8x7b").choose(
        **{"view": "cluster", "kind": "h100", "nodes": 8, "pp": 4, "ep": 8, "sequences": 256, **chosen}
    )


def test_training_is_what_the_cost_model_says():
    p = opened(chunks=8, recompute="none")
    want = train(preset("mixtral-8x7b"), cluster("h100", 8), Plan(dp=16, pp=4, ep=8, batch=256, chunks=8))
    assert p.estimate == want
    shown = p.children[-1].value
    assert f"{want.tokens_per_second:,.0f} tokens/s" in shown
    assert f"{want.memory.total / 1e9:,.1f} GB" in shown
    assert "bubble" in shown


def test_decode_is_what_the_cost_model_says():
    p = opened(phase="decode", each=64)
    plan = ServePlan(ep=8, batch=64, context=4096, slots=8)
    assert p.estimate == decode(preset("mixtral-8x7b"), cluster("h100", 8), plan)
    assert "each request sees" in p.children[-1].value


def test_every_control_changes_the_estimate_and_what_is_shown(monkeypatch):
    monkeypatch.setattr("labkit.show.widgets.planner.png", lambda picture: b"")  # the words are compared
    p = opened()
    for control, value in (
        ("kind", "a100"), ("nodes", 16), ("products", "fp8"), ("tp", 2), ("ep", 4), ("pp", 2), ("sequences", 512),
        ("schedule", "dualpipe"), ("recompute", "full"), ("zero", 3), ("phase", "prefill"), ("each", 4096),
    ):  # fmt: skip
        before, shown = p.estimate, p.children[-1].value
        p.cluster.all[control].value = value
        assert p.estimate != before, control
        assert p.children[-1].value != shown, control


def test_model_and_context_matter_and_the_rest_is_hidden():
    p = opened()
    before = p.estimate
    p.context.value = 8192
    assert p.estimate != before
    p.model.value = "olmoe-1b-7b"
    assert p.estimate.model.name == "olmoe-1b-7b"
    assert p.gpu.layout.display == "none"
    assert p.cluster.all["each"].layout.display == "none"
    p.cluster.all["phase"].value = "decode"
    assert p.cluster.all["each"].layout.display is None
    assert p.cluster.all["pp"].layout.display == "none"


def test_back_to_one_machine():
    p, fresh = opened(), planner("mixtral-8x7b")
    p.view.value = "GPUs"
    assert p.estimate is None
    assert p.children[-1].value == fresh.children[-1].value
    assert p.picture().alt == fresh.picture().alt
    assert p.gpu.layout.display is None


def test_choices_that_make_no_plan_say_why():
    p = opened(ep=16)
    assert p.estimate is None
    assert "ep=16 of 8 experts" in p.children[-1].value
    p.cluster.all["ep"].value = 8
    assert p.estimate is not None
    p.choose(pp=32, tp=8)
    assert "too few" in p.children[-1].value


def test_best_plan_sets_the_controls():
    p = planner("mixtral-8x7b", cluster="h100", nodes=8)
    p.cluster.best.click()
    best = best_plan(preset("mixtral-8x7b"), cluster("h100", 8), batch=1024)
    assert p.estimate == best
    p.cluster.all["nodes"].value = 1
    p.cluster.best.click()
    assert "No plan fits" in p.children[-1].value


def test_picture_is_described_by_the_card():
    p = opened()
    data, meta = p._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert str(cluster_card(p.estimate)) in meta["image/png"]["alt"]
    assert "ms (" in data["text/plain"]
    axes = cluster_picture(p.estimate).axes
    width = sum(bar.get_width() for bar in axes[0].patches)
    assert width == pytest.approx(1e3 * p.estimate.seconds.total)


def test_bad_input():
    with pytest.raises(ValueError, match="h900"):
        planner(cluster="h900")
    with pytest.raises(ValueError, match="no control 'dp'"):
        planner().choose(dp=8)
    with pytest.raises(ValueError, match="tp is 3"):
        planner().choose(tp=3)
    with pytest.raises(ValueError, match="parts are"):
        step_picture({"waiting": 1.0}, {"weights": 1.0}, 2.0, 1.0)
    with pytest.raises(ValueError, match="negative"):
        step_picture({"experts": -1.0}, {"weights": 1.0}, 2.0, 1.0)
