"""The card: how a check, a prediction, a claim or the doctor speaks in a notebook, and in a terminal.

A card is the same text everywhere. HTML adds a coloured edge that follows the light or dark theme; the colour never
says anything that the words do not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from labkit.show.style import KIND_COLORS, LINE_CSS, PANEL_CSS, TEXT_CSS

Kind = Literal["pass", "fail", "todo", "info", "claim"]

MARKS = {"pass": "✓", "fail": "✗", "todo": "○", "info": "i", "claim": "§"}


@dataclass(frozen=True)
class Card:
    """A titled message with lines and perhaps a table.

    Args:
        kind: "pass", "fail", "todo", "info" or "claim"; sets the mark and the colour of the edge.
        title: one line.
        lines: the body, one string a paragraph; `code` in backticks is shown as code, and a string of several lines is
            shown as typed.
        table: rows of cells, the first row being the heading; every row as long as the first.
        alt: the text for readers who hear the card instead of seeing it; by default the mark's meaning and the title.

    Raises ValueError for an unknown kind, an empty title, a single string given as `lines`, or a ragged table.

    >>> print(Card("pass", "01.top_k", ["6 of 6 cases hold."]))
    ✓ 01.top_k
      6 of 6 cases hold.
    """

    kind: Kind
    title: str
    lines: Sequence[str] = ()
    table: Sequence[Sequence[Any]] | None = None
    alt: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in MARKS:
            raise ValueError(f"Card.kind is {self.kind!r}; choose one of {', '.join(MARKS)}")
        if not self.title.strip() or "\n" in self.title:
            raise ValueError(f"Card.title is {self.title!r}; give one line of text")
        if isinstance(self.lines, str):
            raise ValueError(f"Card.lines is the string {self.lines[:40]!r}; give a list of strings")
        object.__setattr__(self, "lines", tuple(str(line) for line in self.lines))
        if self.table is not None:
            object.__setattr__(self, "table", _rows(self.table))

    def __str__(self) -> str:
        body = [part for line in self.lines for part in line.split("\n")]
        if self.table:
            body += _plain_table(self.table)
        return "\n".join([f"{MARKS[self.kind]} {self.title}", *(f"  {line}".rstrip() for line in body)])

    def html(self) -> str:
        """The card as one self-contained, escaped <div>: inline styles only, no script, no outside resource."""
        color = KIND_COLORS[self.kind]
        box = (
            f"border-left: 5px solid {color}; background: {PANEL_CSS}; color: {TEXT_CSS}; "
            "padding: 8px 14px; margin: 6px 0; border-radius: 3px; max-width: 60em; line-height: 1.45;"
        )
        label = escape(self.alt or f"{self.kind}: {self.title}", quote=True)
        title = f'<strong><span aria-hidden="true" style="color: {color};">{MARKS[self.kind]}</span> '
        title += f"{_inline(self.title)}</strong>"
        body = "".join(_paragraph(line) for line in self.lines)
        table = _html_table(self.table) if self.table else ""
        return f'<div role="note" aria-label="{label}" style="{box}">{title}{body}{table}</div>'

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self.html()}


def _rows(table: Sequence[Sequence[Any]]) -> tuple[tuple[str, ...], ...]:
    rows = tuple(tuple(str(cell) for cell in row) for row in table)
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(f"Card.table row {number} has {len(row)} cells but the heading has {len(rows[0])}")
    return rows


def _plain_table(rows: Sequence[Sequence[str]]) -> list[str]:
    flat = [[cell.replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in flat) for i in range(len(flat[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in flat]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=True))


def _paragraph(line: str) -> str:
    if "\n" in line:
        style = "margin: 4px 0; white-space: pre; overflow-x: auto; background: transparent; color: inherit;"
        return f'<pre style="{style}">{escape(line, quote=True)}</pre>'
    return f'<p style="margin: 4px 0;">{_inline(line)}</p>'


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    cell = f"text-align: left; padding: 2px 14px 2px 0; border-bottom: 1px solid {LINE_CSS}; vertical-align: top;"
    head = "".join(f'<th scope="col" style="{cell}">{_inline(text)}</th>' for text in rows[0])
    rest = ("".join(f'<td style="{cell}">{_inline(text)}</td>' for text in row) for row in rows[1:])
    body = "".join(f'<tr style="background: transparent;">{cells}</tr>' for cells in rest)
    style = "border-collapse: collapse; margin: 6px 0; color: inherit; background: transparent;"
    return f'<table style="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
