"""One word's contexts as a static picture: its load beside everyone's, by domain, and its first occurrences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from labkit.show import style
from labkit.show.picture import Picture
from labkit.show.style import GREY, INK, LIT, PALETTE, SEQUENTIAL, expert_color
from labkit.show.widgets.glyphs import FONT, drawable
from labkit.show.widgets.layers import visible

if TYPE_CHECKING:
    from labkit.show.widgets.contexts import Contexts

LINES, LETTERS, RANKS = 10, 24, 8
WIDE = 1.25  # how wide a letter is, where a chip is 4 wide


def draw(w: Contexts) -> Picture:
    """The word's load as bars, everyone's as lines, the same by domain, and lines of text; `alt` says it in words."""
    rows, lines = w.view["rows"], _around(w)
    heights = [2.2, 0.34 * len(rows) + 0.6 if rows else 0.0, 0.24 * len(lines) + 0.4]
    heights = [h for h, there in zip(heights, (True, rows, lines), strict=True) if there]
    with style.use():
        figure = Picture(figsize=(9, sum(heights) + 0.3))
        axes = list(figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False).reshape(-1))
        _bars(axes.pop(0), w)
        if rows:
            _by_domain(axes.pop(0), w)
        if lines:
            _text(axes.pop(0), w, lines)
    by = [f"{name} ({n}×): most often expert {int(np.argmax(share))}" for name, n, share, _ in rows if n]
    domains = f" By domain: {'; '.join(by)}." if by else ""
    figure.alt = f"Same word in other contexts. {w.view['note']}{domains} {w.detail}".strip()
    return figure


def _bars(ax: Any, w: Contexts) -> None:
    view, E = w.view, w.num_experts
    colors = [expert_color(e, E, w.lit_expert if w.lit_expert >= 0 else None) for e in range(E)]
    ax.bar(range(E), [100 * v for v in view["share"]], color=colors, width=0.7)
    ax.hlines([100 * v for v in view["baseline"]], np.arange(E) - 0.45, np.arange(E) + 0.45, color=INK, linewidth=1.6)
    ax.set_title(drawable(f"“{_short(visible(w.word))}”, {w.names[w.layer]}", "DejaVu Sans"), parse_math=False)
    ax.set(xlabel="expert", ylabel="share of choices (%)", xlim=(-0.6, E - 0.4))
    ax.set_xticks(range(0, E, _step(E)))
    one = Patch(color=LIT if len(PALETTE) < E else GREY, label=f"this word, {view['matches']:,}×")
    ax.legend(
        handles=[one, Line2D([], [], color=INK, label="all tokens")], ncols=2, loc="lower right", bbox_to_anchor=(1, 1)
    )


def _by_domain(ax: Any, w: Contexts) -> None:
    names, table = [], []
    for name, n, share, everyone in w.view["rows"]:
        names += [f"{name}, {n:,}×", f"{name}, all"]
        table += [share, everyone]
    values, E = 100 * np.array(table), w.num_experts
    image = ax.imshow(values, aspect="auto", cmap=SEQUENTIAL, vmin=0)
    if E <= 16:
        for (row, e), value in np.ndenumerate(values):
            ink = "white" if value < 0.55 * values.max() else INK
            ax.text(e, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=ink)
    ax.set_yticks(range(len(names)), [drawable(name, "DejaVu Sans") for name in names], fontsize=8, parse_math=False)
    ax.set_xticks(range(0, E, _step(E)))
    ax.set(xlabel="expert", xlim=(-0.6, E - 0.4))
    ax.figure.colorbar(image, ax=ax, label="share (%)", fraction=0.04, pad=0.01)
    ax.grid(False)


def _around(w: Contexts) -> list[tuple[int, dict[str, Any]]]:
    """The lines around the one in hand, with their numbers."""
    lines = w.view["lines"]
    first = max(0, min(w.occurrence - LINES // 2, len(lines) - LINES))
    return list(enumerate(lines))[first : first + LINES]


def _text(ax: Any, w: Contexts, lines: list[tuple[int, dict[str, Any]]]) -> None:
    E, chip, side = w.num_experts, 4, LETTERS * WIDE
    ranks = min(RANKS, len(lines[0][1]["ids"]))
    for row, (i, line) in enumerate(lines):
        key = _short("".join(line["key"]))
        write = {"y": row, "family": FONT, "fontsize": 8.5, "va": "center_baseline", "parse_math": False}
        left, right = "".join(line["left"])[-LETTERS:], "".join(line["right"])[: LETTERS - len(key)]
        ax.text(-0.5, s=drawable(left), ha="right", **write)
        ax.text(0, s=drawable(key), ha="left", fontweight="bold", **write)
        ax.text(len(key) * WIDE + 0.5, s=drawable(right), ha="left", **write)
        ax.text(-side - 3, s=drawable(line["domain"])[:12], ha="right", **write)
        for k in range(ranks):
            e, weight = line["ids"][k], max(0.0, line["weights"][k] / (max(line["weights"]) or 1.0))
            color, at = expert_color(e, E, w.lit_expert if w.lit_expert >= 0 else None), side + 3 + k * chip
            ax.add_patch(Rectangle((at, row - 0.42), chip - 0.4, 0.84, facecolor=color, alpha=0.12 + 0.5 * weight))
            ax.text(at + chip / 2 - 0.2, row, str(e), fontsize=8.5, ha="center", va="center_baseline")
        if i == w.occurrence:
            ax.add_patch(Rectangle((-side - 19, row - 0.45), 0.8, 0.9, facecolor=LIT))
    ax.set(xlim=(-side - 20, side + 4 + RANKS * chip), ylim=(len(lines) - 0.4, -0.6), xticks=[], yticks=[])
    shown = f"{len(w.view['lines'])} shown" + (f" of {w.matches:,}" if w.matches > len(w.view["lines"]) else "")
    span = f"{lines[0][0] + 1} to {lines[-1][0] + 1}"
    ax.set_title(f"Occurrences {span} ({shown}), with the experts of the last token", fontsize=10)
    ax.spines[:].set_visible(False)
    ax.grid(False)


def _step(E: int) -> int:
    return 1 if E <= 16 else 4 * -(-E // 80)


def _short(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"
