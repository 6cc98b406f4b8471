"""A notebook that was run keeps every widget's and figure's picture, with its words, for pages where nothing runs."""

from __future__ import annotations

import re

import nbformat
import pytest

from labkit.show.picture import describe_images

pytestmark = pytest.mark.notebook

CELL = """
import torch
from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.show import Card, microscope, planner
from labkit.show.figures import load_bars
from labkit.show.widgets.microscope import decide_as
config = MoEConfig(d_model=4, d_expert=4, num_experts=4, top_k=2)
logits = torch.arange(8.0).view(2, 4)
_, ids, weights = decide_as(config)(logits, torch.zeros(4))
record = Routing.of(logits, ids, weights)
display(microscope(record, config), planner(), load_bars(record), Card("pass", "done"))
"""


def test_pictures_survive_export():
    nbclient, nbconvert = pytest.importorskip("nbclient"), pytest.importorskip("nbconvert")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    nbclient.NotebookClient(notebook, timeout=120, store_widget_state=False, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    assert ["image/png" in output["data"] for output in outputs] == [True, True, True, False]
    assert not any("0x" in output["data"]["text/plain"] for output in outputs)
    html, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    said = re.findall(r'<img alt="([^"]*)"[^>]*data:image/png', describe_images(html, notebook))
    assert len(said) == 3
    for words, alt in zip(("Router microscope", "KV cache", "even load"), said, strict=True):
        assert words in alt
    assert "done" in html
