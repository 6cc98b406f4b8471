"""The token ribbon as a static picture: lines of text on coloured ground, and one token's choices by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.patches import Rectangle

from labkit.show import style
from labkit.show.picture import Picture
from labkit.show.style import GREY, INK, LIT, PALETTE, expert_color, ramp
from labkit.show.widgets.glyphs import FONT, drawable

if TYPE_CHECKING:
    from labkit.show.widgets.ribbon import Ribbon

COLUMNS, LINES = 96, 8
SHOWN_RANKS, SHOWN_LAYERS = 12, 24


def draw(w: Ribbon) -> Picture:
    """The lines of the window around the token, above its choices; `alt` says both."""
    window, lines = w.window, _lines(w.window)
    at = w.token - window["start"]
    mine = next(i for i, line in enumerate(lines) if any(token == at for token, _ in line))
    first = max(0, min(mine - LINES // 2, len(lines) - LINES))
    lines = lines[first : first + LINES]
    layers = _some(len(w.names), w.layer, SHOWN_LAYERS)
    heights = (0.26 * len(lines) + 0.5, 0.26 * len(layers) + 0.75)
    with style.use():
        figure = Picture(figsize=(9, sum(heights)))
        above, below = figure.subplots(2, 1, height_ratios=heights)
        _text(above, w, lines, at)
        _strip(below, w, layers)
    shown = "".join(window["texts"][token] for line in lines for token, _ in line)
    figure.alt = (
        f"Token ribbon, {w.num_experts} experts, {w.names[w.layer]}. {w.detail['note']} {window['note']} "
        f"The text shown begins “{shown[:60]}”."
    )
    return figure


def _lines(window: dict[str, Any]) -> list[list[tuple[int, int]]]:
    """Lines of (token, column): a new one where a line is full, after ⏎, and where a sequence or domain begins."""
    breaks, lines, column, new = {at for at, _ in window["breaks"]}, [], 0, True
    for i, text in enumerate(window["texts"]):
        if new or i in breaks or column + len(text) > COLUMNS:
            lines.append([])
            column = 0
        lines[-1].append((i, column))
        column += len(text) + (len(text) > 1)
        new = "⏎" in text
    return lines


def _text(ax: Any, w: Ribbon, lines: list[list[tuple[int, int]]], at: int) -> None:
    for row, line in enumerate(lines):
        for i, column in line:
            text = w.window["texts"][i]
            ground, alpha = _ground(w, i)
            box = {"width": len(text), "height": 0.86, "linewidth": 0}
            ax.add_patch(Rectangle((column, row - 0.43), facecolor=ground, alpha=alpha, **box))
            if i == at:
                box["linewidth"] = 1.6
                ax.add_patch(Rectangle((column, row - 0.43), fill=False, edgecolor=INK, zorder=3, **box))
            for j, letter in enumerate(drawable(text)):
                ax.text(
                    column + j + 0.5, row, letter, family=FONT, fontsize=9, color=_ink(ground, alpha),
                    ha="center", va="center_baseline", parse_math=False,
                )  # fmt: skip
    ax.set(xlim=(-0.5, COLUMNS + 1), ylim=(len(lines) - 0.4, -0.6), xticks=[], yticks=[])
    ax.set_title(_title(w, lines[0][0][0], lines[-1][-1][0]), parse_math=False)
    ax.spines[:].set_visible(False)
    ax.grid(False)


def _ground(w: Ribbon, i: int) -> tuple[str, float]:
    """The colour of a token's ground and how strong it is."""
    window, E, lit = w.window, w.num_experts, w.lit_expert
    weight = max(0.0, min(1.0, window["shown"][i] / window["high"]))
    if lit >= 0:
        return (expert_color(lit, E, lit), 0.12 + 0.5 * weight) if window["chosen"][i] else (GREY, 0.15)
    if len(PALETTE) >= E:
        return expert_color(window["first"][i], E), 0.4
    return ramp(32)[round(31 * weight)], 1.0


def _ink(ground: str, alpha: float) -> str:
    r, g, b = (int(ground[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return INK if alpha < 1 or 0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2 > 0.18 else "white"


def _title(w: Ribbon, first: int, last: int) -> str:
    start, name = w.window["start"], w.names[w.layer]
    if w.lit_expert >= 0:
        means = f"the darker, the more weight expert {w.lit_expert} has"
    elif len(PALETTE) >= w.num_experts:
        means = "colour is the first expert"
    else:
        means = f"colour is the first choice's weight, dark 0 to bright {w.window['high']:.2g}"
    return f"Tokens {start + first:,} to {start + last:,} in {name}: {means}"


def _strip(ax: Any, w: Ribbon, layers: list[int]) -> None:
    ids, weights, E = w.detail["ids"], w.detail["weights"], w.num_experts
    ranks = range(min(len(ids[0]), SHOWN_RANKS))
    high = max(max(weights[layer]) for layer in layers) or 1.0
    for row, layer in enumerate(layers):
        for k in ranks:
            e, weight = ids[layer][k], weights[layer][k]
            lit = layer == w.layer and e == w.lit_expert
            color = PALETTE[e] if len(PALETTE) >= E else LIT if lit else GREY
            ax.add_patch(Rectangle((k, row), 0.94, 0.88, facecolor=color, alpha=0.1 + 0.55 * max(0, weight / high)))
            ax.text(k + 0.47, row + 0.44, f"{e}: {weight:.2f}", fontsize=9, ha="center", va="center")
    rows = [row + 0.44 for row in range(len(layers))]
    ax.set_yticks(rows, [w.names[layer] + (" →" if layer == w.layer else "") for layer in layers], fontsize=9)
    ax.set_xticks([k + 0.47 for k in ranks], [str(k + 1) for k in ranks])
    ax.set(
        xlim=(0, max(6, len(ranks))),
        ylim=(len(layers), -0.05),
        xlabel="choice, best first (expert: weight of its output)",
    )
    ax.set_title(drawable(w.detail["title"], "DejaVu Sans"), parse_math=False, fontsize=11)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.grid(False)


def _some(count: int, chosen: int, limit: int) -> list[int]:
    """At most `limit` layers, the chosen one among them."""
    first = max(0, min(chosen - limit // 2, count - limit))
    return list(range(first, min(count, first + limit)))
