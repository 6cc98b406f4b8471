"""The flow as a static picture: bands from groups to experts, and each expert's share of the choices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib import colormaps
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from labkit.show import style
from labkit.show.picture import Picture
from labkit.show.style import GREY, INK, LIT, PALETTE, SEQUENTIAL
from labkit.show.widgets.glyphs import drawable

if TYPE_CHECKING:
    from labkit.show.widgets.flow import Flow

LEFT, RIGHT = 0.02, 0.98  # where the bands begin and end, in the square that `flow_layout.place` fills


def draw(w: Flow) -> Picture:
    """The bands with what is dropped in hatched grey, beside the loads, 1/E and the capacity; `alt` says the same."""
    E, G = len(w.view["right"]), len(w.group_names)
    height = min(7.0, max(3.2, 0.3 * G + 1, 0.085 * E + 1))
    with style.use():
        figure = Picture(figsize=(9.5, height))
        bands, load = figure.subplots(1, 2, width_ratios=(2.2, 1))
        _bands(bands, w)
        _loads(load, w)
    detail = f" {w.detail}" if w.detail else ""
    figure.alt = f"Flow from tokens in {G} group{'' if G == 1 else 's'} to {E} experts. {w.view['note']}{detail}"
    return figure


def _color(w: Flow, e: int) -> Any:
    right = w.view["right"]
    if len(PALETTE) >= len(right):
        return PALETTE[e]
    most = max(n for _, n, _ in right)
    return LIT if e == w.path[1] else colormaps[SEQUENTIAL](right[e][1] / most)


def _bands(ax: Any, w: Flow) -> None:
    view, unit = w.view, w.view["unit"]
    for g, e, n, k, left, right, lost in sorted(view["paths"], key=lambda path: tuple(path[:2]) == w.path):
        strong = 0.9 if (g, e) == w.path else 0.45 if w.path[0] < 0 else 0.18
        if k:
            ax.add_patch(PathPatch(_band(left, right, k * unit), facecolor=_color(w, e), alpha=strong, linewidth=0))
        if n > k:
            path = _band(left + k * unit, lost, (n - k) * unit)
            ax.add_patch(PathPatch(path, facecolor="#E4E4E4", edgecolor=GREY, hatch="////", linewidth=0))
    for g, (top, n, _) in enumerate(view["left"]):
        ax.add_patch(Rectangle((0, top), LEFT, n * unit, color="#777777", linewidth=0))
        name = w.group_names[g] if len(w.group_names[g]) <= 20 else w.group_names[g][:19] + "…"
        ax.text(-0.02, top + n * unit / 2, drawable(name, "DejaVu Sans"), ha="right", va="center", parse_math=False)
    for e, (top, n, k) in enumerate(view["right"]):
        ax.add_patch(Rectangle((RIGHT, top), 1 - RIGHT, k * unit, color=_color(w, e), linewidth=0))
        ax.add_patch(Rectangle((RIGHT, top + k * unit), 1 - RIGHT, (n - k) * unit, color=GREY, linewidth=0))
    ax.set(xlim=(-0.3, 1.0), ylim=(1.0, 0), xticks=[], yticks=[], title=f"Tokens → experts, {w.names[w.layer]}")
    ax.set_xlabel(
        "colour: " + ("the expert" if len(PALETTE) >= len(view["right"]) else "the expert's load, dark is low")
    )
    ax.spines[:].set_visible(False)
    ax.grid(False)


def _band(left: float, right: float, height: float) -> Path:
    move, line, curve = Path.MOVETO, Path.LINETO, Path.CURVE4
    return Path(
        [
            (LEFT, left), (0.5, left), (0.5, right), (RIGHT, right), (RIGHT, right + height),
            (0.5, right + height), (0.5, left + height), (LEFT, left + height), (LEFT, left),
        ],
        [move, curve, curve, curve, line, curve, curve, curve, line],
    )  # fmt: skip


def _loads(ax: Any, w: Flow) -> None:
    view, unit = w.view, w.view["unit"]
    total, E = view["tokens"] * view["top_k"], len(view["right"])
    size = 9 if E <= 16 else 7
    apart = 1.2 * size / 72 / (ax.figure.get_figheight() - 1)  # a line of text, as a part of the axis' height
    ticks, last = [], -1.0
    for e, (top, n, k) in enumerate(view["right"]):
        middle, height = top + n * unit / 2, max(0.004, min(0.06, 0.8 * n * unit))
        ax.barh(middle, 100 * k / total, height=height, color=[_color(w, e)])
        ax.barh(
            middle, 100 * (n - k) / total, left=100 * k / total, height=height, color="#E4E4E4", hatch="////",
            edgecolor=GREY, linewidth=0,
        )  # fmt: skip
        if middle - last > apart:
            ticks.append((middle, str(e)))
            last = middle
    ax.axvline(100 / E, color=INK, linestyle="--", linewidth=1.2, label=f"even, 1/E = {100 / E:.3g} %")
    most = max(n for _, n, _ in view["right"]) / total
    if any(n > k for _, n, k in view["right"]):
        ax.add_patch(Rectangle((0, 0), 0, 0, facecolor="#E4E4E4", edgecolor=GREY, hatch="////", label="dropped"))
    if view["capacity"] is not None and view["capacity"] / total <= 1.3 * max(most, 1 / E):
        share = 100 * view["capacity"] / total
        ax.axvline(share, color=LIT, linewidth=1.6, label=f"capacity, {share:.3g} %")
    ax.set_yticks([y for y, _ in ticks], [name for _, name in ticks], fontsize=size)
    ax.set(ylim=(1.0, 0), xlabel="share of all choices (%)", ylabel="expert")
    ax.grid(True, axis="x")
    ax.grid(False, axis="y")
    ax.legend(loc="lower right", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.2)
