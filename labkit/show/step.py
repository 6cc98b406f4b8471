"""The figure of a step on a cluster: what one GPU's memory holds, and where the step's time goes."""

from __future__ import annotations

from collections.abc import Mapping

from labkit.show import style
from labkit.show.memory import GB, part_colors
from labkit.show.picture import Picture, new
from labkit.show.style import INK, PALETTE

PART_COLORS = {
    "products": PALETTE[0],
    "experts": PALETTE[4],
    "attention": PALETTE[2],
    "elementwise": PALETTE[7],
    "launch": PALETTE[6],
    "tensor": PALETTE[1],
    "all_to_all": PALETTE[5],
    "bubble": "#FFFFFF",
    "data": PALETTE[3],
    "optimizer": PALETTE[6],
}
SAID = {"all_to_all": "all-to-all (waited for)", "tensor": "tensor parallel", "data": "data parallel"}


def step_picture(seconds: Mapping[str, float], memory: Mapping[str, float], limit: float, usable: float) -> Picture:
    """Two bars: milliseconds of a step by part, and gigabytes of one GPU by part with a line where the memory ends.

    Args:
        seconds: by part, the names of `PART_COLORS`; memory: bytes by part, the names of `core.cluster_memory`.
        limit, usable: bytes of the GPU, and what of it can be used.

    Raises ValueError for an unknown part of the time, or for negative values.
    """
    unknown = [part for part in seconds if part not in PART_COLORS]
    if unknown or min(*seconds.values(), *memory.values()) < 0:
        raise ValueError(f"step_picture got {unknown or 'negative values'}; the parts are {', '.join(PART_COLORS)}")
    with style.use():
        figure, (time, room) = new(rows=2, size=(8, 3.9))
        _bar(time, {SAID.get(k, k): v * 1e3 for k, v in seconds.items() if v}, _time_colors(seconds))
        time.set(xlabel="time of a step on one GPU (ms)", xlim=(0, 1.02e3 * sum(seconds.values())))
        held = {name: value / GB for name, value in memory.items() if value}
        _bar(room, held, part_colors(held))
        for value, line, name in ((limit, "--", "capacity"), (usable, ":", "usable")):
            room.axvline(value / GB, color=INK, linestyle=line, linewidth=1.5, label=f"{name}: {value / GB:,.0f} GB")
        room.set(xlabel="memory of one GPU (GB, 10⁹ bytes)", xlim=(0, 1.05 * max(limit / GB, sum(held.values()))))
        for ax in (time, room):
            ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.15), fontsize=9)
    figure.alt = _said(seconds, held, limit, usable)
    return figure


def _time_colors(seconds: Mapping[str, float]) -> dict[str, str]:
    return {SAID.get(part, part): PART_COLORS[part] for part in seconds}


def _bar(ax, parts: Mapping[str, float], colors: Mapping[str, str]) -> None:
    left = 0.0
    for name, width in parts.items():
        hatch = {"hatch": "////", "edgecolor": "#888888"} if colors[name] == "#FFFFFF" else {}
        ax.barh([0], [width], left=left, color=colors[name], height=0.6, label=name, linewidth=0, **hatch)
        left += width
    ax.set_yticks([])
    ax.grid(axis="x")
    ax.grid(False, axis="y")


def _said(seconds: Mapping[str, float], held: Mapping[str, float], limit: float, usable: float) -> str:
    total = sum(seconds.values())
    parts = ", ".join(f"{SAID.get(k, k)} {v * 1e3:,.1f} ms ({v / total:.0%})" for k, v in seconds.items() if v)
    memory = ", ".join(f"{name} {value:,.1f}" for name, value in held.items())
    return (
        f"A step on one GPU: {total * 1e3:,.1f} ms: {parts}. Its memory: {sum(held.values()):,.1f} GB ({memory}) of "
        f"{limit / GB:,.0f} GB, {usable / GB:,.0f} usable."
    )
