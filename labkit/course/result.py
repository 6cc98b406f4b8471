"""What a run of one notebook left behind: the record, and how it is read from an executed notebook."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

INJECTED, MARKER = "injected-parameters", "papermill-error-cell-tag"


@dataclass(frozen=True)
class CellTime:
    """How long one cell took: its number in the notebook (from 1), seconds, and its first line."""

    cell: int
    seconds: float
    code: str


@dataclass(frozen=True)
class Result:
    """How one notebook went; `problem` is empty if all is well, and then `key` says for which sources that holds."""

    number: str
    stem: str
    profile: str
    blank: bool
    key: str
    problem: str
    seconds: float
    cells: tuple[CellTime, ...] = ()
    claims: tuple[dict[str, Any], ...] = ()
    verdicts: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every cell ran and every exercise is as it should be."""
        return not self.problem


def load(path: Path) -> Result | None:
    """A result that was kept, or None if there is none that can be read."""
    try:
        kept = json.loads(path.read_text("utf-8"))
        cells = tuple(CellTime(**cell) for cell in kept.pop("cells"))
        return Result(**{**kept, "cells": cells, "claims": tuple(kept["claims"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep(result: Result, path: Path) -> None:
    """Write a result in one step."""
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps(asdict(result), indent=1, ensure_ascii=False), "utf-8")
    temporary.replace(path)


def collect(notebook: Any, mime: str) -> list[dict[str, Any]]:
    """The data that a notebook's outputs carry under one of labkit's mime types, in order."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return [output["data"][mime] for output in outputs if mime in output.get("data", {})]


def learner_cells(notebook: Any) -> list[Any]:
    """The cells as the author wrote them: without those that papermill adds."""
    return [cell for cell in notebook.cells if not {INJECTED, MARKER} & set(cell.metadata.get("tags", ()))]


def cell_times(notebook: Any) -> tuple[CellTime, ...]:
    """How long each code cell took, in order."""
    times = []
    for number, cell in enumerate(learner_cells(notebook), 1):
        if cell.cell_type == "code" and (seconds := cell.metadata.get("papermill", {}).get("duration")) is not None:
            code = next((line for line in cell.source.splitlines() if line.strip()), "")
            times.append(CellTime(number, round(seconds, 3), code[:100]))
    return tuple(times)


def failing_cell(notebook: Any) -> int | None:
    """The number of the first cell that holds an error, from 1 as the reader counts; None if no cell does."""
    for number, cell in enumerate(learner_cells(notebook), 1):
        if any(output.get("output_type") == "error" for output in cell.get("outputs", ())):
            return number
    return None


def exercise_problem(verdicts: dict[str, str], exercises: Sequence[str], blank: bool) -> str:
    """What is wrong with the verdicts: all must be "passed", or all "blank" in a blank run. Empty if they are."""
    wanted = "blank" if blank else "passed"
    wrong = [f"{name} is {verdicts.get(name, 'never checked')}" for name in exercises if verdicts.get(name) != wanted]
    kind = "blank" if blank else "solved"
    return f"in the {kind} notebook every exercise must be {wanted!r}, but {', '.join(wrong)}" if wrong else ""
