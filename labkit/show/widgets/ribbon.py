"""The token ribbon: a text coloured by the expert that each token goes to first, and one token's choices by layer.

Only a window of the text is sent; paging asks for the next. Experts of different layers have nothing in common but
their number, so one expert is lit in one layer, the chosen one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import traitlets

from labkit.core.routing import Routing
from labkit.show.picture import Picture
from labkit.show.style import PALETTE
from labkit.show.widgets.base import LabWidget, esm
from labkit.show.widgets.bounds import within
from labkit.show.widgets.layers import as_layers, layer_names, visible

LENGTHS = (1, 1000)
LONGEST = 24


class Ribbon(LabWidget):
    """A live view of a text and of every token's choices.

    Args:
        records: one record, or one a layer.
        start: the first token of the window.
        length: how many tokens a window has, 1 to 1000.

    Traits that browser and kernel share: `token` (its position in the record), `layer` (a position in the sequence of
    records), `lit_expert` (−1: none), `start` and `length`. `choices` holds the token's choices.
    Raises ValueError for anything but records of one batch, and for positions outside them.
    """

    _esm = esm("ribbon")

    token = traitlets.Int(0).tag(sync=True)
    layer = traitlets.Int(0).tag(sync=True)
    lit_expert = traitlets.Int(-1).tag(sync=True)
    start = traitlets.Int(0).tag(sync=True)
    length = traitlets.Int(300).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    num_tokens = traitlets.Int().tag(sync=True)
    num_experts = traitlets.Int().tag(sync=True)
    window = traitlets.Dict().tag(sync=True)
    detail = traitlets.Dict().tag(sync=True)

    def __init__(self, records: Routing | Sequence[Routing], start: int = 0, length: int = 300) -> None:
        self._layers = as_layers(records, "ribbon")
        first = self._layers[0]
        within("Ribbon.start", start, 0, first.num_tokens - 1)
        super().__init__(
            names=layer_names(self._layers), num_tokens=first.num_tokens, num_experts=first.num_experts,
            start=start, length=length, token=start,
            lit_expert=-1 if first.num_experts <= len(PALETTE) else int(first.topk_ids_TK[start, 0]),
        )  # fmt: skip
        self._send_window()
        self._send_detail()
        self.observe(self._follow, names=["token", "start", "length"])
        self.observe(self._send_window, names=["layer", "lit_expert", "start", "length"])
        self.observe(self._send_detail, names=["token", "layer"])

    @property
    def choices(self) -> list[list[tuple[int, float]]]:
        """The token's choices: for each layer its experts with their weights, best first."""
        return [
            list(zip(r.topk_ids_TK[self.token].tolist(), r.topk_scores_TK[self.token].tolist(), strict=True))
            for r in self._layers
        ]

    @traitlets.validate("token", "layer", "lit_expert", "start", "length")
    def _check(self, proposal: Any) -> int:
        name, last = proposal["trait"].name, self._layers[0].num_tokens - 1
        ranges = {"token": (0, last), "start": (0, last), "layer": (0, len(self._layers) - 1), "length": LENGTHS}
        low, high = ranges.get(name, (-1, self._layers[0].num_experts - 1))
        return within(f"Ribbon.{name}", proposal["value"], low, high)

    def _follow(self, change: Any) -> None:
        """Keep the token inside the window, and move whichever of the two was not moved by hand."""
        if self.start <= self.token < self.start + self.length:
            return
        if change["name"] == "token":
            self.start = self.token // self.length * self.length
        else:
            self.token = self.start

    def _send_window(self, change: Any = None) -> None:
        r = self._layers[self.layer]
        rows = slice(self.start, min(self.start + self.length, r.num_tokens))
        ids_TK, weights_TK = r.topk_ids_TK[rows], r.topk_scores_TK[rows].float()
        shown_T, chosen_T = weights_TK[:, 0], None
        if self.lit_expert >= 0:
            mine_TK = ids_TK == self.lit_expert
            shown_T, chosen_T = (weights_TK * mine_TK).sum(1), mine_TK.any(1)
        self.window = {
            "start": rows.start,
            "texts": self._texts(rows),
            "first": ids_TK[:, 0].tolist(),
            "shown": [round(w, 4) for w in shown_T.tolist()],
            "chosen": [] if chosen_T is None else chosen_T.int().tolist(),
            "high": float(r.topk_scores_TK.max()) or 1.0,
            "breaks": self._breaks(rows),
            "note": self._note_of_window(ids_TK),
        }
        self.sampled = self._said(rows)

    def _texts(self, rows: slice) -> list[str]:
        tokens = self._layers[0].tokens
        if tokens is None:
            return [f"#{t}" for t in range(rows.start, rows.stop)]
        texts = (visible(token) for token in tokens[rows])
        return [text if len(text) <= LONGEST else text[: LONGEST - 1] + "…" for text in texts]

    def _breaks(self, rows: slice) -> list[list[Any]]:
        """Where in the window a sequence or a domain begins: [offset, domain or ""]."""
        r, breaks = self._layers[0], []
        for t in range(rows.start, rows.stop):
            domain = r.domains[t] if r.domains else ""
            same = t > rows.start and (r.sequence_T is None or bool(r.sequence_T[t] == r.sequence_T[t - 1]))
            if not same or (r.domains and domain != r.domains[t - 1]):
                breaks.append([t - rows.start, domain])
        return breaks

    def _note_of_window(self, ids_TK: torch.Tensor) -> str:
        n, (_, K), E, lit = len(ids_TK), ids_TK.shape, self.num_experts, self.lit_expert
        if lit >= 0:
            chosen, first = int((ids_TK == lit).any(1).sum()), int((ids_TK[:, 0] == lit).sum())
            return (
                f"Expert {lit} of {self.names[self.layer]} is chosen by {chosen} of these {n} tokens, {first} times "
                f"as first choice; an even load would give it {n * K / E:.3g}."
            )
        counts = torch.bincount(ids_TK[:, 0], minlength=E)
        top = int(counts.argmax())
        return (
            f"The commonest first choice here is expert {top}: {int(counts[top])} of {n} tokens; if all {E} experts "
            f"were first choice equally often, it would be {n / E:.3g}."
        )

    def _said(self, rows: slice) -> str:
        T = self.num_tokens
        if rows.stop - rows.start == T:
            return ""
        return f"Shown: tokens {rows.start:,} to {rows.stop - 1:,} of {T:,}; the rest comes page by page."

    def _send_detail(self, change: Any = None) -> None:
        r, choices = self._layers[0], self.choices
        text = self._texts(slice(self.token, self.token + 1))[0]
        domain = r.domains[self.token] if r.domains else ""
        (first, weight), *others = choices[self.layer]
        then = f", then {', '.join(f'{e} ({w:.3g})' for e, w in others)}" if others else ""
        where = f"“{text}”{f' ({domain})' if domain else ''}"
        self.detail = {
            "ids": [[e for e, _ in row] for row in choices],
            "weights": [[round(w, 4) for _, w in row] for row in choices],
            "title": f"Token {self.token:,}: {where}",
            "note": f"Token {self.token:,}, {where}, in {self.names[self.layer]}: first expert {first} with weight "
            f"{weight:.3g}{then}.",
        }

    def picture(self) -> Picture:
        """The window around the token, and the token's choices by layer, as they stand."""
        from labkit.show.widgets.ribbon_picture import draw

        return draw(self)


def ribbon(records: Routing | Sequence[Routing], start: int = 0, length: int = 300) -> Ribbon:
    """The token ribbon on one record, or on one a layer; see `Ribbon`.

    >>> r = Routing.of(torch.zeros(2, 4), torch.tensor([[0], [3]]), torch.ones(2, 1), tokens=("a", "b"))
    >>> w = ribbon(r)
    >>> w.token = 1
    >>> w.choices
    [[(3, 1.0)]]
    """
    return Ribbon(records, start, length)
