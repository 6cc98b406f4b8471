"""What every widget here is: live in the browser, and a described picture wherever no browser runs it.

A saved notebook keeps `image/png` and text beside the widget's view, so GitHub, nbconvert and a printed page show the
picture (execute with `store_widget_state=False`). Works with ipywidgets 7.7.1 and newer: version 7 would display a
widget through `_ipython_display_`, which knows no picture, so it is turned off.
"""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from labkit.show.picture import Picture, png
from labkit.show.style import GREY, LIT, expert_colors, ramp

VIEW_MIME = "application/vnd.jupyter.widget-view+json"


class Pictured:
    """A mixin, before any ipywidgets class: adds `picture()` to what the widget shows.

    A subclass gives `picture`, a Picture of the present state whose `alt` says in words what it shows.
    """

    _ipython_display_ = None

    def picture(self) -> Picture:
        """The present state as a static picture with alt text."""
        raise NotImplementedError(f"{type(self).__name__} has no picture")

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        picture = self.picture()
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        data = {"text/plain": picture.alt, "image/png": b64encode(png(picture)).decode("ascii"), VIEW_MIME: view}
        return data, {**self._said_by_parent(**kwargs), "image/png": {"alt": picture.alt}}

    def _said_by_parent(self, **kwargs: Any) -> dict[str, Any]:
        """What the parent says about its view: in Colab, where the widget manager is."""
        parent = getattr(super(), "_repr_mimebundle_", None)
        bundle = parent(**kwargs) if parent else None
        return dict(bundle[1]) if isinstance(bundle, tuple) else {}


def esm(name: str) -> str:
    """The JavaScript of a widget as one module: `common.js`, then `<name>.js`, which exports `{ render }`."""
    folder = Path(__file__).parent
    return "\n".join((folder / f"{part}.js").read_text("utf-8") for part in ("common", name))


class LabWidget(Pictured, anywidget.AnyWidget):
    """An anywidget with a picture and the palette; its JavaScript lies beside its Python file (see `esm`).

    Traits that every drawing reads: `palette` (eight expert colours), `ramp` (a quantity from low to high), `lit` and
    `grey` (one expert among many), and `sampled`, what was left out or aggregated before sending, in words.
    """

    palette = traitlets.List(traitlets.Unicode()).tag(sync=True)
    ramp = traitlets.List(traitlets.Unicode()).tag(sync=True)
    lit = traitlets.Unicode(LIT).tag(sync=True)
    grey = traitlets.Unicode(GREY).tag(sync=True)
    sampled = traitlets.Unicode("").tag(sync=True)

    @traitlets.default("palette")
    def _house_palette(self) -> list[str]:
        return expert_colors(8)

    @traitlets.default("ramp")
    def _house_ramp(self) -> list[str]:
        return ramp(32)
