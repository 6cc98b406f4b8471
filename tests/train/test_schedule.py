"""Schedules are what their papers say, at every step."""

from __future__ import annotations

import math

import pytest
import torch

from labkit.train.schedule import Schedule


def test_cosine_equals_the_formula_and_transformers():
    from transformers import get_cosine_schedule_with_warmup

    ours = Schedule("cosine", steps=40, warmup=7)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, 7, 40)
    for step in range(1, 41):
        if step <= 7:
            assert ours(step) == step / 7
        else:
            assert ours(step) == pytest.approx((1 + math.cos(math.pi * (step - 7) / 33)) / 2)
        optimizer.step()
        theirs.step()  # the factor for update s + 1 in theirs is that of update s + 1's predecessor in ours
        assert optimizer.param_groups[0]["lr"] == pytest.approx(ours(step), abs=1e-12)


def test_wsd_is_flat_between_two_lines():
    schedule = Schedule("wsd", steps=20, warmup=4, decay=5, final=0.1)
    factors = [schedule(step) for step in range(1, 21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert set(factors[4:15]) == {1.0}
    assert factors[15:] == pytest.approx([0.82, 0.64, 0.46, 0.28, 0.1])


def test_constant_stays_after_its_warm_up():
    schedule = Schedule("constant", steps=5, warmup=2)
    assert [schedule(step) for step in range(1, 6)] == [0.5, 1, 1, 1, 1]


def test_the_last_factor_is_the_final_share():
    assert Schedule("cosine", steps=9, warmup=3, final=0.25)(9) == 0.25
    assert Schedule("cosine", steps=3, warmup=3)(3) == 1.0  # all of it is warm-up


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "linear"}, "choose one of cosine, wsd, constant"),
        ({"warmup": 11}, "warm-up of 11"),
        ({"name": "wsd"}, "decay of 0 steps"),
        ({"decay": 2}, "only 'wsd'"),
        ({"final": 1.5}, "from 0 to 1"),
        ({"steps": 0}, "of 0 steps"),
    ],
)
def test_nonsense_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Schedule(**{"name": "cosine", "steps": 10, **fields})


@pytest.mark.parametrize("step", [0, 11])
def test_steps_outside_the_run_have_no_rate(step):
    with pytest.raises(ValueError, match="steps 1 to 10"):
        Schedule("cosine", steps=10)(step)
