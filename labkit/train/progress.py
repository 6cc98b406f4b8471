"""How a run shows that it lives: a bar in a terminal, lines where asked for, nothing in notebooks and on servers."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any, Self

from labkit.train.journal import Row


class Progress:
    """A context manager that is told of every step and of every line of the log.

    Args:
        style: "bar", "plain", "quiet", or "auto": a bar on a terminal outside continuous integration, else nothing.
        done: steps done before; steps: of the whole run.
    """

    def __init__(self, style: str, done: int, steps: int) -> None:
        self.style = choose(style)
        self.done, self.steps = done, steps
        self._bar: Any = None

    def __enter__(self) -> Self:
        if self.style == "bar":
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=self.steps, completed=self.done)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self) -> None:
        """One more is done."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def log(self, row: Row) -> None:
        """Show what a line of the log says."""
        if self._bar is not None:
            self._bar.update(self._task, description=describe(row))
        elif self.style == "plain":
            print(f"step {row['step']}/{self.steps}  {describe(row)}", file=sys.stderr, flush=True)

    def say(self, words: str) -> None:
        """Tell something that must not be missed, in every style."""
        print(words, file=sys.stderr, flush=True)


def describe(row: Row) -> str:
    """A line of the log in few words.

    >>> describe({"loss": 1.23456, "tokens_per_s": 1234.5, "mfu": None})
    'loss 1.235 · 1,234 tokens/s'
    """
    parts = [f"loss {row['loss']:.3f}", f"{row['tokens_per_s']:,.0f} tokens/s"]
    return " · ".join([*parts, f"MFU {row['mfu']:.1%}"] if row["mfu"] is not None else parts)


def choose(style: str) -> str:
    """What "auto" means here."""
    if style != "auto":
        return style
    return "bar" if sys.stderr.isatty() and not os.environ.get("CI") and "ipykernel" not in sys.modules else "quiet"
