"""The bench of quantised experts: every format runs, its error is its own, and what is wrong is still called wrong."""

import pytest
import torch

from labkit.core.runtime import Unavailable
from labkit.kernels.bench import Measured, Plan, measure, quant
from labkit.kernels.bench.shapes import TINY

CPU = torch.device("cpu")
SHAPE = TINY["quant"]["tiny-quant"]


@pytest.fixture(scope="module")
def result():
    plan = Plan({"quant": [SHAPE]}, CPU, torch.float32, rounds=1, repeats=1, without=("torchao INT8 weights",))
    (result,) = measure(plan)
    return result


def test_every_format_of_ours_costs_what_it_costs(result):
    errors = {each.name: each.errors["output"] for each in result.measured if each.name.startswith("labkit")}
    between = {
        "labkit, not quantised": (0, 1e-5),
        "labkit INT8 weights": (2e-3, 2e-2),
        "labkit INT8, both sides": (5e-3, 4e-2),
        "labkit FP8 weights": (2e-2, 8e-2),
        "labkit FP8, both sides": (3e-2, 0.1),
        "labkit NF4 weights": (8e-2, 0.2),
    }
    assert set(errors) == set(between)
    for name, (low, high) in between.items():
        assert low <= errors[name] < high, name
    assert not any(each.wrong("float32") for each in result.measured)
    assert all("weights" in each.note for each in result.measured if each.name.startswith("labkit"))


def test_who_is_not_there_is_named(result):
    absent = {each.name: each.reason for each in result.absent}
    assert "for GPUs" in absent["torch FP8 by rows"]


def test_the_limit_is_the_formats_and_not_the_dtypes():
    assert Measured("a", (1.0,), {"output": 0.1}).wrong("bfloat16")
    assert not Measured("a", (1.0,), {"output": 0.1}, limit=quant.LIMIT).wrong("bfloat16")
    assert Measured("a", (1.0,), {"output": 0.3}, limit=quant.LIMIT).wrong("bfloat16")
    assert Measured("a", (1.0,), {"output": float("nan")}, limit=quant.LIMIT).wrong("bfloat16")


def test_a_shape_that_a_format_does_not_know_is_refused_with_the_reason():
    from dataclasses import replace

    case = quant.draw(replace(SHAPE, F=96), torch.float32, CPU, 0)
    with pytest.raises(Unavailable, match="not a multiple of 128"):
        quant.CONTESTANTS["labkit FP8 weights"](case)
