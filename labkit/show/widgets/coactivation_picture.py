"""The static picture of co-activation: the map of pairs, and the domains of the picked pair's tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from labkit.show import style
from labkit.show.picture import Picture
from labkit.show.style import GREY, INK, LIT


def draw(
    view: dict[str, Any], colors: Sequence[str], order: Sequence[int], pair: Sequence[int], shares: Sequence[dict],
    title: str,
) -> Picture:  # fmt: skip
    """The map, with the levels and colours that the browser shows; `view` and `shares` are those of CoactivationMap."""
    levels = np.array([[np.nan if c == "." else int(c, 36) for c in row] for row in view["levels"]], dtype=float)
    with style.use():
        figure = Picture(figsize=(9.2, 4.8) if shares else (6.2, 4.8))
        left, *right = figure.subplots(
            1, 2 if shares else 1, squeeze=False, width_ratios=[1.6, 1][: 2 if shares else 1]
        )[0]
        image = left.imshow(
            levels[np.ix_(order, order)], cmap=ListedColormap(list(colors)), vmin=0, vmax=len(colors) - 1
        )
        left.set_facecolor("#DDDDDD")
        bar = figure.colorbar(image, ax=left, shrink=0.8, ticks=[m[0] * (len(colors) - 1) for m in view["marks"]])
        bar.ax.set_yticklabels([text for _, text, _ in view["marks"]])
        bar.set_label("lift (no unit, log scale)" if view["title"].startswith("lift") else "share of all tokens")
        row, column = (order.index(e) for e in pair)
        for x, y in {(column, row), (row, column)}:
            for ink, width in (("white", 4), (INK, 2)):
                left.plot(x, y, "s", color="none", markeredgecolor=ink, markersize=9, markeredgewidth=width)
        marked = range(0, len(order), math.ceil(len(order) / 12))
        left.set_xticks(marked, [order[i] for i in marked])
        left.set_yticks(marked, [order[i] for i in marked])
        left.set(title=title, xlabel="expert", ylabel="expert")
        left.grid(False)
        if right:
            _domains(right[0], pair, shares)
    return figure


def _domains(ax: Axes, pair: Sequence[int], shares: Sequence[dict]) -> None:
    rows = np.arange(len(shares))
    ax.barh(rows - 0.2, [100 * s["share"] for s in shares], height=0.38, color=LIT, label="this pair's tokens")
    ax.barh(rows + 0.2, [100 * s["baseline"] for s in shares], height=0.38, color=GREY, label="all tokens")
    ax.set_yticks(rows, [s["domain"] for s in shares])
    ax.set(
        xlabel="share of tokens (%)", title=f"Domains, {' and '.join(map(str, pair))}", ylim=(len(shares) - 0.4, -0.6)
    )
    ax.grid(axis="x")
    ax.grid(False, axis="y")
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize=9)
