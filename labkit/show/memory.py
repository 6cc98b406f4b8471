"""The figure of memory: what a plan keeps, part by part, and where the memory ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes

from labkit.show import style
from labkit.show.picture import Picture, new
from labkit.show.style import INK, PALETTE

GB = 10**9
PART_COLORS = {
    "weights": PALETTE[0],
    "master copy": PALETTE[4],
    "gradients": PALETTE[1],
    "optimizer": PALETTE[2],
    "activations": PALETTE[3],
    "KV cache": PALETTE[5],
}


def part_colors(parts: Iterable[str]) -> dict[str, str]:
    """A colour for each part of memory: its own if it is in `PART_COLORS`, else one that none of the others has.

    Raises ValueError for no part at all, or for more than the palette has colours.

    >>> part_colors(["KV cache", "scales"])
    {'KV cache': '#D55E00', 'scales': '#0072B2'}
    """
    names = list(dict.fromkeys(parts))
    if not 1 <= len(names) <= len(PALETTE):
        raise ValueError(f"memory_stack draws 1 to {len(PALETTE)} kinds of memory; got {len(names)}")
    own = {name: PART_COLORS[name] for name in names if name in PART_COLORS}
    free = iter([color for color in PALETTE if color not in own.values()])
    return {name: own[name] if name in own else next(free) for name in names}


def memory_stack(
    breakdowns: Mapping[str, Mapping[str, float]],
    limit: float | None = None,
    limit_name: str = "capacity",
    usable: float | None = None,
) -> Picture:
    """Stacked bars of memory in GB (10⁹ bytes), one bar a plan, with a line where the memory ends.

    Totals stand beside the names, where no line crosses them.

    Args:
        breakdowns: from a plan's name to its parts, name to bytes; eight parts at most. A part has one colour in all
            bars, and those of `PART_COLORS` in all figures.
        limit: bytes there are.
        limit_name: what the line is called.
        usable: bytes of the limit that can be used, as a second line.

    Raises ValueError for negative bytes, too many parts, or a usable part without a limit or beyond it.
    """
    colors = part_colors(part for plan in breakdowns.values() for part in plan)
    _check(breakdowns, limit, usable)
    with style.use():
        figure, (ax,) = new(size=(8, 1.6 + 0.5 * len(breakdowns)))
        left = np.zeros(len(breakdowns))
        for part, color in colors.items():
            width = np.array([plan.get(part, 0) / GB for plan in breakdowns.values()])
            ax.barh(list(breakdowns), width, left=left, color=color, height=0.6, label=part)
            left += width
        names = [f"{name}   {total:,.1f} GB" for name, total in zip(breakdowns, left, strict=True)]
        ax.set_yticks(range(len(names)), names)
        lines = _lines(ax, limit, limit_name, usable)
        ax.set(xlabel="memory (GB, 10⁹ bytes)", xlim=(0, 1.05 * max(*left, (limit or 0) / GB)))
        ax.invert_yaxis()
        ax.grid(axis="x")
        ax.grid(False, axis="y")
        figure.legend(loc="outside lower center", ncols=4)
    figure.alt = "Memory. " + " ".join(
        f"{name}: {total:,.1f} GB ({', '.join(f'{p} {b / GB:,.1f}' for p, b in plan.items())})."
        for (name, plan), total in zip(breakdowns.items(), left, strict=True)
    )
    figure.alt += f" Lines: {', '.join(lines)}." if lines else ""
    return figure


def _check(breakdowns: Mapping[str, Mapping[str, float]], limit: float | None, usable: float | None) -> None:
    if any(b < 0 for plan in breakdowns.values() for b in plan.values()):
        raise ValueError("memory_stack got negative bytes")
    if limit is not None and not limit > 0:
        raise ValueError(f"memory_stack got limit {limit}; give bytes above zero")
    if usable is not None and (limit is None or not 0 < usable <= limit):
        raise ValueError(f"memory_stack got usable {usable} of limit {limit}; give a limit, and a part of it")


def _lines(ax: Axes, limit: float | None, limit_name: str, usable: float | None) -> list[str]:
    said = []
    if limit is not None:
        said.append(f"{limit_name}: {limit / GB:,.0f} GB")
        ax.axvline(limit / GB, color=INK, linestyle="--", linewidth=1.5, label=said[-1])
    if usable is not None:
        said.append(f"usable: {usable / GB:,.1f} GB")
        ax.axvline(usable / GB, color=INK, linestyle=":", linewidth=1.5, label=said[-1])
    return said
