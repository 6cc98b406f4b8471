"""The load map: layers × experts, each cell the load of an expert beside the even share 1/E.

One colour scale for all: its middle is the even share, so that idle and overloaded experts differ in colour. Python
counts, sorts and says in words what is picked; JavaScript draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import traitlets
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from labkit.core.metrics import entropy, load, max_violation
from labkit.core.routing import Routing
from labkit.show import style
from labkit.show.picture import Picture, new
from labkit.show.style import INK, LIT, SEQUENTIAL, expert_colors
from labkit.show.widgets.base import LabWidget, esm
from labkit.show.widgets.bounds import OutOfRange, within
from labkit.show.widgets.layers import as_layers, layer_names

SORTS = ("number", "layer", "overall")


class LoadMap(LabWidget):
    """A live heat map of load, layer by layer.

    Args:
        records: one Routing, or one a layer.

    Traits that the browser and the kernel share: `layer` (a position in `records`), `expert` (a number from 0) and
    `sort`: the columns by "number", by load in the picked "layer" or by "overall" load, busiest first. `order` are the
    experts as the columns stand; `loads` are the picked layer's shares.
    Raises ValueError for what is no record, records of different batches, and a trait outside its range.
    """

    _esm = esm("load_map")

    layer = traitlets.Int(0).tag(sync=True)
    expert = traitlets.Int(0).tag(sync=True)
    sort = traitlets.Unicode("number").tag(sync=True)
    order = traitlets.List(traitlets.Int()).tag(sync=True)
    ranking = traitlets.List(traitlets.Int()).tag(sync=True)
    layers = traitlets.List(traitlets.Unicode()).tag(sync=True)
    relative = traitlets.List().tag(sync=True)
    top = traitlets.Float(2.0).tag(sync=True)
    says = traitlets.Unicode("").tag(sync=True)

    def __init__(self, records: Routing | Sequence[Routing]) -> None:
        layers = as_layers(records, "load_map")
        self._load_LE = torch.stack([load(r) for r in layers]).double()
        self._balance = [(max_violation(r), entropy(r, normalised=True)) for r in layers]
        relative_LE = self._load_LE * self._load_LE.shape[1]
        super().__init__(
            layers=layer_names(layers),
            relative=[[round(v, 3) for v in row] for row in relative_LE.tolist()],
            top=max(2.0, float(relative_LE.max())),
            sampled=f"Counted over every token of the record, {layers[0].num_tokens:,} in all.",
        )
        self.expert = int(self._load_LE[0].argmax())
        self._look()
        self.observe(self._look, names=["layer", "expert", "sort"])

    @property
    def loads(self) -> list[float]:
        """The share of the choices that each expert of the picked layer gets, by number."""
        return self._load_LE[self.layer].tolist()

    @traitlets.validate("layer", "expert")
    def _check_position(self, proposal: Any) -> int:
        name = proposal["trait"].name
        last = self._load_LE.shape[0 if name == "layer" else 1] - 1
        return within(f"LoadMap.{name}", proposal["value"], 0, last)

    @traitlets.validate("sort")
    def _check_sort(self, proposal: Any) -> str:
        if proposal["value"] not in SORTS:
            raise OutOfRange(f"LoadMap.sort is {proposal['value']!r}; choose of {', '.join(SORTS)}")
        return proposal["value"]

    def _look(self, change: Any = None) -> None:
        self.ranking = _busiest_first(self._load_LE[self.layer])
        by_load = {"layer": self.ranking, "overall": _busiest_first(self._load_LE.sum(0))}
        self.order = by_load.get(self.sort, list(range(self._load_LE.shape[1])))
        self.says = f"{self._cell_in_words()} {self._layer_in_words()} {self._sort_in_words()}".rstrip()

    def _cell_in_words(self) -> str:
        loads, E = self.loads, len(self.loads)
        share, rank = loads[self.expert], self.ranking.index(self.expert) + 1
        return (
            f"{self.layers[self.layer].capitalize()}, expert {self.expert}: {100 * share:.2f} % of the choices, "
            f"{share * E:.2f} × the even share 1/{E} = {100 / E:.2f} %; number {rank} of {E} by load."
        )

    def _layer_in_words(self) -> str:
        violation, evenness = self._balance[self.layer]
        idle = sum(v == 0 for v in self.loads)
        nothing = f", experts with nothing to do: {idle} of {len(self.loads)}" if idle else ""
        return f"The layer: MaxVio {violation:.2f}, normalised entropy {evenness:.3f}{nothing}."

    def _sort_in_words(self) -> str:
        if self.sort != "overall" or len(self.layers) == 1:
            return ""
        return "Overall is the sum over the layers; experts of one number in two layers have only the number in common."

    def picture(self) -> Picture:
        """The map as it is sorted, and below it the picked layer's loads, busiest first."""
        L, E = self._load_LE.shape
        relative_LE = (self._load_LE * E)[:, self.order].numpy()
        with style.use():
            figure, (ax, below) = new(1, 2, size=(8, min(7.0, 3.4 + 0.17 * L)))
            image = ax.imshow(
                relative_LE, aspect="auto", cmap=SEQUENTIAL, norm=TwoSlopeNorm(1, 0, self.top), interpolation="nearest"
            )
            bar = figure.colorbar(image, ax=ax, ticks=[0, 1, self.top])
            bar.ax.set_yticklabels(["0", "1 (even, 1/E)", f"{self.top:.3g}"])
            bar.set_label("load × E (no unit)")
            column = self.order.index(self.expert)
            for ink, width in (("white", 5), (LIT, 2.5)):
                ax.plot(column, self.layer, "s", color="none", markeredgecolor=ink, markersize=9, markeredgewidth=width)
            rows, columns = range(0, L, math.ceil(L / 16)), range(0, E, math.ceil(E / 16))
            ax.set_yticks(rows, [self.layers[i].removeprefix("layer ") for i in rows])
            ax.set_xticks(columns, [self.order[i] for i in columns])
            by = {"number": "", "layer": f", by load in {self.layers[self.layer]}", "overall": ", by overall load"}
            ax.set(title="Load by layer and expert", ylabel="layer", xlabel=f"expert{by[self.sort]}")
            ax.grid(False)
            self._profile(below)
        busiest = (self._load_LE * E).flatten().argmax()
        figure.alt = (
            f"Load map of {L} {'layer' if L == 1 else 'layers'} by {E} {'expert' if E == 1 else 'experts'}. "
            f"The busiest of all is expert {int(busiest) % E} of {self.layers[int(busiest) // E]}, with "
            f"{float(self._load_LE.max()) * E:.2f} × the even share. Picked: {self.says}"
        )
        return figure

    def _profile(self, ax: Axes) -> None:
        E = len(self.loads)
        own = expert_colors(E, self.expert)
        ax.bar(range(E), [100 * self.loads[e] for e in self.ranking], color=[own[e] for e in self.ranking], width=0.8)
        ax.axhline(100 / E, color=INK, linestyle="--", linewidth=1.2, label=f"1/E = {100 / E:.3g} %")
        ax.plot(self.ranking.index(self.expert), 0, "^", color=LIT, markersize=8, clip_on=False, label="picked")
        marked = range(0, E, math.ceil(E / 16))
        ax.set_xticks(marked, [self.ranking[i] for i in marked])
        name = self.layers[self.layer]
        ax.set(
            title=f"{name.capitalize()}, busiest first",
            xlabel="expert",
            ylabel="share of choices (%)",
            xlim=(-0.5, E - 0.5),
        )
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)


def _busiest_first(load_E: torch.Tensor) -> list[int]:
    return load_E.sort(descending=True, stable=True).indices.tolist()


def load_map(records: Routing | Sequence[Routing]) -> LoadMap:
    """A heat map of the load of every expert in every layer, relative to the even share 1/E.

    Args:
        records: one Routing, or one a layer about the same tokens.

    Raises ValueError as `LoadMap` does.
    """
    return LoadMap(records)
