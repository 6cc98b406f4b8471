"""The planner adds up what core.cost says, and every control changes the plan."""

from __future__ import annotations

import base64

import pytest

from labkit.core.config import ModelConfig
from labkit.core.cost import inference_memory, training_memory
from labkit.core.presets import preset
from labkit.show import Planner, planner
from labkit.show.widgets.base import VIEW_MIME
from labkit.show.widgets.planner import breakdowns, card, plan


def test_plan_is_what_cost_says():
    p = plan("olmoe-1b-7b", "H200", batch=2, context=1024, weight_bits=8, checkpointing=True)
    model = preset("olmoe-1b-7b")
    assert p.serving == inference_memory(model, 2, 1024, 8)
    assert p.checkpointed == training_memory(model, 2048, 1024, checkpointing=True)
    assert p.training == training_memory(model, 2048, 1024)
    assert p.train_fit.needed == p.checkpointed.total
    bars = breakdowns(p)
    assert sum(bars["train"].values()) == p.training.total
    assert sum(bars["train, checkpointing"].values()) == p.checkpointed.total
    assert sum(bars["serve"].values()) == p.serving.total


def test_no_gradients_in_serving():
    assert set(breakdowns(plan("mixtral-8x7b", "T4"))["serve"]) == {"weights", "KV cache"}


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("model", "mixtral-8x7b"), ("gpu", "H200"), ("count", 8), ("batch", 4), ("context", 512),
        ("weight_bits", 4), ("precision", "fp32"), ("optimizer", "sgd"), ("checkpointing", True),
    ],
)  # fmt: skip
def test_every_control_changes_the_plan_and_what_is_shown(control, value):
    p = planner()
    before, shown = p.plan, p.children[-1].value
    getattr(p, control).value = value
    assert p.plan != before
    assert p.children[-1].value != shown


def test_more_memory_fits_more():
    p = Planner("olmoe-1b-7b", "T4")
    assert not p.plan.train_fit
    p.count.value = 16
    assert p.plan.train_fit
    assert card(p.plan).kind == "pass"


def test_bundle_has_view_picture_and_table():
    p = planner()
    data, meta = p._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data[VIEW_MIME]["model_id"] == p.model_id
    assert "gradients" in data["text/plain"]
    assert "0x" not in data["text/plain"]
    assert meta["image/png"]["alt"] == data["text/plain"]


DENSE = ModelConfig(
    name="mine", vocab_size=100, num_layers=2, d_model=8, num_heads=2, num_kv_heads=2, head_dim=4, moe=None,
    num_dense_layers=2, d_dense=16,
)  # fmt: skip


def test_a_model_of_ones_own_stands_in_the_list():
    p = planner(also=(DENSE,))
    p.model.value = "mine"
    assert p.plan.serving == inference_memory(DENSE, 1, 4096)
    assert p.plan == planner("mine", also=(DENSE,)).plan
    assert p.plan.active == p.plan.params


def test_bytes_of_active_weights_are_told():
    p = plan("mixtral-8x7b", "H200", weight_bits=8)
    assert p.active_part(p.serving.weights) == p.active
    (row,) = [row for row in card(p).table if "active" in row[0]]
    assert row[1] == f"{p.active / 1e9:.1f} GB"


def test_picture_shows_the_card_and_its_usable_part():
    labels = [line.get_label() for line in planner().picture().axes[0].lines]
    assert labels == ["T4: 16 GB", "usable: 14.4 GB"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: planner("olmo"), lambda: planner(gpu="T5"), lambda: plan("olmoe-1b-7b", "T4", count=0),
        lambda: plan("olmoe-1b-7b", "T4", batch=0), lambda: plan("olmoe-1b-7b", "T4", weight_bits=3),
        lambda: plan("olmoe-1b-7b", "T4", optimizer="lion"),
        lambda: planner("mine"), lambda: planner(also=(DENSE, DENSE)), lambda: planner(also=(preset("mixtral-8x7b"),)),
    ],
)  # fmt: skip
def test_bad_input(call):
    with pytest.raises(ValueError):
        call()
