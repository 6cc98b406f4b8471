"""Where tokens go: a band from each group of tokens to each expert, and what a limited capacity drops.

Dropping is `core.capacity`: all tokens of the record compete for the places of one batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import traitlets
from torch import Tensor

from labkit.core.capacity import POLICIES, Policy, expert_capacity, kept
from labkit.core.metrics import drop_rate
from labkit.core.routing import Routing
from labkit.show.picture import Picture
from labkit.show.widgets.base import LabWidget, esm
from labkit.show.widgets.bounds import OutOfRange, within
from labkit.show.widgets.flow_layout import count, place
from labkit.show.widgets.groups import groups
from labkit.show.widgets.layers import as_layers, counted, layer_names, percent, visible

FACTORS = (0.25, 4.0)
EXAMPLES = 6
NOBODY = (-1, -1)


class Flow(LabWidget):
    """A live view of the way from tokens to experts.

    Args:
        records: one record, or one a layer.
        layer: a position in the sequence of records.
        capacity_factor: 0.25 to 4; None for experts without a limit.
        policy: who gets a place first, "position" or "score" (`core.capacity.kept`).

    Traits that browser and kernel share: `layer`, `capacity_factor`, `policy`, and `path`, the (group, expert) in hand,
    (−1, −1) for none. `group_names` names the groups. `drop_rate`, `all_GE` and `kept_GE` hold what is seen.
    Raises ValueError for anything but records of one batch, and for values out of range.
    """

    _esm = esm("flow")

    layer = traitlets.Int(0).tag(sync=True)
    capacity_factor = traitlets.Float(None, allow_none=True).tag(sync=True)
    policy = traitlets.Unicode("position").tag(sync=True)
    path = traitlets.Tuple(traitlets.Int(), traitlets.Int(), default_value=NOBODY).tag(sync=True)
    factors = traitlets.List(traitlets.Float(), list(FACTORS)).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    group_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    detail = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        records: Routing | Sequence[Routing],
        layer: int = 0,
        capacity_factor: float | None = None,
        policy: Policy = "position",
    ) -> None:
        self._layers = as_layers(records, "flow")
        self._groups = groups(self._layers[0])
        super().__init__(
            names=layer_names(self._layers), group_names=list(self._groups.names), layer=layer,
            capacity_factor=capacity_factor, policy=policy, sampled=self._groups.said,
        )  # fmt: skip
        self._send_view()
        self._send_detail()
        self.observe(self._send_view, names=["layer", "capacity_factor", "policy"])
        self.observe(self._send_detail, names=["path", "view"])

    @property
    def capacity(self) -> int | None:
        """How many tokens one expert takes; None without a limit."""
        if self.capacity_factor is None:
            return None
        r = self._record
        return expert_capacity(r.num_tokens, r.num_experts, r.top_k, self.capacity_factor)

    @property
    def kept_TK(self) -> Tensor:
        """Which choices get a place; [T, K], bool."""
        return self._kept_TK

    @property
    def drop_rate(self) -> float:
        """The share of all choices that get no place."""
        return drop_rate(self._kept_TK)

    @property
    def all_GE(self) -> Tensor:
        """The choices of each group for each expert; [G, E], int64."""
        return self._counts.all_GE

    @property
    def kept_GE(self) -> Tensor:
        """Those of them that get a place; [G, E], int64."""
        return self._counts.kept_GE

    @property
    def _record(self) -> Routing:
        return self._layers[self.layer]

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Any) -> int:
        return within("Flow.layer", proposal["value"], 0, len(self._layers) - 1)

    @traitlets.validate("capacity_factor")
    def _check_factor(self, proposal: Any) -> float | None:
        factor, (low, high) = proposal["value"], FACTORS
        if factor is not None and not low <= factor <= high:
            raise OutOfRange(f"Flow.capacity_factor is {factor}; give {low:g} to {high:g}, or None for no limit")
        return factor

    @traitlets.validate("policy")
    def _check_policy(self, proposal: Any) -> str:
        if proposal["value"] not in POLICIES:
            raise OutOfRange(f"Flow.policy is {proposal['value']!r}; choose one of {', '.join(POLICIES)}")
        return proposal["value"]

    @traitlets.validate("path")
    def _check_path(self, proposal: Any) -> tuple[int, int]:
        path = tuple(proposal["value"])
        if path != NOBODY:
            within("Flow.path's group", path[0], 0, len(self._groups.names) - 1)
            within("Flow.path's expert", path[1], 0, self._layers[0].num_experts - 1)
        return path

    def _send_view(self, change: Any = None) -> None:
        r, g = self._record, self._groups
        full = self.capacity is None
        self._kept_TK = (
            torch.ones_like(r.topk_ids_TK, dtype=torch.bool) if full else kept(r, self.capacity, self.policy)
        )
        ids_TK, G, E = r.topk_ids_TK, len(g.names), r.num_experts
        self._counts = count(g.group_T, ids_TK, G, E, None if full else self._kept_TK)
        self.view = {
            **place(self._counts),
            "capacity": self.capacity,
            "tokens": r.num_tokens,
            "top_k": r.top_k,
            "policy": self.policy,
            "note": self._note(),
        }

    def _note(self) -> str:
        r, total = self._record, self._counts.total
        choices = f"{self.names[self.layer].capitalize()}: {counted(r.num_tokens, 'token')}, {counted(total, 'choice')}"
        if self.capacity is None:
            share_E = self._counts.all_GE.sum(0) / total
            busiest = int(share_E.argmax())
            return (
                f"{choices}; no limit, nothing is dropped. The busiest expert, {busiest}, gets "
                f"{percent(float(share_E[busiest]))} of them; an even load is 1/E = {percent(1 / r.num_experts)}."
            )
        nothing = float((~self._kept_TK.any(1)).double().mean())
        places = counted(self.capacity, "place")
        order = "first come, first served" if self.policy == "position" else "the highest score first"
        return (
            f"{choices}; each expert has {places} (capacity factor {self.capacity_factor:g}), {order}: "
            f"{percent(self.drop_rate)} of the choices are dropped, and {percent(nothing)} of the tokens lose every "
            "choice."
        )

    def _send_detail(self, change: Any = None) -> None:
        self.detail = self._words(*self.path) if self.path != NOBODY else ""

    def _words(self, g: int, e: int) -> str:
        all_GE, kept_GE, r = self._counts.all_GE, self._counts.kept_GE, self._record
        n, whole, lost = int(all_GE[g, e]), int(all_GE[g].sum()), int((all_GE - kept_GE)[g, e])
        overall = float(all_GE[:, e].sum()) / self._counts.total
        dropped = "" if self.capacity is None else f" {lost:,} of them are dropped."
        rows = ((self._groups.group_T == g) & (r.topk_ids_TK == e).any(1)).nonzero().flatten().tolist()
        return (
            f"“{self._groups.names[g]}” → expert {e}: {counted(n, 'token')}, {percent(n / whole)} of this group's "
            f"{counted(whole, 'choice')} (of all choices: {percent(overall)}).{dropped}{self._examples(rows)}"
        )

    def _examples(self, rows: list[int]) -> str:
        """The commonest tokens of these rows in words."""
        tokens = self._layers[0].tokens
        if tokens is None or not rows:
            return ""
        common = Counter(tokens[t] for t in rows).most_common(EXAMPLES)
        return f" Commonest: {', '.join(f'“{visible(text)[:24]}” {n:,}×' for text, n in common)}."

    def picture(self) -> Picture:
        """The bands and each expert's load, as they stand."""
        from labkit.show.widgets.flow_picture import draw

        return draw(self)


def flow(
    records: Routing | Sequence[Routing],
    layer: int = 0,
    capacity_factor: float | None = None,
    policy: Policy = "position",
) -> Flow:
    """The way from tokens to experts on one record, or on one a layer; see `Flow`.

    >>> r = Routing.of(torch.zeros(2, 2), torch.tensor([[0], [0]]), torch.ones(2, 1), tokens=("a", "b"))
    >>> w = flow(r, capacity_factor=1.0)
    >>> w.drop_rate, w.kept_GE.tolist()
    (0.5, [[1, 0], [0, 0]])
    """
    return Flow(records, layer, capacity_factor, policy)
