"""What training runs look like as loads alone: one Run a name, read from the records that were kept on the way."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.core.metrics import entropy, load, max_violation
from labkit.core.routing import Routing
from labkit.show.widgets.layers import layer_names

MAX_RUNS = 6
Record = Routing | Sequence[Routing]


@dataclass(frozen=True, eq=False)
class Run:
    """One training run, by recorded step: S steps in order, L layers, E experts.

    Args:
        load_SLE: each expert's share of the choices of its layer.
        max_violation_SL, entropy_SL: of each layer's load; the entropy is normalised, so that 1 is even.
        loss_S: the mean loss of the record in nats, NaN where it carries none.
    """

    name: str
    steps: tuple[int, ...]
    load_SLE: Tensor
    max_violation_SL: Tensor
    entropy_SL: Tensor
    loss_S: Tensor

    def at(self, step: int) -> int:
        """The position of the record nearest to this step; of two as near, the earlier.

        >>> Run("r", (0, 10, 20), *[torch.zeros(3)] * 4).at(14)
        1
        """
        return nearest(self.steps, step)

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """(load_SE, max_violation_S, entropy_S) of the layer at this position, or of all layers where it is −1.

        Experts of the same number in two layers have nothing in common. So all layers together are a mean by rank: the
        first load is the mean of every layer's busiest expert. Max violation and entropy are means over the layers.
        """
        if layer >= 0:
            return self.load_SLE[:, layer], self.max_violation_SL[:, layer], self.entropy_SL[:, layer]
        ranked_SLE = self.load_SLE.sort(dim=-1, descending=True).values
        return ranked_SLE.mean(1), self.max_violation_SL.mean(1), self.entropy_SL.mean(1)


def nearest(ordered: Sequence[int], value: int) -> int:
    """The position of the number nearest to `value` in an ascending sequence; of two as near, the lower.

    >>> nearest((0, 10, 20), 15), nearest((0, 10, 20), 99), nearest((0, 10, 20), -5)
    (1, 2, 0)
    """
    after = min(bisect_left(ordered, value), len(ordered) - 1)
    before = max(after - 1, 0)
    return before if abs(value - ordered[before]) <= abs(ordered[after] - value) else after


def read_runs(runs: Mapping[str, Mapping[int, Record]]) -> tuple[tuple[Run, ...], list[str]]:
    """The runs in the order given, and the names of their layers.

    Args:
        runs: from a name to a mapping from the training step to the record of a batch, or to one record a layer.

    Raises ValueError for no run or more than six, a run without records, a step that is no whole number, a record of no
    token, or runs that differ in layers or experts.
    """
    if not isinstance(runs, Mapping) or not 1 <= len(runs) <= MAX_RUNS:
        given = f"{len(runs)} runs" if isinstance(runs, Mapping) else type(runs).__name__
        raise ValueError(f"balance_over_training got {given}; give 1 to {MAX_RUNS} as {{name: {{step: Routing}}}}")
    found, shapes, layers = [], {}, []
    for name, records in runs.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"balance_over_training: a run is called {name!r}; give each a name in words")
        by_step = _in_order(name, records)
        layers = layers or layer_names(next(iter(by_step.values())))
        shapes |= {(len(r), r[0].num_experts): f"run {name!r}, step {step}" for step, r in by_step.items()}
        if len(shapes) > 1:
            said = "; ".join(f"{L} layers × {E} experts in {where}" for (L, E), where in shapes.items())
            raise ValueError(f"balance_over_training got {said}; give runs of one shape, or they cannot be compared")
        found.append(_run(name, by_step))
    return tuple(found), layers


def _in_order(name: str, records: Mapping[int, Record]) -> dict[int, tuple[Routing, ...]]:
    who = f"balance_over_training: run {name!r}"
    if not isinstance(records, Mapping) or not records:
        raise ValueError(f"{who} is {type(records).__name__} of no step; give {{step: Routing}} with at least one step")
    if bad := [step for step in records if isinstance(step, bool) or not isinstance(step, int) or step < 0]:
        raise ValueError(f"{who} has a step {bad[0]!r}; steps are whole numbers from 0")
    by_step = {}
    for step in sorted(records):
        layers = (records[step],) if isinstance(records[step], Routing) else records[step]
        if not isinstance(layers, Sequence) or not layers or not all(isinstance(r, Routing) for r in layers):
            raise ValueError(f"{who} has {type(layers).__name__} at step {step}; give a Routing, or one a layer")
        if any(r.num_tokens == 0 or r.num_experts != layers[0].num_experts for r in layers):
            raise ValueError(f"{who}, step {step}: give layers of as many experts, each with at least one token")
        by_step[step] = tuple(layers)
    return by_step


def _run(name: str, by_step: dict[int, tuple[Routing, ...]]) -> Run:
    rows = list(by_step.values())
    return Run(
        name,
        tuple(by_step),
        torch.stack([torch.stack([load(r).cpu() for r in layers]) for layers in rows]),
        torch.tensor([[max_violation(r) for r in layers] for layers in rows], dtype=torch.float64),
        torch.tensor([[entropy(r, normalised=True) for r in layers] for layers in rows], dtype=torch.float64),
        torch.tensor([_mean_loss(layers) for layers in rows], dtype=torch.float64),
    )


def _mean_loss(layers: tuple[Routing, ...]) -> float:
    carried = next((r.loss_T for r in layers if r.loss_T is not None), None)
    return math.nan if carried is None else float(carried.detach().double().nanmean())
