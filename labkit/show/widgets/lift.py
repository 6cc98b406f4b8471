"""Domain lift: which experts a domain prefers, beside what shuffled labels give; brush experts to ask about a set.

Python counts, shuffles and says it in words; JavaScript draws `view` and sends back layer, domain, order and brush.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import traitlets
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from labkit.core.routing import Routing
from labkit.show import style
from labkit.show.picture import Picture
from labkit.show.widgets.base import LabWidget, esm
from labkit.show.widgets.bounds import OutOfRange
from labkit.show.widgets.layers import as_layers, layer_names
from labkit.show.widgets.lift_tables import ROUNDS, LayerTable, Share, examples, layer_table, set_shares

SORTS = ("number", "lift")


def lift_map(records: Routing | Sequence[Routing], layer: int = 0) -> LiftMap:
    """A live view of how much more often each domain goes to each expert than all tokens do.

    Args:
        records: one Routing, or one a layer, with domains.
        layer: the one to begin with, a position in `records`.

    Raises ValueError for records without domains and a layer that is not there.
    """
    return LiftMap(records, layer)


class LiftMap(LabWidget):
    """The widget of `lift_map`.

    Traits that the browser and the kernel share: `layer` (a position in the records), `domain` (a label), `sort`
    ("number", or "lift" of the domain, highest first) and `brush` (expert numbers). `brushed` holds, for each domain,
    what the brushed experts take of it (`lift_tables.Share`); it is empty without a brush.
    """

    _esm = esm("lift")

    layer = traitlets.Int(0).tag(sync=True)
    domain = traitlets.Unicode("").tag(sync=True)
    sort = traitlets.Unicode("number").tag(sync=True)
    brush = traitlets.List(traitlets.Int()).tag(sync=True)
    layers = traitlets.List(traitlets.Unicode()).tag(sync=True)
    domains = traitlets.List(traitlets.Unicode()).tag(sync=True)
    view = traitlets.Dict().tag(sync=True)

    def __init__(self, records: Routing | Sequence[Routing], layer: int = 0) -> None:
        self._records = as_layers(records, "lift_map")
        for record in self._records:
            if record.domains is None:
                raise ValueError(
                    "lift_map needs the domain of each token, and a record has none; trace a labelled batch "
                    "(labkit.nn.trace), or build the Routing with domains=…"
                )
            if record.domains != self._records[0].domains:
                raise ValueError("lift_map got layers whose tokens have different domains; give layers of one batch")
        self._tables: dict[int, LayerTable] = {}
        self.brushed: dict[str, Share] = {}
        self._brushed_for: tuple[int, list[int]] | None = None
        names = sorted(set(self._records[0].domains))
        super().__init__(layers=layer_names(self._records), domains=names, domain=names[0], layer=layer)
        self.sampled = self._said_of_counts()
        self._look()
        self.observe(self._look, names=["layer", "domain", "sort", "brush"])

    @traitlets.validate("layer", "domain", "sort")
    def _check_choice(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        allowed = {"layer": range(len(self._records)), "domain": self.domains, "sort": SORTS}[name]
        if value not in allowed:
            last = len(self._records) - 1
            shown = f"a position from 0 to {last}" if name == "layer" else "one of " + ", ".join(map(repr, allowed))
            raise OutOfRange(f"LiftMap.{name} is {value!r}; give {shown}")
        return value

    @traitlets.validate("brush")
    def _check_brush(self, proposal: Any) -> list[int]:
        value, E = proposal["value"], self._records[0].num_experts
        if len(set(value)) != len(value) or not all(0 <= e < E for e in value):
            raise OutOfRange(f"LiftMap.brush is {value}; give different expert numbers from 0 to {E - 1}, or none")
        return value

    @property
    def table(self) -> LayerTable:
        """Lift, interval and load of the layer that is looked at; made once a layer, when it is first asked for."""
        if self.layer not in self._tables:
            self._tables[self.layer] = layer_table(self._records[self.layer])
        return self._tables[self.layer]

    @property
    def order(self) -> list[int]:
        """The experts from left to right."""
        if self.sort == "number":
            return list(range(self._records[0].num_experts))
        return torch.argsort(self._row("lift_GE"), descending=True, stable=True).tolist()

    def _row(self, name: str) -> torch.Tensor:
        return getattr(self.table, name)[self.domains.index(self.domain)]

    def _look(self, change: Any = None) -> None:
        table = self.table
        if self._brushed_for != (self.layer, self.brush):  # several traits can change in one message, in any order
            self._brushed_for = (self.layer, list(self.brush))
            self.brushed = set_shares(self._records[self.layer], self.brush, table.unit) if self.brush else {}
        self.view = {
            "lift": _short(table.lift_GE),
            "low": _short(table.low_GE),
            "high": _short(table.high_GE),
            "outside": table.outside_GE.int().tolist(),
            "load": _short(table.load_E),
            "top": float(max(table.lift_GE.max(), table.high_GE.max())),
            "order": self.order,
            "brushed": {name: asdict(share) for name, share in self.brushed.items()},
            "note": self._said_of_brush() if self.brush else self._said_of_domain(),
        }

    def _said_of_counts(self) -> str:
        unit = "whole sequences" if self.table.unit == "sequence" else "single tokens"
        T = self._records[0].num_tokens
        said = f"Counted over {_all_of(T)}; only shares by domain and expert are sent. "
        return said + f"Grey: the middle 95 % of {ROUNDS} shuffles of the labels among {unit}."

    def _said_of_domain(self) -> str:
        if len(self.domains) == 1:
            return (
                f"{self.layers[self.layer]}: every token is of {self.domain}, so there is nothing to compare and every "
                "lift is 1; trace text of two domains or more."
            )
        lift_E, outside_E = self._row("lift_GE"), self._row("outside_GE")
        E, best, worst = len(lift_E), int(lift_E.argmax()), int(lift_E.argmin())
        surely = int(self._row("surely_GE").sum())
        return (
            f"{self.layers[self.layer]}, {self.domain}: {int(outside_E.sum())} of {E} experts lie outside the grey "
            f"range, where chance alone would leave about {_number(0.05 * E)}; {surely} stand out even among all "
            f"{self.table.lift_GE.numel()} cells at once. Most preferred: expert {best}, lift {_number(lift_E[best])}; "
            f"least: expert {worst}, lift {_number(lift_E[worst])}."
        )

    def _said_of_brush(self) -> str:
        mine = self.brushed[self.domain]
        takes = "takes" if len(self.brush) == 1 else "take"
        others = [f"{n} {100 * s.share:.1f} %" for n, s in self.brushed.items() if n != self.domain]
        found = examples(self._records[self.layer], self.brush, self.domain)
        shown = ", ".join(f"“{text}” ({count})" for text, count in found)
        return (
            f"{self.layers[self.layer]}, {_experts(self.brush)} {takes} {100 * mine.share:.1f} % of the choices of "
            f"{self.domain}; shuffled labels give {100 * mine.low:.1f} to {100 * mine.high:.1f} %: {_verdict(mine)}."
            + (f" Of other domains: {', '.join(others)}." if others else "")
            + (f" Tokens of {self.domain} there: {shown}." if shown else "")
        )

    def picture(self) -> Picture:
        """The lift of every expert for the domain, and the table of all domains, as they stand."""
        G, E, table = len(self.domains), self._records[0].num_experts, self.table
        with style.use():
            figure = Picture(figsize=(9, 3.6 + 0.28 * G))
            above, below = figure.subplots(2, 1, height_ratios=[2.6, 0.5 + 0.28 * G])
            _dots(above, table, self.domains.index(self.domain), self.order, self.brush)
            _cells(figure, below, table, self.order)
            above.set(title=f"{self.layers[self.layer]}, lift of {self.domain}", ylabel="lift (1 = no preference)")
            step = max(1, -(-E // 16))
            below.set_xticks(range(0, E, step), [str(e) for e in self.order[::step]])
            below.set(xlabel="expert" + (f", by lift of {self.domain}" if self.sort == "lift" else ""))
        figure.alt = (
            f"Domain lift of {E} experts in {self.layers[self.layer]}, {G} domains, with the range of shuffled labels "
            f"in grey and a line at 1. {self.view['note']} {self.sampled}"
        )
        return figure


def _dots(ax: Axes, table: LayerTable, row: int, order: list[int], brush: list[int]) -> None:
    E = len(order)
    lift, low, high = (values[row].tolist() for values in (table.lift_GE, table.low_GE, table.high_GE))
    for x, e in enumerate(order):
        color = style.PALETTE[e] if len(style.PALETTE) >= E else style.LIT if e in brush else style.INK
        if e in brush:
            ax.axvspan(x - 0.5, x + 0.5, color=style.LIT, alpha=0.16, linewidth=0)
        ax.add_patch(Rectangle((x - 0.5, low[e]), 1, high[e] - low[e], color=style.GREY, alpha=0.55, linewidth=0))
        ax.plot([x, x], [1, lift[e]], color=color, linewidth=1.2)
        filled = color if table.outside_GE[row, e] else "white"
        ax.plot(x, lift[e], "o", color=color, markerfacecolor=filled, markersize=8 if E <= 16 else 5)
    ax.axhline(1, color=style.INK, linestyle="--", linewidth=1.1)
    top = float(max(table.lift_GE.max(), table.high_GE.max()))
    ax.set(xlim=(-0.5, E - 0.5), xticks=[], ylim=(-0.05 * top, 1.1 * top))
    grey = Rectangle((0, 0), 1, 1, color=style.GREY, alpha=0.55)
    ax.legend([grey], ["shuffled labels, 95 % (below: hatched)"], loc="lower right", bbox_to_anchor=(1, 1))


def _cells(figure: Picture, ax: Axes, table: LayerTable, order: list[int]) -> None:
    shown = torch.where(table.outside_GE, table.lift_GE, torch.full_like(table.lift_GE, float("nan")))[:, order]
    ax.patch.set(facecolor="white", edgecolor=style.GREY, hatch="/////")
    top = float(max(table.lift_GE.max(), 1.0))
    image = ax.imshow(shown.numpy(), aspect="auto", vmin=0, vmax=top, interpolation="nearest")
    figure.colorbar(image, ax=ax, label="lift")
    ax.set_yticks(range(len(table.domains)), table.domains)
    ax.grid(False)


def _short(values: torch.Tensor) -> list:
    return (values.double() * 1e4).round().div(1e4).tolist()


def _all_of(tokens: int) -> str:
    return "the one token" if tokens == 1 else f"all {tokens:,} tokens"


def _number(value: Any) -> str:
    return f"{float(value):.3g}"


def _verdict(share: Share) -> str:
    if not share.outside:
        return "what chance gives"
    return f"{'more' if share.share > share.high else 'less'} than chance, lift {_number(share.lift)}"


def _experts(numbers: Sequence[int]) -> str:
    """As in "expert 3", "experts 0–4 and 9": runs of three or more are drawn together."""
    runs: list[list[int]] = []
    for e in sorted(numbers):
        if runs and e == runs[-1][-1] + 1:
            runs[-1].append(e)
        else:
            runs.append([e])
    parts = [p for run in runs for p in ([f"{run[0]}–{run[-1]}"] if len(run) > 2 else map(str, run))]
    words = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
    return f"expert{'s' if len(numbers) > 1 else ''} {words}"
