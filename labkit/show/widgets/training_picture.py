"""The static picture of balance over training: bars of load at one step, and two curves over the steps.

A colour names a run, in the bars and in the curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from labkit.show import style
from labkit.show.picture import Picture
from labkit.show.style import INK, LIT
from labkit.show.widgets.training_runs import Run

LINES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (1, 3)))


def draw(runs: Sequence[Run], colors: Sequence[str], step: int, layer: int, where: str, view: dict) -> Picture:
    """The runs at this step and over all steps, on the scales that `view` gives (`BalanceOverTraining.view`)."""
    columns = len(runs) if len(runs) <= 3 else math.ceil(len(runs) / 2)
    rows = math.ceil(len(runs) / columns)
    with style.use():
        figure = Picture(figsize=(max(7.0, 2.9 * columns), 2.3 * rows + 2.9))
        above, below = figure.subfigures(2, 1, height_ratios=[2.3 * rows + 0.3, 2.6])
        panels = above.subplots(rows, columns, squeeze=False, sharey=True).reshape(-1)
        for ax, run, color in zip(panels, runs, colors, strict=False):
            _bars(ax, run, color, step, layer, view["load_top"])
        for ax in panels[len(runs) :]:
            ax.set_visible(False)
        for row in range(rows):
            panels[row * columns].set_ylabel("share of choices (%)")
        above.suptitle(f"Load at step {step:,}{where}", x=0.01, ha="left", fontsize=12)
        vio, ent = below.subplots(1, 2)
        for i, (run, color) in enumerate(zip(runs, colors, strict=True)):
            _, violation_S, entropy_S = run.of_layer(layer)
            mark = {"color": color, "linestyle": LINES[i], "marker": "o" if len(run.steps) == 1 else None}
            vio.plot(run.steps, violation_S, label=run.name, **mark)
            ent.plot(run.steps, entropy_S, **mark)
        _curve(vio, step, "MaxVio (no unit)", 0, "0 is even", view)
        _curve(ent, step, "normalised entropy", 1, "1 is even", view)
        vio.set_ylim(-0.03 * (view["violation_top"] or 1), 1.08 * (view["violation_top"] or 1))
        below.legend(*vio.get_legend_handles_labels(), loc="outside upper left", ncols=min(6, len(runs)))
    return figure


def _bars(ax: Axes, run: Run, color: str, step: int, layer: int, top: float) -> None:
    load_E = 100 * run.of_layer(layer)[0][run.at(step)].numpy()
    E = len(load_E)
    busiest = int(load_E.argmax())
    ax.bar(range(E), load_E, color=[to_rgba(color, 1 if e == busiest else 0.55) for e in range(E)], width=0.8)
    ax.axhline(100 / E, color=INK, linestyle="--", linewidth=1.2, label=f"1/E = {100 / E:.3g} %")
    ax.set(ylim=(0, 115 * max(top, 1 / E)), xlabel="rank of the expert in its layer" if layer < 0 else "expert")
    ax.set_title(run.name, color=color, fontweight="bold", fontsize=11)
    marked = range(0, E, math.ceil(E / 8))
    ax.set_xticks(marked, [e + 1 if layer < 0 else e for e in marked])
    ax.legend(loc="upper right", fontsize=9, borderaxespad=0)


def _curve(ax: Axes, step: int, label: str, even: float, words: str, view: Any) -> None:
    ax.axhline(even, color=INK, linestyle="--", linewidth=1)
    ax.axvline(step, color=LIT, linewidth=1.5)
    ax.set(xlabel="training step", ylabel=label, title=words)
    ax.title.set(fontsize=10, color=INK)
    if even == 1:
        low = min(view["entropy_low"], 0.99)
        ax.set_ylim(low - 0.05 * (1 - low), 1 + 0.05 * (1 - low))
