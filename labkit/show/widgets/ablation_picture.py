"""The static picture of the ablation view: what each removal costs, each expert's load, and who takes over."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from labkit.show import style
from labkit.show.picture import Picture, new


def draw(view: dict[str, Any], expert: int, domain: str, layer: str) -> Picture:
    """Three panels over the same experts, in the order of the view; without any removal the first is left out."""
    order, E = view["order"], len(view["order"])
    removed = any(effect is not None for effect in view["effects"])
    with style.use():
        figure, axes = new(1, 3 if removed else 2, size=(9, 6.0 if removed else 4.2))
        if removed:
            _effects(axes[0], view, expert, domain)
        load, heirs = axes[-2:]
        colors = [style.expert_color(e, E, expert) for e in order]
        load.bar(range(E), [100 * view["load"][e] for e in order], color=colors)
        load.axhline(100 / E, color=style.INK, linestyle="--", linewidth=1.1, label=f"even load, {100 / E:.3g} %")
        load.set(ylabel="load (%)")
        load.legend(loc="lower right", bbox_to_anchor=(1, 1))
        _heirs(heirs, view, colors)
        heirs.set(title=_title(view, expert), ylabel="its tokens (%)", xlabel="expert")
        axes[0].set_title(
            layer
            + (
                f", change of the loss of {domain} without the expert, and its 95 % interval"
                if removed
                else ", load of each expert"
            )
        )
        step = max(1, -(-E // 16))
        for ax in axes:
            ax.set(xlim=(-0.6, E - 0.4))
            ax.set_xticks(range(0, E, step), [str(e) for e in order[::step]])
    return figure


def _title(view: dict[str, Any], expert: int) -> str:
    return f"Who takes over from expert {expert}" if view["traced"] else f"Next best after expert {expert}, by logits"


def _effects(ax: Axes, view: dict[str, Any], expert: int, domain: str) -> None:
    E = len(view["order"])
    for x, e in enumerate(view["order"]):
        if (triple := view["effects"][e]) is None:
            continue
        change, low, high = triple
        color = style.expert_color(e, E, expert)
        if low is not None and high is not None:
            ax.plot([x, x], [low, high], color=color, linewidth=1.6)
        ax.plot(x, change, "o", color=color, markersize=(6 if E <= 16 else 3) + 3 * (e == expert))
        if e == expert:
            ax.plot(x, change, "o", color=style.INK, markersize=13, markerfacecolor="none", markeredgewidth=1.2)
    ax.axhline(0, color=style.INK, linewidth=1.1)
    low, high = view["range"]
    pad = 0.08 * ((high - low) or 1.0)
    ax.set(ylabel="change (nats)", ylim=(low - pad, high + pad))


def _heirs(ax: Axes, view: dict[str, Any], colors: list[str]) -> None:
    order = view["order"]
    ax.bar(range(len(order)), [100 * view["heirs"][e] for e in order], color=colors)
    marks = [100 * view["by_load"][e] for e in order]
    ax.plot(range(len(order)), marks, "_", color=style.INK, markersize=8, label="in proportion to load")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1))
