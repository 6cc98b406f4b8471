"""What quantising did to a model: bytes before and after, room by room, from storage; and everything that stayed."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.nn.quant.rooms import ROOMS
from labkit.nn.quant.targets import Kept

HEADER = ("room", "tensors", "before", "after", "of before", "now")


@dataclass(frozen=True)
class Change:
    """One tensor: bytes of memory before and after, and the scheme that it is in now (empty: as it was)."""

    name: str
    room: str
    before: int
    after: int
    scheme: str = ""


@dataclass(frozen=True)
class Report:
    """Bytes before and after; shows itself as a table of rooms, in a notebook and in a terminal.

    Args:
        scheme: what was asked for.
        changes: every tensor that was there, buffers too. Memory that several share counts at the first.
        kept: parameters that stayed, and why.
        notes: what else should be known.
    """

    scheme: str
    changes: tuple[Change, ...]
    kept: tuple[Kept, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def before(self) -> int:
        """Bytes of the model before."""
        return sum(change.before for change in self.changes)

    @property
    def after(self) -> int:
        """Bytes of the model now."""
        return sum(change.after for change in self.changes)

    @property
    def rooms(self) -> dict[str, tuple[int, int]]:
        """Bytes before and after of every room that the model has."""
        found: dict[str, tuple[int, int]] = {}
        for room in ROOMS:
            mine = [change for change in self.changes if change.room == room]
            if mine:
                found[room] = sum(change.before for change in mine), sum(change.after for change in mine)
        return found

    @property
    def table(self) -> tuple[tuple[str, ...], ...]:
        """The rows that are shown, the heading first: what `show.Card` takes too."""
        rows = [HEADER]
        for room, (before, after) in self.rooms.items():
            mine = [change for change in self.changes if change.room == room]
            now = ", ".join(sorted({change.scheme for change in mine} - {""})) or "as it was"
            rows.append((room, _count(mine), _size(before), _size(after), _share(after, before), now))
        total = _share(self.after, self.before)
        return (*rows, ("all", _count(self.changes), _size(self.before), _size(self.after), total, ""))

    @property
    def lines(self) -> tuple[str, ...]:
        """What stands below the table: what stayed inside rooms that were packed, and why."""
        packed = {change.room for change in self.changes if change.scheme}
        stayed: dict[str, list[str]] = {}
        for one in self.kept:
            if one.room in packed and one.why != "its room stays":
                stayed.setdefault(one.why, []).append(one.name)
        told = (f"stayed, {why}: {_some(names)}" for why, names in stayed.items())
        return (*told, *self.notes)

    def __repr__(self) -> str:
        widths = [max(len(row[i]) for row in self.table) for i in range(len(HEADER))]
        rows = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in self.table)
        return "\n".join([f"quantised to {self.scheme}", *(row.rstrip() for row in rows), *self.lines])

    def _repr_html_(self) -> str:
        def row(tag: str, cells: tuple[str, ...]) -> str:
            inside = (f'<{tag} style="text-align:left">{html.escape(cell)}</{tag}>' for cell in cells)
            return f"<tr>{''.join(inside)}</tr>"

        head, *rows = self.table
        body = "".join(row("td", cells) for cells in rows)
        below = "".join(f"<p>{html.escape(line)}</p>" for line in self.lines)
        return (
            f"<table><caption>Quantised to {html.escape(self.scheme)}</caption>{row('th', head)}{body}</table>{below}"
        )


def _count(changes: Sequence[Change]) -> str:
    return str(sum(change.before > 0 for change in changes))


def _share(after: int, before: int) -> str:
    return f"{after / before:.1%}" if before else "–"


def _size(nbytes: int) -> str:
    """Bytes with a unit of thousands.

    >>> _size(999), _size(34_560), _size(12_345_678)
    ('999 B', '34.6 kB', '12.3 MB')
    """
    value, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{nbytes} B" if unit == "B" else f"{value:.1f} {unit}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
