"""One palette for matplotlib, for JavaScript and for cards, and the house style of figures.

The eight categorical colours are those of Okabe and Ito, "Color Universal Design" (2008), reordered so that the pale
yellow comes last. Beyond eight experts colour no longer names an expert: one is lit and the rest are grey, or colour
is a quantity (`SEQUENTIAL`). Matplotlib is imported only when a figure is styled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#5A5A5A", "#F0E442")
GREY = "#B4B4B4"
INK = "#222222"
LIT = "#D55E00"
SEQUENTIAL = "cividis"

KIND_COLORS = {"pass": "#009E73", "fail": "#D55E00", "todo": "#E69F00", "info": "#0072B2", "claim": "#CC79A7"}

# JupyterLab's variables first, then VS Code's, then what the page already has: readable on light and on dark.
TEXT_CSS = "var(--jp-content-font-color1, var(--vscode-editor-foreground, inherit))"
PANEL_CSS = "var(--jp-layout-color2, var(--vscode-editorWidget-background, rgba(128, 128, 128, 0.08)))"
LINE_CSS = "var(--jp-border-color2, var(--vscode-panel-border, rgba(128, 128, 128, 0.4)))"


def expert_color(i: int, n: int, lit: int | None = None) -> str:
    """The colour of expert i of n, as "#RRGGBB".

    Up to eight experts each has its own; beyond, expert `lit` stands out and every other one is grey.
    Raises ValueError if i or lit is not one of the n experts.

    >>> expert_color(0, 8), expert_color(3, 64), expert_color(3, 64, lit=3)
    ('#0072B2', '#B4B4B4', '#D55E00')
    """
    for name, value in (("i", i), ("lit", i if lit is None else lit)):
        if not 0 <= value < n:
            raise ValueError(f"expert_color got {name}={value} for {n} experts; give a number from 0 to {n - 1}")
    if n <= len(PALETTE):
        return PALETTE[i]
    return LIT if i == lit else GREY


def expert_colors(n: int, lit: int | None = None) -> list[str]:
    """The colours of all n experts, in order: what a widget hands to its JavaScript.

    >>> expert_colors(2)
    ['#0072B2', '#E69F00']
    """
    if n < 1:
        raise ValueError(f"expert_colors got n={n}; give at least one expert")
    return [expert_color(i, n, lit) for i in range(n)]


def ramp(steps: int) -> list[str]:
    """The sequential colours from low to high, as "#RRGGBB": what a widget's JavaScript shades quantities with.

    >>> ramp(2)
    ['#00224e', '#fee838']
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if steps < 2:
        raise ValueError(f"ramp got {steps} steps; give 2 or more")
    return [to_hex(colormaps[SEQUENTIAL](i / (steps - 1))) for i in range(steps)]


def rc() -> dict[str, object]:
    """The matplotlib settings of every figure here: readable sizes, a light grid, no box, white ground."""
    from cycler import cycler

    return {
        "axes.axisbelow": True,
        "axes.edgecolor": "#666666",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.labelcolor": INK,
        "axes.labelsize": 11,
        "axes.prop_cycle": cycler(color=PALETTE),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 12,
        "figure.constrained_layout.use": True,
        "figure.dpi": 110,
        "figure.facecolor": "white",
        "figure.figsize": (7.0, 3.2),
        "font.size": 11,
        "grid.color": "#DDDDDD",
        "grid.linewidth": 0.8,
        "image.cmap": SEQUENTIAL,
        "legend.fontsize": 10,
        "legend.frameon": False,
        "lines.linewidth": 2.0,
        "savefig.dpi": 110,
        "savefig.facecolor": "white",
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
    }


@contextmanager
def use() -> Iterator[None]:
    """Within this block, new matplotlib figures follow the house style; outside, nothing has changed."""
    import matplotlib

    with matplotlib.rc_context(rc()):
        yield
