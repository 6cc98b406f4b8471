"""How the course shows a card: rich in a notebook, plain in a terminal, and readable by `labkit run` in both."""

from __future__ import annotations

from typing import Any

from labkit.show.cards import Card

VERDICT = "application/vnd.labkit.verdict+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
CLAIM = "application/vnd.labkit.claim+json"


def say(card: Card, mime: str = "", data: dict[str, Any] | None = None, *, line: bool = False) -> None:
    """Show `card`, or only its text as a `line`; under `mime` the output also carries `data` for `labkit run`."""
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        print(card)
        return
    bundle: dict[str, Any] = {"text/plain": str(card)} if line else dict(card._repr_mimebundle_())
    if mime:
        bundle[mime] = data or {}
    display(bundle, raw=True)


def with_static(widget: Any, card: Card) -> dict[str, Any]:
    """The mime bundle of an ipywidgets widget, with a card for readers of a page where it cannot run."""
    bundle: dict[str, Any] = dict(card._repr_mimebundle_())
    bundle[WIDGET] = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return bundle
