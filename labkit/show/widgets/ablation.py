"""Expert ablation: what it costs to remove an expert, who takes its tokens over, and which predictions suffer most.

Python compares records and says it in words; JavaScript draws `view` and sends back expert, domain and order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import traitlets

from labkit.core import metrics
from labkit.core.routing import Routing
from labkit.show.picture import Picture
from labkit.show.widgets import ablation_tables as tables
from labkit.show.widgets.ablation_picture import draw
from labkit.show.widgets.ablation_tables import EVERYTHING, Change
from labkit.show.widgets.base import LabWidget, esm
from labkit.show.widgets.bounds import OutOfRange
from labkit.show.widgets.layers import as_layers, layer_names

SORTS = ("number", "load", "effect")
TOKENS_AT_MOST = {True: 2_000_000, False: 500_000}  # summed over the removed experts, with and without sequences

Records = Routing | Sequence[Routing]


def ablation(baseline: Records, ablated: Mapping[int, Records] | None = None, layer: int | None = None) -> Ablation:
    """A live view of what each expert is worth: the change of the loss without it, and who takes its tokens over.

    Args:
        baseline: the record of the whole model, or one a layer; with `loss_T` if anything is removed.
        ablated: from an expert's number to the record, or records, of the same tokens without that expert
            (`labkit.nn.trace(model, batch, ablate=(layer, expert))`). Without any, the logits alone say who would be
            next best.
        layer: which layer the experts were removed from, a position in `baseline`; by default the only one in which
            they take no token any more.

    Raises ValueError for records without losses or of other tokens, and for an expert that still takes tokens.
    """
    return Ablation(baseline, ablated, layer)


class Ablation(LabWidget):
    """The widget of `ablation`.

    Traits that the browser and the kernel share: `expert`, `domain` (a label, or "all tokens") and `sort` ("number",
    "load" or "effect"). `effect` holds, for each domain, the change of the loss without the expert
    (`ablation_tables.Change`; empty if no record without it was given); `heirs` the share of its tokens that each other
    expert takes over, the largest first.
    """

    _esm = esm("ablation")

    expert = traitlets.Int(0).tag(sync=True)
    domain = traitlets.Unicode(EVERYTHING).tag(sync=True)
    sort = traitlets.Unicode("number").tag(sync=True)
    domains = traitlets.List(traitlets.Unicode()).tag(sync=True)
    layer = traitlets.Unicode("").tag(sync=True)
    view = traitlets.Dict().tag(sync=True)

    def __init__(
        self, baseline: Records, ablated: Mapping[int, Records] | None = None, layer: int | None = None
    ) -> None:
        layers = as_layers(baseline, "ablation")
        removed = {e: as_layers(r, "ablation") for e, r in (ablated or {}).items()}
        at = _position(layers, removed, layer)
        self._baseline = layers[at]
        self._without = _records(self._baseline, removed, at, len(layers))
        self._load = metrics.load(self._baseline)
        self._effects = self._changes()
        self.effect: dict[str, Change] = {}
        self.heirs: dict[int, float] = {}
        names = [EVERYTHING, *sorted(set(self._baseline.domains or ()))]
        first = max(self._effects, key=lambda e: self._effects[e][EVERYTHING].change, default=int(self._load.argmax()))
        super().__init__(domains=names, expert=first, layer=layer_names(layers)[at])
        self._in_hand: int | None = None
        self.sampled = self._said_of_sample()
        self._look()
        self.observe(self._look, names=["expert", "domain", "sort"])

    @traitlets.validate("expert", "domain", "sort")
    def _check_choice(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        E = self._baseline.num_experts
        allowed = {"expert": range(E), "domain": self.domains, "sort": SORTS}[name]
        if value not in allowed:
            shown = f"a number from 0 to {E - 1}" if name == "expert" else "one of " + ", ".join(map(repr, allowed))
            raise OutOfRange(f"Ablation.{name} is {value!r}; give {shown}")
        return value

    @property
    def order(self) -> list[int]:
        """The experts from left to right."""
        worth = {
            "number": lambda e: e,
            "load": lambda e: -float(self._load[e]),
            "effect": lambda e: -self._effects[e][self.domain].change if e in self._effects else float("inf"),
        }[self.sort]
        return sorted(range(len(self._load)), key=worth)

    def _changes(self) -> dict[int, dict[str, Change]]:
        """Every removal's effect, from a sample of the tokens where all would take long; says so in `sampled`."""
        if not self._without:
            return {}
        base, T = self._baseline, self._baseline.num_tokens
        limit = TOKENS_AT_MOST[base.sequence_T is not None] // len(self._without)
        mask_T = tables.sample_of(base, limit) if limit < T else torch.ones(T, dtype=torch.bool)
        self._counted = int(mask_T.sum())
        base = base.keep(mask_T)
        return {e: tables.effects(base, record.keep(mask_T)) for e, record in self._without.items()}

    def _look(self, change: Any = None) -> None:
        if self._in_hand != self.expert:  # several traits can change in one message, in any order
            self._take_in_hand()
        E, values = len(self._load), [c for effect in self._effects.values() for c in effect.values()]
        known = [0.0, *(x for c in values for x in (c.change, c.low, c.high) if x is not None)]
        self.view = {
            "order": self.order,
            "load": _short(self._load.tolist()),
            "effects": [self._triple(e) for e in range(E)],
            "range": [min(known), max(known)],
            "heirs": _short([self.heirs.get(e, 0.0) for e in range(E)]),
            "by_load": _short(self._by_load),
            "traced": self.expert in self._without,
            "worst": [vars(one) for one in self._worst],
            "note": self._note(),
        }

    def _take_in_hand(self) -> None:
        e = self._in_hand = self.expert
        self.effect = self._effects.get(e, {})
        went_E, self._count = (
            tables.heirs(self._baseline, self._without[e], e)
            if e in self._without
            else tables.next_best(self._baseline, e)
        )
        self._by_load = tables.by_load(self._baseline, e).tolist()
        ranked = torch.argsort(went_E, descending=True, stable=True).tolist()
        self.heirs = {i: float(went_E[i]) for i in ranked if went_E[i] > 0}

    @property
    def _worst(self) -> list[tables.Suffering]:
        if self.expert not in self._without:
            return []
        return tables.suffering(self._baseline, self._without[self.expert], self.domain)

    def _triple(self, expert: int) -> list[float | None] | None:
        if expert not in self._effects:
            return None
        change = self._effects[expert][self.domain]
        return [None if x is None else round(x, 6) for x in (change.change, change.low, change.high)]

    def _note(self) -> str:
        e, E = self.expert, len(self._load)
        said = f"{self.layer}, expert {e} (load {100 * self._load[e]:.1f} %, even {100 / E:.3g} %)"
        if self.effect:
            said += f": without it the loss of {self.domain} changes by {self.effect[self.domain].told}."
        else:
            said += ": no record without it, so this is what its logits say."
        taken = "takes over" if self.effect else "is next best for"
        top = [f"expert {i} {taken} {100 * share:.0f} %" for i, share in list(self.heirs.items())[:3]]
        if not top:
            return said + (" No token chose it." if self._count == 0 else " Nobody is left to take its tokens over.")
        tokens = "token" if self._count == 1 else f"{self._count:,} tokens"
        return said + f" Of its {tokens}, {', '.join(top)}."

    def _said_of_sample(self) -> str:
        base, removed = self._baseline, len(self._without)
        tokens = "the one token" if base.num_tokens == 1 else f"all {base.num_tokens:,} tokens"
        said = f"Counted over {tokens}; only shares by expert are sent."
        if not removed:
            return f"{said} No record without an expert was given, so nothing is known about the loss."
        if self._counted < base.num_tokens:
            said += f" The change of the loss: over {self._counted:,} of them, evenly spaced."
        drawn = "sequences" if base.sequence_T is not None else "tokens"
        said += f" Intervals: 95 %, from drawing {drawn} with replacement."
        missing = base.num_experts - removed
        return said + (f" No record was given without {missing} of the {base.num_experts} experts." if missing else "")

    def picture(self) -> Picture:
        """The effect and the load of every expert, and who takes over, as they stand."""
        figure = draw(self.view, self.expert, self.domain, self.layer)
        figure.alt = f"Expert ablation, {len(self._load)} experts. {self._note()} {self.sampled}"
        return figure


def _position(layers: tuple[Routing, ...], removed: Mapping[int, tuple[Routing, ...]], layer: int | None) -> int:
    if layer is not None:
        if not 0 <= layer < len(layers):
            raise ValueError(f"ablation: layer is {layer}; give a position from 0 to {len(layers) - 1}")
        return layer
    return tables.removed_from(layers, removed) if removed and len(layers) > 1 else 0


def _records(baseline: Routing, removed: Mapping[int, tuple[Routing, ...]], at: int, count: int) -> dict[int, Routing]:
    """From each removed expert to the record of the layer at hand; ValueError for one that does not fit."""
    found = {}
    for e, records in removed.items():
        if len(records) not in (1, count):
            raise ValueError(f"ablation: without expert {e} there are {len(records)} layers, with it {count}")
        record = records[at] if len(records) == count else records[0]
        if isinstance(e, bool) or not isinstance(e, int) or not 0 <= e < baseline.num_experts:
            raise ValueError(f"ablation: {e!r} was removed; give numbers from 0 to {baseline.num_experts - 1}")
        if (record.num_tokens, record.num_experts) != (baseline.num_tokens, baseline.num_experts):
            raise ValueError(f"ablation: the record without expert {e} is of other tokens; trace the same batch")
        if still := int(record.tokens_per_expert_E[e]):
            raise ValueError(
                f"ablation: expert {e} still takes {still} tokens in its record; trace it with ablate=(layer, {e}), "
                "and say with layer= which layer that was"
            )
        found[e] = record
    return found


def _short(values: Sequence[float]) -> list[float]:
    return [round(x, 5) for x in values]
