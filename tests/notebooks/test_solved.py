"""Every solved notebook runs end to end on the CPU: every exercise passed, marked cells as they were committed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbval.plugin import IPyNbCell, coalesce_streams

from labkit.course import labs
from labkit.course.run import run

ROOT = Path(__file__).parents[2]
# What nbval itself leaves out.
LEFT_OUT = (
    "metadata", "traceback", "prompt_number", "output_type", "name", "execution_count",
    "application/vnd.jupyter.widget-view+json", "image/png", "image/jpeg",
)  # fmt: skip
pytestmark = pytest.mark.notebook


def marked(path: Path) -> list[nbformat.NotebookNode]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", ())]


def difference(computed: list, committed: list) -> str:
    """What nbval would say of two cells' outputs; empty if they agree."""
    told: list[str] = []
    cell = SimpleNamespace(
        colors=SimpleNamespace(FAIL="", ENDC="", OKBLUE=""),
        sanitize=lambda text: text,
        format_output_compare=lambda key, left, right: told.append(f"{key}: {left!r} was committed, now {right!r}"),
    )
    computed, committed = coalesce_streams(computed), coalesce_streams(committed)
    same = IPyNbCell.compare_outputs(cell, computed, committed, skip_compare=LEFT_OUT)
    return "" if same else "\n".join([*told, *cell.comparison_traceback])


@pytest.mark.parametrize("number", labs.notebooks())
def test_solved(number, tmp_path):
    (result,) = run([number], profile="cpu", root=tmp_path)
    assert result.ok, result.problem
    assert list(result.verdicts.values()) == ["passed"] * len(labs.lab(number).exercises)
    assert {row["claim"] for row in result.claims} == set(labs.lab(number).claims)
    stem = labs.lab(number).stem
    (executed,) = tmp_path.rglob(f"{stem}.ipynb")
    here, committed = marked(executed), marked(ROOT / "solutions" / f"{stem}.ipynb")
    assert [cell.source for cell in here] == [cell.source for cell in committed]
    for now, before in zip(here, committed, strict=True):
        assert not difference(now.outputs, before.outputs), now.source


def test_a_difference_is_seen():
    text = lambda words: [nbformat.v4.new_output("stream", text=words)]  # noqa: E731
    assert not difference(text("4"), text("4"))
    assert "'5' was committed, now '4'" in difference(text("4"), text("5"))
    assert difference([], text("4"))
