"""The committed notebooks: executed on a GPU, made from today's masters, and equal to what this machine computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from labkit.course import labs, release

ROOT = Path(__file__).parents[2]
LABS = [labs.lab(number).stem for number in labs.numbers()]
NBVAL = ["00_start", "02_experts", "08_first_kernels"]  # the others' outputs are compared in `test_solved`
STEMS = [labs.lab(number).stem for number in labs.notebooks()]


def committed(stem: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "solutions" / f"{stem}.ipynb", as_version=4)


@pytest.mark.parametrize("stem", STEMS)
def test_the_student_notebook_is_what_its_master_makes(stem):
    assert not release.stale(stem), f"run: labkit release {stem.split('_')[0]}"


@pytest.mark.parametrize("stem", STEMS)
def test_the_executed_notebook_has_the_cells_of_its_master(stem):
    fresh = release.solved_notebook(stem)
    assert [cell.source for cell in committed(stem).cells] == [cell.source for cell in fresh.cells], (
        f"run on a GPU: labkit run {stem.split('_')[0]} --profile gpu --update"
    )


@pytest.mark.parametrize("stem", STEMS)
def test_the_executed_notebook_has_outputs_and_no_error(stem):
    code = [cell for cell in committed(stem).cells if cell.cell_type == "code"]
    kinds = [output.output_type for cell in code for output in cell.outputs]
    assert "error" not in kinds
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    said = [output.get("data", {}).get("text/plain", "") for cell in code for output in cell.outputs]
    assert not [text for text in said if "did not work out on this machine" in text]


@pytest.mark.parametrize("stem", LABS)
def test_cells_are_marked_to_be_compared(stem):
    """By nbval, and by `test_solved`, which compares them after its own run."""
    assert len([cell for cell in committed(stem).cells if "nbval-check-output" in cell.metadata.get("tags", ())]) >= 8


@pytest.mark.notebook
@pytest.mark.parametrize("stem", NBVAL)
def test_nbval_finds_the_committed_outputs_here(stem):
    path = ROOT / "solutions" / f"{stem}.ipynb"
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "-o", "addopts=", "-p", "no:cacheprovider", path]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
