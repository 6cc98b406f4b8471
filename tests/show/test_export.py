"""A notebook that was run keeps every widget's and figure's picture, with its words, for pages where nothing runs."""

from __future__ import annotations

import re
from pathlib import Path

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


VIEWS = """
import sys; sys.path.insert(0, {folder!r})
from dataclasses import replace
from records import make
from test_ablation import removals
from labkit import show
records = make()
later = tuple(replace(r, loss_T=r.loss_T / 2) for r in records)
display(show.ribbon(records), show.flow(records), show.load_map(records))
display(show.balance_over_training({{"none": {{0: records, 10: later}}}}), show.coactivation_map(records))
display(show.lift_map(records), show.contexts(records), show.ablation(records, removals(records)))
display(show.tiles([45, 0, 300]))
"""
WORDS = (
    "ribbon", "Flow", "Load map", "Balance over training", "Co-activation", "Domain lift", "contexts", "ablation",
    "Tiles",
)  # fmt: skip


def run_and_export(cells: list[str]):
    """The executed notebook, its page with described pictures, its Markdown and the files that this refers to."""
    nbclient, nbconvert = pytest.importorskip("nbclient"), pytest.importorskip("nbconvert")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, store_widget_state=False, kernel_name="python3").execute()
    html, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    markdown, resources = nbconvert.MarkdownExporter().from_notebook_node(notebook)
    return notebook, describe_images(html, notebook), markdown, resources["outputs"]


def test_every_view_of_routing_survives_export():
    _, html, markdown, files = run_and_export([VIEWS.format(folder=str(Path(__file__).parent))])
    said = re.findall(r'<img alt="([^"]*)"[^>]*data:image/png', html)
    assert len(said) == len(WORDS)
    for words, alt in zip(WORDS, said, strict=True):
        assert words in alt
    named = re.findall(r"!\[png\]\(([^)]+)\)", markdown)
    assert len(named) == len(WORDS)
    assert all(files[name].startswith(b"\x89PNG") for name in named)
    assert "Traceback" not in markdown
    assert "widget-view" not in markdown


def test_pictures_survive_export():
    notebook, html, markdown, files = run_and_export([CELL])
    outputs = notebook.cells[0].outputs
    assert ["image/png" in output["data"] for output in outputs] == [True, True, True, False]
    assert not any("0x" in output["data"]["text/plain"] for output in outputs)
    said = re.findall(r'<img alt="([^"]*)"[^>]*data:image/png', html)
    assert len(said) == 3
    for words, alt in zip(("Router microscope", "KV cache", "even load"), said, strict=True):
        assert words in alt
    assert "done" in html
    assert len(re.findall(r"!\[png\]", markdown)) == len(files) == 3
