"""Every widget, and a notebook, on the widgets that Colab ships: ipywidgets 7.7.1 and anywidget 0.9.21.

All notebooks run on them once a week (.github/workflows/colab.yml).
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

import nbclient
import nbformat
import pytest

from labkit.course import run
from labkit.show.widgets.base import VIEW_MIME

pytestmark = [pytest.mark.notebook, pytest.mark.colab]

FOLDER = Path(sys.prefix) / "colab-widgets"
SHOW = Path(__file__).parents[1] / "show"
SHIPPED = {"ipywidgets": "7.7.1", "anywidget": "0.9.21"}
LOOK = """
import sys
for name, version in {shipped}.items():
    module = sys.modules[name]
    assert (module.__version__, module.__file__.startswith({folder!r})) == (version, True), module
print("widgets as Colab ships them")
"""
EVERY_WIDGET = """
import sys; sys.path.insert(0, {tests!r})
from dataclasses import replace
from records import make
from test_ablation import removals
from test_microscope import SIGMOID, record
from labkit import show
from labkit.serve import timeline, workload
from labkit.serve.scheduler import Limits
records = make()
later = tuple(replace(r, loss_T=r.loss_T / 2) for r in records)
jobs = list(workload.arrivals([(9, 5), (20, 4), (3, 8)], seed=0))
served = timeline.ladder(jobs, Limits(num_blocks=24, block_size=4, max_tokens_per_step=24, max_sequences=6), 2)
shown = [
    show.ribbon(records), show.flow(records), show.load_map(records), show.coactivation_map(records),
    show.balance_over_training({{"none": {{0: records, 10: later}}}}), show.lift_map(records), show.contexts(records),
    show.ablation(records, removals(records)), show.tiles([45, 0, 300]), show.batch_timeline(served),
    show.microscope(record(), SIGMOID), show.planner(),
]
assert {{type(view).__module__ for view in shown}} == {{home for home in show._HOMES.values() if ".widgets." in home}}
display(*shown)
"""


def test_the_environment_has_other_versions_and_the_folder_has_colab_s():
    found = {name: next(metadata.distributions(name=name, path=[str(FOLDER)])).version for name in SHIPPED}
    assert found == SHIPPED
    assert all(metadata.version(name) != version for name, version in SHIPPED.items())


@pytest.fixture
def colab(monkeypatch):
    """Kernels that find Colab's widgets first."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")])))


def pictures_of(notebook):
    """The outputs of a notebook's widgets; asserts that it ran on Colab's, and that none is named by its address."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("widgets as Colab ships them" in output.get("text", "") for output in outputs)
    live = [output["data"] for output in outputs if VIEW_MIME in output.get("data", {})]
    pictures = [data for data in live if "image/png" in data]
    assert not any("0x" in data["text/plain"] for data in pictures)
    return pictures


def test_every_widget_lives_and_has_a_picture_on_colab_s_widgets(colab):
    cells = [EVERY_WIDGET.format(tests=str(SHOW)), LOOK.format(shipped=SHIPPED, folder=str(FOLDER))]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, store_widget_state=False, kernel_name="python3").execute()
    assert len(pictures_of(notebook)) == 12


def test_a_blank_notebook_runs_on_colab_s_widgets(tmp_path, monkeypatch, colab):
    made = run.source_of

    def with_a_look(lab, blank):
        notebook = made(lab, blank)
        notebook.cells.append(nbformat.v4.new_code_cell(LOOK.format(shipped=SHIPPED, folder=str(FOLDER))))
        return notebook

    monkeypatch.setattr(run, "source_of", with_a_look)
    (result,) = run.run(["00"], profile="cpu", blank=True, root=tmp_path)
    assert result.ok, result.problem
    assert pictures_of(nbformat.read(tmp_path / "cpu-blank" / f"{result.stem}.ipynb", as_version=4))
