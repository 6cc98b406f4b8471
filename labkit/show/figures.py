"""Static figures: each reads a `Routing` or plain arrays and gives a Picture with alt text and labelled axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch, Rectangle

from labkit.show import style
from labkit.show.memory import memory_stack
from labkit.show.picture import Picture, new, png
from labkit.show.style import INK, PALETTE, SEQUENTIAL, expert_colors

__all__ = [
    "bars_with_spread",
    "cost_curve",
    "decision_regions",
    "load_bars",
    "memory_stack",
    "parameter_blocks",
    "png",
    "prediction_line",
    "region_grid",
    "routing_matrix",
]

GB = 10**9
MARKERS = "os^DvPX*"


def array(values: Any) -> np.ndarray:
    """A numpy array of a tensor (any device, any floating dtype), a list or an array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def load_bars(routing: Any, title: str = "Load of each expert") -> Picture:
    """Each expert's share of all choices, in per cent, beside the even share 1/E.

    Args:
        routing: a Routing record with at least one token.
    """
    counts = array(routing.tokens_per_expert_E).astype(float)
    _need(counts.sum() > 0, "load_bars got a record without tokens; give one with at least one")
    E, share = len(counts), 100 * counts / counts.sum()
    with style.use():
        figure, (ax,) = new()
        colors = expert_colors(E) if len(PALETTE) >= E else _by_value(share)
        ax.bar(range(E), share, color=colors, width=0.8)
        ax.axhline(100 / E, color=INK, linestyle="--", linewidth=1.2, label=f"even load, 1/E = {100 / E:.3g} %")
        ax.set(title=title, xlabel="expert", ylabel="share of choices (%)", ylim=(0, max(share.max(), 100 / E) * 1.2))
        ax.set_xticks(range(0, E, math.ceil(E / 16)))
        ax.legend(loc="upper right")
    figure.alt = (
        f"{title}: {E} experts. The busiest, expert {share.argmax()}, gets {share.max():.1f} % of the choices; the "
        f"idlest, expert {share.argmin()}, {share.min():.1f} %; an even load would be {100 / E:.1f} %."
    )
    return figure


def _by_value(values: np.ndarray) -> Any:
    from matplotlib import colormaps

    return colormaps[SEQUENTIAL](values / (values.max() or 1))


def region_grid(xy: Any, side: int = 80) -> np.ndarray:
    """The points [side², 2] at which `decision_regions` asks who owns what: the box of the data and a margin."""
    xy = array(xy)
    _need(xy.ndim == 2 and xy.shape[1] == 2, f"region_grid got points of shape {xy.shape}; give (T, 2)")
    _need(side >= 2, f"region_grid got side {side}; give 2 or more")
    low, high = xy.min(0), xy.max(0)
    low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
    xs, ys = np.meshgrid(np.linspace(low[0], high[0], side), np.linspace(low[1], high[1], side))
    return np.stack([xs.reshape(-1), ys.reshape(-1)], axis=1).astype(np.float32)


def decision_regions(
    xy: Any, labels: Sequence[Any], owners: Mapping[Any, Any | Callable[[np.ndarray], Any]], num_experts: int
) -> Picture:
    """Which expert owns which part of the plane, one panel for each training step.

    Args:
        xy: [T, 2] points.
        labels: T class labels, drawn as marker shapes.
        owners: from the training step to the top expert at each point of `region_grid(xy)`, integers [side²], or a
            function from that grid to them.
        num_experts: E, eight at most: beyond, colour cannot name an expert.
    """
    xy, names = array(xy), [str(label) for label in labels]
    _need(len(names) == len(xy), f"decision_regions got {len(names)} labels for {len(xy)} points")
    _need(1 <= num_experts <= len(PALETTE), f"decision_regions can tell 1 to {len(PALETTE)} experts; got {num_experts}")
    _need(len(owners) > 0, "decision_regions got no training step; give at least one")
    columns = min(4, len(owners))
    rows = math.ceil(len(owners) / columns)
    last = ""
    with style.use():
        beside = columns == 1
        figure, axes = new(columns, rows, size=(2.7 * columns + (1.9 if beside else 0.6), 2.6 * rows + 0.6))
        for ax, (step, owner) in zip(axes, owners.items(), strict=False):
            last = _region(ax, xy, names, owner, num_experts)
            ax.set(title=f"step {step}", xlabel="feature 1 (no unit)")
            ax.grid(False)
        axes[0].set_ylabel("feature 2 (no unit)")
        for ax in axes[len(owners) :]:
            ax.set_visible(False)
        handles = [Patch(color=PALETTE[e], alpha=0.55, label=f"expert {e}") for e in range(num_experts)]
        handles += axes[0].get_legend_handles_labels()[0]
        loc, most = ("outside right upper", 1) if beside else ("outside lower center", 6 if columns > 2 else 4)
        figure.legend(handles=handles, loc=loc, ncols=min(most, len(handles)))
    figure.alt = (
        f"Decision regions of {num_experts} experts at {len(owners)} training steps, with points of classes "
        f"{', '.join(sorted(set(names)))}. At step {list(owners)[-1]}: {last}."
    )
    return figure


def _region(ax: Axes, xy: np.ndarray, names: list[str], owner: Any, E: int) -> str:
    ids = array(owner(region_grid(xy)) if callable(owner) else owner).reshape(-1)
    side = math.isqrt(len(ids))
    _need(side * side == len(ids), f"owners must answer for every point of region_grid; got {len(ids)} answers")
    _need(ids.min() >= 0 and ids.max() < E, f"owners must lie in [0, {E}); got {ids.min()} to {ids.max()}")
    grid = region_grid(xy, 2)
    box = (grid[0, 0], grid[-1, 0], grid[0, 1], grid[-1, 1])
    ax.imshow(
        ids.reshape(side, side), origin="lower", extent=box, aspect="auto", alpha=0.55, interpolation="nearest",
        cmap=ListedColormap(PALETTE[:E]), vmin=-0.5, vmax=E - 0.5,
    )  # fmt: skip
    for marker, name in zip(MARKERS, sorted(set(names)), strict=False):
        mine = [n == name for n in names]
        ax.scatter(*xy[mine].T, marker=marker, s=14, c="white", edgecolors=INK, linewidths=0.7, label=f"class {name}")
    share = np.bincount(ids.astype(int), minlength=E) / len(ids)
    return ", ".join(f"expert {e} owns {100 * s:.0f} %" for e, s in enumerate(share))


def _visible(label: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in label)


def routing_matrix(routing: Any, tokens: Sequence[str] | None = None, limit: int = 32) -> Picture:
    """Tokens × experts: the weight of each chosen expert's output, for the first `limit` tokens."""
    T, E = routing.logits_TE.shape
    labels = tokens if tokens is not None else routing.tokens or [str(t) for t in range(T)]
    _need(len(labels) == T, f"routing_matrix got {len(labels)} labels for {T} tokens")
    _need(T >= 1 and limit >= 1, f"routing_matrix got {T} tokens and limit {limit}; both must be 1 or more")
    n = min(T, limit)
    weight = np.zeros((n, E))
    ids, scores = array(routing.topk_ids_TK)[:n], array(routing.topk_scores_TK)[:n]
    np.put_along_axis(weight, ids, scores, axis=1)
    with style.use():
        figure, (ax,) = new(size=(min(10, 2.6 + 0.3 * E), 1.3 + 0.23 * n))
        image = ax.imshow(weight, aspect="auto", cmap="Greys", vmin=0)
        figure.colorbar(image, label="weight of the output", shrink=0.9)
        title = "Who takes which token" + (f" (first {n} of {T})" if n < T else "")
        ax.set(title=title, xlabel="expert", ylabel="token")
        ax.set_yticks(range(n), [_visible(str(label)[:14]) for label in labels[:n]], fontsize=9)
        ax.set_xticks(range(0, E, math.ceil(E / 16)))
        ax.grid(False)
    figure.alt = f"{title}: {n} tokens by {E} experts. " + "; ".join(
        f"{labels[t]!r} to {', '.join(map(str, ids[t]))}" for t in range(min(n, 5))
    )
    return figure


def prediction_line(
    guess: float | None,
    measured: float,
    low: float,
    high: float,
    unit: str = "",
    spread: float | tuple[float, float] | None = 0.0,
    how: str = "measured",
) -> Picture:
    """A number line from low to high: the learner's guess if there is one, and the measurement with its spread.

    Args:
        how: the word beside the number, such as "calculated".
        spread: how far the measurement may be off on either side, or the interval (lowest, highest) around it.
    """
    below, above = spread if isinstance(spread, tuple) else (measured - (spread or 0), measured + (spread or 0))
    values = (measured, low, high, below, above, *(() if guess is None else (guess,)))
    _need(all(math.isfinite(v) for v in values), f"prediction_line needs finite numbers; got {values}")
    _need(low < high, f"prediction_line got low {low} and high {high}; low must be less")
    _need(below <= measured <= above, f"prediction_line got spread {spread}; give zero or more, or an interval around")
    range_ = f" ({below:.4g} to {above:.4g})" if above > below else ""
    with style.use():
        figure, (ax,) = new(size=(7, 1.7))
        reach = [[measured - below], [above - measured]]
        ax.errorbar(measured, 0, xerr=reach, fmt="D", color=PALETTE[0], markersize=9, capsize=5)
        if guess is not None:
            ax.plot(guess, 0, "o", color=PALETTE[5], markersize=12, markerfacecolor="none", markeredgewidth=2.5)
            _flag(ax, guess, f"you said {guess:.4g}", 16, PALETTE[5])
        _flag(ax, measured, f"{how} {measured:.4g}{range_}", -26, PALETTE[0])
        if low > 0 and min(values) > 0 and max(values) / min(values) > 100:
            ax.set_xscale("log")
            ax.set_xlim(min(values) / 1.2, max(values) * 1.2)
        else:
            pad = 0.08 * (max(values) - min(values))
            ax.set_xlim(min(values) - pad, max(values) + pad)
        ax.set(ylim=(-1, 1), yticks=[], xlabel=unit or "value (no unit)")
        ax.axhline(0, color="#999999", linewidth=1, zorder=0)
        ax.spines["left"].set_visible(False)
    said = "No prediction" if guess is None else f"You said {guess:.4g} {unit}".rstrip()
    figure.alt = f"{said}; {how} {measured:.4g} {unit}".rstrip() + f"{range_}."
    return figure


def _flag(ax: Axes, x: float, text: str, offset: int, color: str) -> None:
    ax.annotate(
        text, (x, 0), xytext=(0, offset), textcoords="offset points", ha="center", color=color, annotation_clip=False
    )


def bars_with_spread(
    samples: Mapping[str, Sequence[float]],
    quantity: str,
    unit: str,
    baseline: tuple[str, float] | None = None,
) -> Picture:
    """One bar a name at the median of its samples, every sample as a dot, and a line for the baseline.

    Args:
        samples: from a name to its measurements, one or more.
        quantity, unit: what the axis says.
        baseline: a name and a value drawn across all bars.
    """
    _need(len(samples) > 0, "bars_with_spread got no samples; give at least one name")
    data = {name: np.atleast_1d(array(values)).astype(float) for name, values in samples.items()}
    for name, values in data.items():
        _need(values.size > 0 and bool(np.isfinite(values).all()), f"bars_with_spread: {name!r} has no finite samples")
    middle = {name: float(np.median(values)) for name, values in data.items()}
    with style.use():
        figure, (ax,) = new(size=(7, 1.1 + 0.42 * len(data)))
        ax.barh(list(data), list(middle.values()), color=[PALETTE[0]] * len(data), height=0.6)
        for row, values in enumerate(data.values()):
            ax.plot(values, [row] * len(values), "o", color="white", markeredgecolor=INK, markersize=5)
        if baseline:
            ax.axvline(baseline[1], color=INK, linestyle="--", linewidth=1.2, label=baseline[0])
            figure.legend(loc="outside upper right")
        ax.invert_yaxis()
        ax.grid(axis="x")
        ax.grid(False, axis="y")
        ax.set_xlabel(f"{quantity} ({unit})")
    parts = [f"{n} {m:.4g} (from {data[n].min():.4g} to {data[n].max():.4g})" for n, m in middle.items()]
    parts += [f"{baseline[0]} {baseline[1]:.4g}"] if baseline else []
    figure.alt = f"{quantity} in {unit}, median: " + "; ".join(parts) + "."
    return figure


def cost_curve(
    x: Sequence[float], curves: Mapping[str, Sequence[float]], x_label: str, y_label: str, log: bool = True
) -> Picture:
    """Curves over x, by default on logarithmic axes; the labels should carry their units. Eight curves at most."""
    xs = array(x).astype(float)
    _need(1 <= len(curves) <= len(PALETTE), f"cost_curve draws 1 to {len(PALETTE)} curves; got {len(curves)}")
    ys = {name: array(values).astype(float) for name, values in curves.items()}
    for name, values in ys.items():
        _need(values.shape == xs.shape, f"cost_curve: {name!r} has {values.size} values for {xs.size} of x")
        _need(
            not log or bool((values > 0).all() and (xs > 0).all()),
            f"cost_curve: {name!r} needs positive numbers, or log=False",
        )
    with style.use():
        figure, (ax,) = new(size=(7, 3.6))
        for marker, (name, values) in zip(MARKERS, ys.items(), strict=False):
            ax.plot(xs, values, marker=marker, markersize=5, label=name)
        if log:
            ax.set(xscale="log", yscale="log")
        ax.set(xlabel=x_label, ylabel=y_label)
        figure.legend(loc="outside right upper")
    figure.alt = f"{y_label} over {x_label}. " + " ".join(
        f"{name}: from {v[0]:.3g} at {xs[0]:.3g} to {v[-1]:.3g} at {xs[-1]:.3g}." for name, v in ys.items()
    )
    return figure


def parameter_blocks(total: int, active: int, name: str = "") -> Picture:
    """A hundred squares, each a hundredth of the parameters; the lit ones are what one token uses."""
    _need(0 < active <= total, f"parameter_blocks got {active} active of {total}; give 0 < active ≤ total")
    share = active / total
    with style.use():
        figure, (ax,) = new(size=(6.2, 2.2))
        for i in range(100):
            lit = min(1.0, max(0.0, 100 * share - i))
            corner = (i // 5, 4 - i % 5)
            ax.add_patch(Rectangle(corner, 0.88, 0.88, color=style.GREY, alpha=0.5, linewidth=0))
            ax.add_patch(Rectangle(corner, 0.88, 0.88 * lit, color=PALETTE[0], linewidth=0))
        ax.set(xlim=(0, 20), ylim=(0, 5), xticks=[], yticks=[], aspect="equal")
        ax.set_title(f"{name}: {active / GB:.3g} of {total / GB:.3g} billion parameters per token".lstrip(": "))
        ax.set_xlabel(f"one square is {total / GB / 100:.3g} billion parameters")
        ax.spines[:].set_visible(False)
        ax.grid(False)
    figure.alt = (
        f"{name} uses {active / GB:.3g} of its {total / GB:.3g} billion parameters per token, {share:.1%}.".lstrip()
    )
    return figure
