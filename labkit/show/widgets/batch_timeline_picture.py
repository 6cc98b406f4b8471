"""The batch timeline as a static picture: all steps small, the sequences in sight, and the pool at the step in hand."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from labkit.core.timeline import CACHED, ENDS, FINISHED, IDLE, PADDING, PREEMPTED, PREFILL, WAITING
from labkit.show import style
from labkit.show.picture import Picture
from labkit.show.style import GREY, INK, LIT
from labkit.show.widgets.batch_views import HELD, KEPT, RESERVED

if TYPE_CHECKING:
    from labkit.show.widgets.batch_timeline import BatchTimeline

HATCHES = {PREFILL: "/////", PADDING: "....", "again": "xxxxx"}
DARKER = "#8E8E8E"  # the grey of every other sequence, so that one ends visibly where the next begins
ACROSS = 64  # cells in a line of the pool
MARKS = {PREEMPTED: "v", CACHED: "d", FINISHED: "s"}  # every other end: a cross


def draw(w: BatchTimeline) -> Picture:
    """Tokens of every step, what the sequences in sight do, and the pool; `alt` says the same."""
    cells = w.pool["cells"]
    lines = -(-cells // ACROSS)
    heights = [1.1, 0.6 + 0.2 * len(w.rows["rows"]), *([0.35 + 0.14 * lines] if cells else [])]
    with style.use():
        figure = Picture(figsize=(9.5, 1.4 + sum(heights)))
        axes = list(figure.subplots(len(heights), 1, gridspec_kw={"height_ratios": heights}))
        _whole(axes[0], w)
        _rows(axes[1], w)
        if cells:
            _pool(axes[2], w)
    first, end = w.rows["first"], w.rows["end"]
    others = [f"{name}: {steps:,} steps, {100 * wasted:.3g} % wasted" for name, steps, _, _, wasted in w.ways]
    beside = f"Ways compared: {'; '.join(others)}." if len(others) > 1 else ""
    said = f"Batch timeline, steps {first} to {end - 1} of {w.num_steps:,}. {w.note} {w.says}"
    figure.alt = " ".join(part for part in (said, w.detail, beside, w.sampled) if part)
    return figure


def _whole(ax: Axes, w: BatchTimeline) -> None:
    edges, under = w.whole["edges"], [0.0] * len(w.whole["decode"])
    looks = {"decode": {"color": "#C9C9C9"}, "prefill": {"color": "#555555"}}
    looks["wasted"] = {"facecolor": "white", "edgecolor": "#777777", "hatch": "/////", "linewidth": 0}
    for name, look in looks.items():
        top = [a + b for a, b in zip(under, w.whole[name], strict=True)]
        ax.stairs(top, edges, baseline=under, fill=True, label=_NAMES[name], **look)
        under = top
    ax.axvline(w.step + 0.5, color=LIT, linewidth=1.6)
    ax.axvspan(w.rows["first"], w.rows["end"], facecolor="none", edgecolor=INK, linewidth=0.8)
    for low, lost in zip(edges, w.whole["preempted"], strict=False):
        if lost:
            ax.plot(low, 1.05, "v", color=INK, markersize=5, clip_on=False, transform=ax.get_xaxis_transform())
    ax.set(xlim=(0, edges[-1]), ylim=(0, 1.05 * max(1, *under)), ylabel="tokens")
    ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if w.whole["held"]:
        share = ax.twinx()
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        share.plot(middles, w.whole["held"], color=INK, linestyle="--", linewidth=1.2)
        share.set(ylim=(0, 1.05), yticks=[0, 1], yticklabels=["0", "100 %"])
        ax.plot([], [], color=INK, linestyle="--", linewidth=1.2, label="blocks held")
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.08), ncols=4, fontsize=8, borderaxespad=0.2)
    ax.set_title("Tokens in a step", fontsize=11, pad=14)


_NAMES = {"decode": "decode", "prefill": "prompts", "wasted": "wasted"}


def _rows(ax: Axes, w: BatchTimeline) -> None:
    rows, first = w.rows["rows"], w.rows["first"]
    for y, row in enumerate(rows):
        color = w.color(row["row"])
        for kind, low, high, _, _, wasted in row["runs"]:
            _bar(ax, kind, low, high, y, color, wasted)
        for step, what, _ in row["marks"]:
            if what in MARKS or what in ENDS:
                at = step + (what in ENDS)
                ax.plot(
                    at,
                    y,
                    MARKS.get(what, "X"),
                    color=INK,
                    markersize=6,
                    markeredgecolor="white",
                    markeredgewidth=0.6,
                    zorder=4,
                )
    ax.axvspan(w.step, w.step + 1, facecolor="none", edgecolor=LIT, linewidth=1.4, zorder=5)
    ax.set(
        xlim=(first, min(first + w.shown, w.num_steps)), ylim=(len(rows) - 0.4, -0.6), xlabel="step", ylabel="sequence"
    )
    names = [row["id"] if len(row["id"]) <= 9 else row["id"][:8] + "…" for row in rows]
    ax.set_yticks(range(len(rows)), names, fontsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.grid(False)
    grey = {"facecolor": GREY, "edgecolor": "white", "linewidth": 0}
    handles = [
        Patch(**grey, hatch=HATCHES[PREFILL], label="prompt"), Patch(**grey, label="decode"),
        Line2D([], [], color=INK, linewidth=1, label="waits"),
        Patch(facecolor="white", edgecolor="#777777", hatch=HATCHES[PADDING], label="padding"),
        Patch(facecolor=GREY, edgecolor=INK, linewidth=0, hatch=HATCHES["again"], label="again"),
        *(Line2D([], [], linestyle="", marker=m, color=INK, label=n) for m, n in _SIGNS),
    ]  # fmt: skip
    ax.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.01), ncols=8, fontsize=8, columnspacing=1)


_SIGNS = (("d", "from cache"), ("v", "preempted"), ("s", "ends"))


def _bar(ax: Axes, kind: str, low: int, high: int, y: int, color: str, wasted: int) -> None:
    if kind == WAITING:
        ax.hlines(y, low, high, INK, linewidth=0.8, alpha=0.6)
        return
    look = {"facecolor": color, "edgecolor": "white", "linewidth": 0}
    if kind == IDLE:
        look = {"facecolor": "none", "edgecolor": color, "linewidth": 1}
    elif kind == PADDING:
        look = {"facecolor": "white", "edgecolor": "#777777", "linewidth": 0.4, "hatch": HATCHES[PADDING]}
    elif wasted:
        look |= {"edgecolor": INK, "hatch": HATCHES["again"]}
    elif kind == PREFILL:
        look |= {"hatch": HATCHES[PREFILL]}
    ax.barh(y, high - low, 0.86 if kind == PREFILL else 0.6, left=low, **look)


def _pool(ax: Axes, w: BatchTimeline) -> None:
    """One square a cell: full for held, pale for kept, an outline for reserved, a dot where it is shared."""
    cells, per_cell = w.pool["cells"], w.pool["per_cell"]
    across = min(ACROSS, cells)
    found = {segment[0]: segment for segment in w.pool["segments"] if segment[1] <= w.step < segment[2]}
    squares, dots = [], []
    for cell in range(cells):
        x, y = cell % across, cell // across
        squares.append(
            Rectangle((x - 0.43, y - 0.43), 0.86, 0.86, facecolor="white", edgecolor="#CCCCCC", linewidth=0.5)
        )
        if cell not in found:
            continue
        _, _, _, state, row, holders, held = found[cell]
        high, color = 0.86 * held / per_cell, w.color(row)
        color = DARKER if color == GREY and row % 2 else color
        edge = {"edgecolor": color, "linewidth": 1} if state == RESERVED else {"linewidth": 0}
        face = to_rgba(color, {KEPT: 0.3, RESERVED: 0.15, HELD: 1.0}[state])
        squares.append(Rectangle((x - 0.43, y + 0.43 - high), 0.86, high, facecolor=face, **edge))
        if holders > 1:
            dots.append((x, y))
    ax.add_collection(PatchCollection(squares, match_original=True))
    if dots:
        ax.plot(*zip(*dots, strict=True), "D", color=INK, markersize=2.5)
    ax.set(xlim=(-0.6, ACROSS - 0.4), ylim=(-(-cells // across) - 0.4, -0.6), aspect="equal", anchor="W")
    ax.axis("off")
    unit = "a square is a block" if per_cell == 1 else f"a square is {per_cell} blocks"
    ax.set_title(f"Block pool at step {w.step:,}: {unit}; a dot: held by more than one; pale: kept", fontsize=10)
