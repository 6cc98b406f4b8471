"""Balance over training, the kernel's side: the loads of the step at hand, run beside run, and nothing else is sent."""

from __future__ import annotations

import base64
import json
import math

import pytest
import torch
from records import make, payload

from labkit.core.routing import Routing
from labkit.show.widgets.base import VIEW_MIME
from labkit.show.widgets.training import balance_over_training
from labkit.show.widgets.training_runs import Run, nearest, read_runs


def record(counts: list[int], loss: float | None = None, layer: int | None = None) -> Routing:
    """One expert a token, each expert as often as `counts` says."""
    ids = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[:, None]
    losses = None if loss is None else torch.full((len(ids),), loss)
    return Routing.of(torch.zeros(len(ids), len(counts)), ids, torch.ones(len(ids), 1), loss_T=losses, layer=layer)


def three_runs() -> dict:
    return {
        "none": {0: record([2, 2, 2, 2]), 10: record([5, 1, 1, 1]), 20: record([8, 0, 0, 0])},
        "loss": {0: record([2, 2, 2, 2], 3.0), 10: record([3, 2, 2, 1], 2.0), 20: record([2, 2, 3, 1], 1.5)},
        "bias": {0: record([4, 4, 0, 0]), 20: record([2, 2, 2, 2])},
    }


def test_step_gives_every_runs_loads_and_balance():
    w = balance_over_training(three_runs())
    assert w.loads == {name: [0.25] * 4 for name in ("none", "loss")} | {"bias": [0.5, 0.5, 0.0, 0.0]}
    w.step = 20
    assert w.loads["none"] == [1.0, 0.0, 0.0, 0.0]
    assert w.max_violation == pytest.approx({"none": 3.0, "loss": 0.5, "bias": 0.0})
    assert w.entropy["none"] == 0.0
    assert w.entropy["loss"] == pytest.approx(
        -(2 * 0.25 * math.log(0.25) + 0.375 * math.log(0.375) + 0.125 * math.log(0.125)) / math.log(4)
    )
    assert w.loss == {"loss": 1.5}


def test_what_is_drawn_is_what_the_kernel_says():
    w = balance_over_training(three_runs())
    for i, step in enumerate(w.steps):
        w.step = step
        for name, drawn in zip(w.names, w.view["runs"], strict=True):
            assert drawn["load"][drawn["at"][i]] == pytest.approx(w.loads[name], abs=1e-5)
            assert drawn["max_violation"][drawn["at"][i]] == pytest.approx(w.max_violation[name], abs=1e-4)
            assert drawn["entropy"][drawn["at"][i]] == pytest.approx(w.entropy[name], abs=1e-4)
    assert w.view["load_top"] == 1.0
    assert w.view["violation_top"] == 3.0
    assert w.view["entropy_low"] == 0.0


@pytest.mark.parametrize(("asked", "got"), [(3, 0), (5, 0), (6, 10), (-7, 0), (1000, 20)])
def test_step_snaps_to_the_nearest_recorded_one(asked, got):
    w = balance_over_training(three_runs())
    w.step = asked
    assert w.step == got
    assert w.says.startswith(f"Step {got}.")


def test_a_run_without_this_step_shows_its_nearest_and_says_so():
    w = balance_over_training(three_runs())
    w.run, w.step = "bias", 10
    assert w.loads["bias"] == [0.5, 0.5, 0.0, 0.0]
    assert "recorded at step 0" in w.says
    assert "experts with nothing to do: 2 of 4" in w.says
    assert "1.50 (none)" in w.says


def test_loss_is_told_where_a_record_carries_it():
    w = balance_over_training(three_runs())
    assert "loss" not in w.says.split(". MaxVio")[0].replace("none", "")
    w.run = "loss"
    assert "mean loss 3.000 nats" in w.says
    nan = Routing.of(*[getattr(record([1, 1]), f) for f in ("logits_TE", "topk_ids_TK", "topk_scores_TK")],
                     loss_T=torch.tensor([1.5, math.nan]))  # fmt: skip
    assert balance_over_training({"r": {0: nan}}).loss == {"r": 1.5}


def test_runs_can_be_hidden_and_the_one_in_hand_is_always_shown():
    w = balance_over_training(three_runs())
    w.shown = ["bias", "loss"]
    assert (w.shown, w.run) == (["loss", "bias"], "loss")
    assert "none" not in w.says
    w.run = "none"
    assert w.shown == ["none", "loss", "bias"]
    assert set(w.loads) == {"none", "loss", "bias"}


def test_all_layers_together_are_a_mean_by_rank_not_by_number():
    mirrored = {"r": {0: (record([4, 0], layer=0), record([0, 4], layer=1))}}
    w = balance_over_training(mirrored)
    assert w.layers == ["layer 0", "layer 1", "mean of all layers, by rank"]
    assert w.loads["r"] == [1.0, 0.0]
    w.layer = 1
    assert w.loads["r"] == [0.0, 1.0]
    w.layer = -1
    assert w.loads["r"] == [1.0, 0.0]
    assert w.max_violation["r"] == 1.0
    assert w.view["ranked"]


def test_many_steps_are_thinned_in_words_and_stay_small():
    r = make(T=300, E=64, K=6, L=1, tokens=False)[0]
    w = balance_over_training({name: dict.fromkeys(range(0, 2000, 4), r) for name in "abcdef"})
    assert payload(w) < 1_000_000
    assert w.sampled == f"{len(w.steps)} of 500 recorded steps, evenly spaced."
    assert (w.steps[0], w.steps[-1]) == (0, 1996)
    w.step = 1001
    assert w.step in w.steps
    assert abs(w.step - 1001) <= 12
    assert balance_over_training(three_runs()).sampled == ""


def test_tokens_are_never_sent():
    r = make(T=40, E=4, L=2, text="z")
    assert "'z'" in str(r[0].tokens[:3])
    assert '"z"' not in json.dumps(balance_over_training({"run": {0: r}}).get_state()["view"])


def test_picture_says_what_it_shows():
    w = balance_over_training(three_runs())
    w.step = 20
    data, meta = w._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data[VIEW_MIME]["model_id"] == w.model_id
    alt = meta["image/png"]["alt"]
    assert "step 20" in alt
    assert "none: the busiest expert, 0, gets 100.0 % of the choices (even: 25 %)" in alt
    w.shown = ["bias"]
    picture = w.picture()
    assert "none" not in picture.alt
    panels = [ax for ax in picture.axes if ax.get_visible()]
    assert [ax.get_xlabel() for ax in panels] == ["expert", "training step", "training step"]
    assert [round(bar.get_height(), 3) for bar in panels[0].patches] == [25.0] * 4


@pytest.mark.parametrize("names", ["a", "abcd", "abcdef"])
def test_picture_of_one_to_six_runs(names):
    picture = balance_over_training({name: {0: record([1, 0])} for name in names}).picture()
    assert sum(ax.get_visible() for ax in picture.axes) == len(names) + 2


def test_nearest_of_two_as_near_is_the_earlier():
    assert [nearest((0, 10), v) for v in (4, 5, 6)] == [0, 0, 1]
    assert Run("r", (5,), *[torch.zeros(1)] * 4).at(99) == 0


def test_steps_are_put_in_order():
    run = read_runs({"r": {20: record([1, 0]), 0: record([0, 1])}})[0][0]
    assert run.steps == (0, 20)
    assert run.load_SLE[:, 0].tolist() == [[0.0, 1.0], [1.0, 0.0]]


EMPTY = record([0, 0])


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ({}, "0 runs; give 1 to 6"),
        ({str(i): {0: record([1])} for i in range(7)}, "7 runs; give 1 to 6"),
        ([record([1])], "list; give"),
        ({"": {0: record([1])}}, "name in words"),
        ({"r": {}}, "no step"),
        ({"r": record([1])}, "Routing of no step"),
        ({"r": {-1: record([1])}}, "step -1"),
        ({"r": {True: record([1])}}, "step True"),
        ({"r": {0.5: record([1])}}, "step 0.5"),
        ({"r": {0: "record"}}, "str at step 0"),
        ({"r": {0: ()}}, "tuple at step 0"),
        ({"r": {0: EMPTY}}, "at least one token"),
        ({"r": {0: (record([1]), record([1, 1]))}}, "as many experts"),
        ({"r": {0: record([1])}, "s": {5: record([1, 1])}}, "2 experts in run 's', step 5"),
        ({"r": {0: record([1]), 1: (record([1]), record([1]))}}, "2 layers × 1 experts in run 'r', step 1"),
    ],
)
def test_bad_runs(runs, says):
    with pytest.raises(ValueError, match=says):
        balance_over_training(runs)


@pytest.mark.parametrize(
    ("trait", "value", "says"),
    [
        ("run", "nobody", "give of none, loss, bias"),
        ("shown", [], "at least one"),
        ("shown", ["nobody"], "give of none, loss, bias"),
        ("layer", 1, "give 0 to 0"),
        ("layer", -1, "give 0 to 0"),
    ],
)
def test_bad_traits_are_refused_and_change_nothing(trait, value, says):
    w = balance_over_training(three_runs())
    before = getattr(w, trait)
    with pytest.raises(ValueError, match=says):
        setattr(w, trait, value)
    assert getattr(w, trait) == before
