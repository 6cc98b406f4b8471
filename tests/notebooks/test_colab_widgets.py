"""The notebooks with widgets run on the widgets that Colab ships: ipywidgets 7.7.1 and anywidget 0.9.21."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

import nbformat
import pytest

from labkit.course import run
from labkit.show.widgets.base import VIEW_MIME

pytestmark = [pytest.mark.notebook, pytest.mark.colab]

FOLDER = Path(sys.prefix) / "colab-widgets"
SHIPPED = {"ipywidgets": "7.7.1", "anywidget": "0.9.21"}
LOOK = """
import sys
for name, version in {shipped}.items():
    module = sys.modules[name]
    assert (module.__version__, module.__file__.startswith({folder!r})) == (version, True), module
print("widgets as Colab ships them")
"""


def test_the_environment_has_other_versions_and_the_folder_has_colab_s():
    found = {name: next(metadata.distributions(name=name, path=[str(FOLDER)])).version for name in SHIPPED}
    assert found == SHIPPED
    assert all(metadata.version(name) != version for name, version in SHIPPED.items())


@pytest.mark.parametrize("number", ["gallery", "03"])
def test_blank_notebooks_run_on_colab_s_widgets(number, tmp_path, monkeypatch):
    made = run.source_of

    def with_a_look(lab, blank):
        notebook = made(lab, blank)
        notebook.cells.append(nbformat.v4.new_code_cell(LOOK.format(shipped=SHIPPED, folder=str(FOLDER))))
        return notebook

    monkeypatch.setattr(run, "source_of", with_a_look)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")])))
    (result,) = run.run([number], profile="cpu", blank=True, root=tmp_path)
    assert result.ok, result.problem
    executed = nbformat.read(tmp_path / "cpu-blank" / f"{result.stem}.ipynb", as_version=4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", ())]
    assert any("widgets as Colab ships them" in output.get("text", "") for output in outputs)
    live = [output["data"] for output in outputs if VIEW_MIME in output.get("data", {})]
    assert live
    pictures = [data for data in live if "image/png" in data]
    assert pictures
    assert not any("0x" in data["text/plain"] for data in pictures)
