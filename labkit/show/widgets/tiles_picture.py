"""The tiles as a static picture: each expert's rows in boxes with their padding, and three curves below."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from labkit.core.tiling import BLOCKS_M, Tiling
from labkit.show import style
from labkit.show.picture import Picture
from labkit.show.style import INK, LIT, PALETTE, expert_colors

if TYPE_CHECKING:
    from labkit.show.widgets.tiles import Tiles

CLOSEST = 0.02  # of the height of the drawing, between two borders
MANY = 128  # more experts than this leave no room for hatching


def draw(w: Tiles) -> Picture:
    """Rows, tiles and padding of each expert; waste, waves and reading for every height; `alt` says the same."""
    t, every = w.tiling, list(w.tilings.values())
    waste, read = [100 * x.waste for x in every], [1000 / x.intensity for x in every]
    busiest, wanted = [100 * x.busiest_waste for x in every], [1000 * x.read_per_flop for x in every]
    with style.use():
        figure = Picture(figsize=(9.5, 5.4))
        axes = figure.subplot_mosaic([["rows"] * 3, ["waste", "waves", "read"]], height_ratios=(1.25, 1))
        _rows(axes["rows"], t, w.expert)
        _curves(axes["waste"], t, "rows that are padding (%)", {"in tiles": waste, "to the busiest": busiest})
        _curves(axes["waves"], t, f"waves of {t.multiprocessors} programs", {"waves": [x.waves for x in every]})
        lines = {"of a tile": read} | ({"per wanted FLOP": wanted} if t.rows else {})
        _curves(axes["read"], t, "bytes read per 1,000 FLOP", lines)
    E = len(t.rows_E)
    figure.alt = (
        f"Tiles of a grouped product with {E} expert{'' if E == 1 else 's'}. {w.note} {w.detail} Waves of "
        f"{t.multiprocessors} programs: {t.waves:,}, the last {100 * t.last_wave:.3g} % full. Padding by rows of a "
        f"tile, in %: {_series(waste)}. Bytes read per 1,000 FLOP: {_series(read)}."
    )
    return figure


def _series(values: list[float]) -> str:
    """A curve in words.

    >>> _series([1.0, 2.0])
    '8: 1, 16: 2'
    """
    return ", ".join(f"{m}: {value:.3g}" for m, value in zip(BLOCKS_M, values, strict=False))


def _rows(ax: Axes, t: Tiling, expert: int) -> None:
    E, top = len(t.rows_E), max(1, max(t.tiles_E) * t.block_m)
    wide, many = (1.0, True) if E > MANY else (0.85, False)
    look = {"facecolor": PALETTE[0]} if many else {"facecolor": "white", "edgecolor": "#777777", "hatch": "/////"}
    ax.bar(range(E), t.rows_E, width=wide, color=expert_colors(E, expert), zorder=2)
    ax.bar(range(E), t.padding_E, bottom=t.rows_E, width=wide, linewidth=0.4, zorder=2, label="padding", **look)
    if t.block_m >= CLOSEST * top and not many:
        edges = [(e, j * t.block_m) for e, tiles in enumerate(t.tiles_E) for j in range(1, tiles)]
        left, right = [e - wide / 2 for e, _ in edges], [e + wide / 2 for e, _ in edges]
        ax.hlines([y for _, y in edges], left, right, "white", linewidth=1.5, zorder=3)
    if t.rows:
        ax.axhline(top, color=INK, linestyle="--", linewidth=1.2, label="every expert padded to the busiest")
    ax.plot(expert, 0, "^", color=LIT, markersize=8, clip_on=False, zorder=4, label=f"expert {expert}")
    ax.set_xticks(range(0, E, math.ceil(E / 24)))
    spare = max(0, 4 - E) / 2
    ax.set(xlim=(-0.6 - spare, E - 0.4 + spare), ylim=(0, 1.06 * top), ylabel="rows", xlabel="expert")
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_title(f"Tiles of {t.block_m} rows")
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, borderaxespad=0.2)


def _curves(ax: Axes, t: Tiling, title: str, lines: dict[str, list[float]]) -> None:
    """The first line is the tiles' own, with the height in hand marked; a second one is what it is compared with."""
    at, (first, *others) = BLOCKS_M.index(t.block_m), lines.items()
    ax.axvline(at, color=LIT, linewidth=1.6)
    ax.plot(first[1], "o-", color=PALETTE[0], linewidth=1.8, markersize=5, label=first[0])
    for name, values in others:
        ax.plot(values, "s--", color=INK, linewidth=1.2, markersize=4, label=name)
    ax.plot(at, first[1][at], "o", color=LIT, markersize=9, zorder=3)
    ax.set_xticks(range(len(BLOCKS_M)), [str(m) for m in BLOCKS_M])
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set(xlabel="rows of a tile", ylim=(0, 1.1 * max(1, *(max(values) for values in lines.values()))))
    ax.set_title(title, fontsize=11)
    if others:
        ax.legend(fontsize=8, loc="best")
