"""Every solved notebook runs end to end on the CPU, with every exercise passed."""

from __future__ import annotations

import pytest

from labkit.course import labs
from labkit.course.run import run

pytestmark = pytest.mark.notebook


@pytest.mark.parametrize("number", labs.notebooks())
def test_solved(number, tmp_path):
    (result,) = run([number], profile="cpu", root=tmp_path)
    assert result.ok, result.problem
    assert list(result.verdicts.values()) == ["passed"] * len(labs.lab(number).exercises)
    assert {row["claim"] for row in result.claims} == set(labs.lab(number).claims)
