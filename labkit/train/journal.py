"""The log of a training run: one JSON object a line, each step once, whatever was killed in between."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Journal:
    """Rows of a run, kept in memory and, with a path, on disk.

    Args:
        path: of the JSONL file, or None.
        last_step: rows of later steps are removed, and so is a line that was cut off: a resumed run writes them anew.

    Raises ValueError, with the line's number, for a line before the last that is no JSON object.

    >>> journal = Journal(None, last_step=0)
    >>> journal.write({"step": 1, "loss": float("nan")})
    >>> journal.rows
    [{'step': 1, 'loss': None}]
    """

    def __init__(self, path: Path | None, last_step: int) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path is not None and path.is_file():
            self.rows = [row for row in read(path) if row["step"] <= last_step]
            fresh = path.with_name(f".{path.name}")
            fresh.write_text("".join(_line(row) for row in self.rows), "utf-8")
            os.replace(fresh, path)

    def write(self, row: Row) -> None:
        """Add a row; what is no finite number becomes null."""
        row = {key: _plain(value) for key, value in row.items()}
        self.rows.append(row)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row))


def read(path: Path | str) -> list[Row]:
    """The rows of a log; a last line that was cut off is left out.

    Raises ValueError, with the line's number, for any other line that is no JSON object with a step.
    """
    lines = Path(path).read_text("utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            row["step"]
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is no row of a training log: {line[:60]!r}") from error
        rows.append(row)
    return rows


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
