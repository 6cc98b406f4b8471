"""Times of contestants as dots, a panel for each shape, beside what the machine's ceilings allow."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from labkit.show import style
from labkit.show.picture import Picture, new
from labkit.show.style import INK, LIT, PALETTE

Dot = tuple[float, float, float]
FAINT = "#777777"
FAR = 6  # a panel whose times differ by more than this factor gets a logarithmic axis


def race(
    panels: Mapping[str, Mapping[str, Dot]],
    floors: Mapping[str, float | None],
    title: str,
    *,
    ours: str = "labkit",
    columns: int = 3,
) -> Picture:
    """One panel a shape: a dot for each contestant at its median time, a bar over half of the rounds, and the ceiling.

    Args:
        panels: from a shape to contestants to (median, lower, upper quartile) in ms; who is missing was not measured.
        floors: from a shape to the ms that the ceiling allows, or None.
        title: of the whole figure.
        ours: the contestant that stands out.
        columns: of panels.

    Raises ValueError for no panel, or for times that are not positive.

    >>> race({"a": {"labkit": (2.0, 1.9, 2.1)}}, {"a": 1.5}, "forward").alt
    'forward. a: labkit 2.00 ms; the ceiling allows 1.50 ms.'
    """
    if not panels or not any(panels.values()):
        raise ValueError("race got no times; give at least one shape with a contestant")
    for shape, dots in panels.items():
        if not all(math.isfinite(value) and value > 0 for dot in dots.values() for value in dot):
            raise ValueError(f"race got times of {shape} that are not positive numbers; give milliseconds")
    names = _ranked(panels)
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    with style.use():
        size = (2.2 + 2.9 * columns, 0.8 + rows * (0.85 + 0.29 * len(names)))
        figure, axes = new(columns, rows, size=size)
        for number, (ax, (shape, dots)) in enumerate(zip(axes, panels.items(), strict=False)):
            _panel(ax, shape, dots, floors.get(shape), names, ours, named=number % columns == 0)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        figure.suptitle(textwrap.fill(title, int(11 * size[0])), x=0.01, ha="left", fontsize=12)
    figure.alt = f"{title}. " + " ".join(_words(shape, dots, floors.get(shape)) for shape, dots in panels.items())
    return figure


def _ranked(panels: Mapping[str, Mapping[str, Dot]]) -> list[str]:
    """Contestants, those that are on average the fastest first: by the mean logarithm of time over a panel's best."""
    behind: dict[str, list[float]] = {}
    for dots in panels.values():
        best = min((dot[0] for dot in dots.values()), default=1.0)
        for name, dot in dots.items():
            behind.setdefault(name, []).append(math.log(dot[0] / best))
    return sorted(behind, key=lambda name: sum(behind[name]) / len(behind[name]))


def _panel(
    ax: Axes, shape: str, dots: Mapping[str, Dot], floor: float | None, names: Sequence[str], ours: str, *, named: bool
) -> None:
    for row, name in enumerate(names):
        color = PALETTE[0] if name == ours else INK
        if name not in dots:
            beside = ("axes fraction", "data")
            ax.annotate("not measured", (0.98, row), xycoords=beside, va="center", ha="right", color=FAINT, fontsize=8)
            continue
        median, low, high = dots[name]
        ax.errorbar(median, row, xerr=[[median - low], [high - median]], fmt="D" if name == ours else "o", color=color,
                    markersize=6, capsize=3, linewidth=1.2)  # fmt: skip
        past = ax.annotate(_ms(median), (high, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
        past.set_color(color)
    if floor:
        ax.axvline(floor, color=LIT, linestyle="--", linewidth=1.2)
        ax.annotate(
            f"ceiling {_ms(floor)}", (floor, 1), xycoords=("data", "axes fraction"), xytext=(3, -1),
            textcoords="offset points", va="top", fontsize=8, color=LIT,
        )  # fmt: skip
    _scale(ax, [dot[0] for dot in dots.values()] + ([floor] if floor else []))
    ax.set(title=shape, xlabel="time (ms)", ylim=(len(names) - 0.5, -1.0))
    ax.set_yticks(range(len(names)), names if named else [])
    for label in ax.get_yticklabels():
        if label.get_text() == ours:
            label.set(color=PALETTE[0], fontweight="bold")
    ax.grid(axis="x")
    ax.grid(False, axis="y")


def _scale(ax: Axes, values: Sequence[float]) -> None:
    if not values:
        ax.set_xticks([])
        return
    low, high = min(values), max(values)
    if high <= FAR * low:
        ax.set_xlim(0, 1.25 * high)
        return
    ax.set_xscale("log")
    ax.set_xlim(low / 1.6, high * (high / low) ** 0.2)
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high <= 60 * low else (1.0,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _words(shape: str, dots: Mapping[str, Dot], floor: float | None) -> str:
    told = ", ".join(f"{name} {_ms(dot[0])} ms" for name, dot in sorted(dots.items(), key=lambda each: each[1][0]))
    ceiling = f"; the ceiling allows {_ms(floor)} ms" if floor else ""
    return f"{shape}: {told or 'nothing measured'}{ceiling}."
