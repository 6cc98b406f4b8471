"""Every student notebook runs end to end with nothing filled in: no error, every exercise "not attempted"."""

from __future__ import annotations

import pytest

from labkit.course import labs
from labkit.course.run import run

pytestmark = pytest.mark.notebook


@pytest.mark.parametrize("number", labs.numbers())
def test_blank(number, tmp_path):
    (result,) = run([number], profile="cpu", blank=True, root=tmp_path)
    assert result.ok, result.problem
    assert set(result.verdicts.values()) == {"blank"}
    assert len(result.verdicts) == len(labs.lab(number).exercises)
