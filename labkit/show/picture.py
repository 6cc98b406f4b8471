"""A matplotlib figure that carries its own description, and shows as an image anywhere."""

from __future__ import annotations

import io
import re
from base64 import b64encode
from html import escape
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from labkit.show import style


class Picture(Figure):
    """A Figure with `alt`, the words for readers who do not see it.

    It belongs to no pyplot state, so a cell shows it once and nothing leaks; `savefig` works as ever.
    """

    alt: str = ""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        data = {"image/png": b64encode(png(self)).decode("ascii"), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt}}


def new(columns: int = 1, rows: int = 1, size: tuple[float, float] | None = None) -> tuple[Picture, list[Axes]]:
    """An empty picture of rows × columns axes, in reading order; size in inches. Call it inside `style.use()`."""
    figure = Picture(figsize=size)
    return figure, list(figure.subplots(rows, columns, squeeze=False).reshape(-1))


def png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes every time on one machine.

    Raises ValueError for anything but a matplotlib Figure.
    """
    if not isinstance(figure, Figure):
        raise ValueError(f"png got {type(figure).__name__}; give a matplotlib Figure")
    stream = io.BytesIO()
    canvas, color = figure.canvas, figure.get_facecolor()
    with style.use():
        try:  # `savefig` lays a figure out by drawing it once in vain: the same bytes for a third more time
            figure.set_facecolor("white")
            FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})
        finally:
            figure.set_facecolor(color)
            figure.set_canvas(canvas)
    return stream.getvalue()


def describe_images(html: str, notebook: Any) -> str:
    """An exported page whose pictures carry their words: nbconvert's own template leaves the alt text out.

    Args:
        html: what nbconvert's HTMLExporter made of the notebook.
        notebook: the executed notebook, a NotebookNode.
    """
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    for output in outputs:
        alt = output.get("metadata", {}).get("image/png", {}).get("alt")
        at = html.find(f"data:image/png;base64,{output['data']['image/png'].strip()}") if alt else -1
        if at >= 0:
            start, end = html.rindex("<img", 0, at), html.index(">", at)
            tag = re.sub(r'\s+alt="[^"]*"', "", html[start:end])
            html = f'{html[:start]}<img alt="{escape(alt, quote=True)}"{tag[4:]}{html[end:]}'
    return html
