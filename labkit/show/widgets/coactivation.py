"""Co-activation: which experts a layer chooses together, as counts or against chance, and for which tokens.

Python counts, orders and finds the tokens of a pair; what travels is one character a cell and a dozen examples. Counts
alone mislead twice: busy experts meet often by chance, and an expert that is chosen once a token leaves fewer places
for the others. Lift (`metrics.coactivation_lift`) takes both out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import traitlets
from torch import Tensor

from labkit.core.routing import Routing
from labkit.show.picture import Picture
from labkit.show.style import LIT, PALETTE
from labkit.show.widgets.base import LabWidget, esm
from labkit.show.widgets.bounds import OutOfRange, within
from labkit.show.widgets.coactivation_picture import draw
from labkit.show.widgets.layers import as_layers, layer_names, percent
from labkit.show.widgets.pairs import EXAMPLES, FARTHEST, Pairs, chance_range

MODES, ORDERS = ("raw", "lift"), ("number", "cluster")
STEPS = 16  # colours on either side of a lift of 1
LEVELS = "0123456789abcdefghijklmnopqrstuvw"
HOLE = "."
MIDDLE = "#F4F4F4"


def diverging() -> list[str]:
    """The colours of a lift from low to high, "#RRGGBB": blue, near white at 1, vermilion; from the house palette."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    colors = LinearSegmentedColormap.from_list("lift", [PALETTE[0], MIDDLE, LIT], N=2 * STEPS + 1)
    return [to_hex(colors(i)) for i in range(2 * STEPS + 1)]


class CoactivationMap(LabWidget):
    """A live E × E map of the pairs that one layer chooses together.

    Args:
        records: one Routing, or one a layer about the same tokens.
        layer: the position in `records` to start with.

    Traits that the browser and the kernel share: `layer`, `pair` (two expert numbers), `mode` ("lift" or "raw") and
    `order_by` ("number" or "cluster"). `examples` are tokens of the pair in their context, `shares` the domains of all
    its tokens beside those of the whole record, `order` the experts as rows and columns stand.
    Raises ValueError for what is no record, records of different batches, and a trait outside its range.
    """

    _esm = esm("coactivation")

    layer = traitlets.Int(0).tag(sync=True)
    pair = traitlets.List(traitlets.Int(), [0, 0]).tag(sync=True)
    mode = traitlets.Unicode("lift").tag(sync=True)
    order_by = traitlets.Unicode("number").tag(sync=True)
    order = traitlets.List(traitlets.Int()).tag(sync=True)
    layers = traitlets.List(traitlets.Unicode()).tag(sync=True)
    diverging = traitlets.List(traitlets.Unicode()).tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    examples = traitlets.List(traitlets.Dict()).tag(sync=True)
    shares = traitlets.List(traitlets.Dict()).tag(sync=True)
    says = traitlets.Unicode("").tag(sync=True)

    def __init__(self, records: Routing | Sequence[Routing], layer: int = 0) -> None:
        self._records = as_layers(records, "coactivation_map")
        self._pairs: dict[int, Pairs] = {}
        super().__init__(layers=layer_names(self._records), layer=layer, diverging=diverging())
        self.pair = self._now.busiest()
        self._draw()
        self._find()
        self.observe(self._draw, names=["layer", "mode", "order_by"])
        self.observe(self._find, names=["layer", "pair", "mode"])

    @property
    def _now(self) -> Pairs:
        if self.layer not in self._pairs:
            self._pairs[self.layer] = Pairs.of(self._records[self.layer])
        return self._pairs[self.layer]

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Any) -> int:
        return within("CoactivationMap.layer", proposal["value"], 0, len(self._records) - 1)

    @traitlets.validate("pair")
    def _check_pair(self, proposal: Any) -> list[int]:
        value, E = proposal["value"], self._records[0].num_experts
        if len(value) != 2:
            raise OutOfRange(f"CoactivationMap.pair is {value}; give two experts, each 0 to {E - 1}")
        return [within("CoactivationMap.pair", e, 0, E - 1) for e in value]

    @traitlets.validate("mode", "order_by")
    def _check_word(self, proposal: Any) -> str:
        name, value = proposal["trait"].name, proposal["value"]
        words = MODES if name == "mode" else ORDERS
        if value not in words:
            raise OutOfRange(f"CoactivationMap.{name} is {value!r}; choose of {', '.join(words)}")
        return value

    def _draw(self, change: Any = None) -> None:
        pairs = self._now
        self.order = pairs.order() if self.order_by == "cluster" else list(range(pairs.record.num_experts))
        self.view = self._in_lift(pairs) if self.mode == "lift" else self._in_shares(pairs)

    def _in_lift(self, pairs: Pairs) -> dict[str, Any]:
        far = pairs.farthest()
        scaled_EE = (pairs.lift_EE.clamp_min(2**-far).log2() / far).clamp(-1, 1)  # −1 to 1, 0 where lift is 1
        end = f"{2**far:.2g}" + (" or more" if far == FARTHEST else "")
        return {
            "levels": _rows(STEPS + STEPS * scaled_EE, pairs.paired_EE),
            "title": "lift: tokens of the pair over what the loads alone explain, log scale",
            "marks": [[0.0, f"{2**-far:.2g} or less", False], [0.5, "1: loads alone", True], [1.0, end, False]],
            "baseline": _lift_baseline(pairs),
        }

    def _in_shares(self, pairs: Pairs) -> dict[str, Any]:
        chance, E, K = pairs.random_share, pairs.record.num_experts, pairs.record.top_k
        top = max(float(pairs.share_EE[pairs.apart_EE].max()) if E > 1 else 0.0, 1.5 * chance) or 0.01
        return {
            "levels": _rows(pairs.share_EE / top * (len(self.ramp) - 1), pairs.apart_EE),
            "title": "share of all tokens that chose both experts",
            "marks": [
                [0.0, "0", False],
                [chance / top, f"{percent(chance)}: random", True],
                [1.0, percent(top), False],
            ],
            "baseline": f"Random: a router that draws {K} of {E} experts gives each pair K(K − 1) / (E(E − 1)) = "
            f"{percent(chance)}. Busy experts meet more often than that by chance; lift takes the loads out.",
        }

    def _find(self, change: Any = None) -> None:
        pairs, (i, j) = self._now, self.pair
        positions = pairs.tokens_of(i, j)
        self.examples = pairs.examples(positions)
        self.shares = pairs.by_domain(positions)
        left_out = len(positions) > EXAMPLES
        self.sampled = f"{EXAMPLES} of the pair's {len(positions):,} tokens shown, evenly spaced." if left_out else ""
        self.says = self._in_words(pairs, i, j)

    def _in_words(self, pairs: Pairs, i: int, j: int) -> str:
        count, T = int(pairs.count_EE[i, j]), pairs.record.num_tokens
        where = f"{self.layers[self.layer].capitalize()}, "
        if i == j:
            return f"{where}expert {i} alone: chosen by {count:,} of {T:,} tokens, {percent(count / T)}. Not a pair."
        if pairs.record.top_k == 1:
            return f"{where}each token has one expert (K = 1): no two can be chosen together."
        said = f"{where}experts {i} and {j}: together for {count:,} of {T:,} tokens, {percent(count / T)}."
        lift = float(pairs.lift_EE[i, j])
        if count == 0:
            idle = [e for e in (i, j) if pairs.count_EE[e, e] == 0]
            return said + (f" Nobody chose expert {idle[0]}, so there is no lift." if idle else " Lift 0.")
        low, high = chance_range(count / lift, T)
        verdict = "within" if low <= lift <= high else "outside"
        return (
            f"{said} The loads alone explain {count / lift:,.1f}: lift {lift:.2f}, {verdict} what chance gives for so "
            f"many independent tokens, {low:.2f} to {high:.2f}."
        )

    def picture(self) -> Picture:
        """The map as it is ordered with the pair marked, and the pair's domains beside those of all tokens."""
        name = self.layers[self.layer]
        colors = self.diverging if self.mode == "lift" else self.ramp
        figure = draw(self.view, colors, self.order, self.pair, self.shares, f"Experts chosen together, {name}")
        said = [f"Co-activation of {len(self.order)} experts, {name}, {self.view['title']}.", self.view["baseline"]]
        said.append(f"Picked: {self.says}")
        if self.examples:
            said.append(f"Tokens such as {', '.join(repr(example['token']) for example in self.examples[:5])}.")
        if self.shares:
            of = [f"{s['domain']} {percent(s['share'])} (all {percent(s['baseline'])})" for s in self.shares]
            said.append(f"By domain: {'; '.join(of)}.")
        figure.alt = " ".join(said)
        return figure


def _rows(levels_EE: Tensor, shown_EE: Tensor) -> list[str]:
    """One text a row, one character a cell; a hole where nothing is shown."""
    both = zip(levels_EE.round().long().tolist(), shown_EE.tolist(), strict=True)
    return ["".join(LEVELS[v] if on else HOLE for v, on in zip(*row, strict=True)) for row in both]


def _lift_baseline(pairs: Pairs) -> str:
    E, K = pairs.record.num_experts, pairs.record.top_k
    if K == 1 or E == 1:
        return "With one expert a token there are no pairs."
    return (
        f"1 is a random router with these loads. The plain ratio P(i, j) / (P(i) P(j)) would put a router that draws "
        f"{K} of {E} at (K − 1)/K · E/(E − 1) = {pairs.random_ratio:.3f}, no expert being chosen twice; lift takes "
        f"that out. Of {E * (E - 1) // 2:,} pairs about one in twenty lies outside its range by chance."
    )


def coactivation_map(records: Routing | Sequence[Routing], layer: int = 0) -> CoactivationMap:
    """A map of the experts that are chosen together, by lift over chance or by count; pick a pair to see its tokens.

    Args:
        records: one Routing, or one a layer about the same tokens.
        layer: the position in `records` to start with.

    Raises ValueError as `CoactivationMap` does.
    """
    return CoactivationMap(records, layer)
