"""`labkit run --update`: an executed notebook becomes a committed one, without what changes at every run."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

from labkit.course.result import learner_cells

PACKAGE = Path(__file__).resolve().parents[1]
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
VOLATILE = ("papermill", "execution", "widgets", "ExecuteTime")


def folder() -> Path:
    """The folder of the masters. Raises ValueError where there is none: labkit then runs from a wheel."""
    found = PACKAGE.parent / "solutions"
    if not found.is_dir():
        raise ValueError("there is no solutions/ folder to update: this labkit is installed; work in a checkout")
    return found


def renewed(notebook: Any) -> Any:
    """A copy of an executed notebook that says the same at every run.

    Its outputs and pictures stay. What goes: papermill's cells, times and states, the identity of live widgets that
    can be seen without (as a picture or as HTML), and the paths of the machine.
    """
    fresh = copy.deepcopy(notebook)
    fresh.cells = learner_cells(fresh)
    fresh.metadata = type(fresh.metadata)(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    for cell in fresh.cells:
        _forget(cell.metadata)
        outputs = cell.get("outputs", [])
        for output in outputs:
            if {"image/png", "text/html"} & output.get("data", {}).keys():
                output["data"].pop(WIDGET_VIEW, None)
            _without_paths(output)
    return fresh


def _forget(metadata: Any) -> None:
    for name in VOLATILE:
        metadata.pop(name, None)
    if metadata.get("tags") == []:
        del metadata["tags"]


def _without_paths(output: Any) -> None:
    for name in ("text", "evalue"):
        if isinstance(output.get(name), str):
            output[name] = plain_paths(output[name])
    for mime, value in output.get("data", {}).items():
        if mime.startswith("text/") and isinstance(value, str):
            output["data"][mime] = plain_paths(value)


def plain_paths(text: str) -> str:
    """The text with the folders of this machine replaced: the checkout by ".", scratch folders by "…", home by "~".

    >>> plain_paths("/tmp/labkit-run-x1y2/home/progress.json")
    '…/home/progress.json'
    """
    text = re.sub(r"[^\s\"'<>]*/labkit-run-\w+", "…", text)
    text = re.sub(r"[^\s\"'<>]*/ipykernel_\d+/\d+\.py", "…/cell.py", text)
    for path, short in ((str(PACKAGE.parent), "."), (str(Path.home()), "~")):
        text = re.sub(re.escape(path) + r"(?=[/\s\"'<>:,)]|$)", short, text)
    return text


def renew(executed: Path, stem: str, into: Path | None = None) -> Path:
    """Write the committed notebook of a lab from its executed one, and return its path."""
    import nbformat

    target = (into or folder()) / f"{stem}.ipynb"
    _write(renewed(nbformat.read(executed, as_version=4)), target)
    return target


def reword(fresh: Any, stem: str, into: Path | None = None) -> bool:
    """Bring the prose of a committed notebook up to date with `fresh`, its master's notebook; outputs stay.

    Returns False, and changes nothing, if there is none or if its code has changed: then it must be executed again.
    """
    import nbformat

    target = (into or folder()) / f"{stem}.ipynb"
    if not target.is_file():
        return False
    before = [cell for cell in nbformat.read(target, as_version=4).cells if cell.cell_type == "code"]
    after = renewed(fresh)
    code = [cell for cell in after.cells if cell.cell_type == "code"]
    if [cell.source for cell in before] != [cell.source for cell in code]:
        return False
    for old, new in zip(before, code, strict=True):
        new.outputs, new.execution_count = old.outputs, old.execution_count
    _write(after, target)
    return True


def _write(notebook: Any, target: Path) -> None:
    import nbformat

    nbformat.validate(notebook)
    text = json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if not target.is_file() or target.read_text("utf-8") != text:
        target.write_text(text, "utf-8")
