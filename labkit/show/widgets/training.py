"""Balance over training: the load of every expert at a training step, run beside run, and how it came to be.

Python keeps the loads of every record and says in words what is seen; JavaScript draws them and scrubs through the
steps. No token leaves the kernel. Two numbers sum up a load: MaxVio (Wang et al. 2024, arXiv 2408.15664) looks at the
busiest expert, the entropy at all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import traitlets

from labkit.show.picture import Picture
from labkit.show.widgets.base import LabWidget, esm
from labkit.show.widgets.bounds import OutOfRange
from labkit.show.widgets.layers import evenly
from labkit.show.widgets.training_picture import draw
from labkit.show.widgets.training_runs import Record, Run, nearest, read_runs

MAX_NUMBERS = 60_000
MEAN = "mean of all layers, by rank"


class BalanceOverTraining(LabWidget):
    """A live view of one to six training runs.

    Args:
        runs: from a name to a mapping from the training step to the Routing of a batch, or to one Routing a layer.

    Traits that the browser and the kernel share: `step` (the training step; set to any, it takes the nearest one that
    is shown), `run` (the name of the run in hand), `shown` (the names of the runs drawn) and `layer` (a position among
    the layers, or −1 for their mean by rank). `loads`, `max_violation`, `entropy` and `loss` are the numbers of every
    run at this step: from the run's record nearest to it.
    Raises ValueError for runs that cannot be read or compared, and for a trait's value that names nothing.
    """

    _esm = esm("training")

    step = traitlets.Int(0).tag(sync=True)
    run = traitlets.Unicode("").tag(sync=True)
    shown = traitlets.List(traitlets.Unicode()).tag(sync=True)
    layer = traitlets.Int(0).tag(sync=True)
    steps = traitlets.List(traitlets.Int()).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    layers = traitlets.List(traitlets.Unicode()).tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    says = traitlets.Unicode("").tag(sync=True)

    def __init__(self, runs: Mapping[str, Mapping[int, Record]]) -> None:
        self._runs, layers = read_runs(runs)
        names = [run.name for run in self._runs]
        every = sorted({step for run in self._runs for step in run.steps})
        most = max(2, MAX_NUMBERS // (len(names) * self._runs[0].load_SLE.shape[-1]))
        self._steps = [every[i] for i in evenly(len(every), most)]
        sampled = "" if len(every) <= most else f"{len(self._steps)} of {len(every):,} recorded steps, evenly spaced."
        super().__init__(
            steps=self._steps, names=names, run=names[0], shown=names, step=self._steps[0], sampled=sampled,
            layers=[*layers, MEAN] if len(layers) > 1 else layers,
        )  # fmt: skip
        self._look()
        self.observe(self._look, names="layer")
        self.observe(self._keep_in_hand, names="shown")
        self.observe(self._show_in_hand, names="run")
        self.observe(self._speak, names=["step", "run", "shown"])

    @property
    def loads(self) -> dict[str, list[float]]:
        """Each expert's share of the choices at this step, by run; by rank where `layer` is −1."""
        return {run.name: self._of_layer(run)[0][run.at(self.step)].tolist() for run in self._runs}

    @property
    def max_violation(self) -> dict[str, float]:
        """MaxVio at this step, by run."""
        return {run.name: float(self._of_layer(run)[1][run.at(self.step)]) for run in self._runs}

    @property
    def entropy(self) -> dict[str, float]:
        """The normalised entropy of the load at this step, by run: 1 is even."""
        return {run.name: float(self._of_layer(run)[2][run.at(self.step)]) for run in self._runs}

    @property
    def loss(self) -> dict[str, float]:
        """The mean loss at this step in nats, by run; only runs whose record carries one."""
        found = {run.name: float(run.loss_S[run.at(self.step)]) for run in self._runs}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    @traitlets.validate("step")
    def _snap(self, proposal: Any) -> int:
        return self._steps[nearest(self._steps, proposal["value"])]

    @traitlets.validate("run", "shown")
    def _check_names(self, proposal: Any) -> Any:
        trait, value, names = proposal["trait"].name, proposal["value"], [run.name for run in self._runs]
        asked = [value] if trait == "run" else value
        if not asked or not set(asked) <= set(names):
            raise OutOfRange(f"BalanceOverTraining.{trait} is {value!r}; give of {', '.join(names)} at least one")
        return value if trait == "run" else [name for name in names if name in value]

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Any) -> int:
        L = self._runs[0].load_SLE.shape[1]
        if not (-1 if L > 1 else 0) <= proposal["value"] < L:
            mean = ", or −1 for their mean" if L > 1 else ""
            raise OutOfRange(f"BalanceOverTraining.layer is {proposal['value']}; give 0 to {L - 1}{mean}")
        return proposal["value"]

    def _of_layer(self, run: Run) -> Any:
        return run.of_layer(self.layer)

    def _look(self, change: Any = None) -> None:
        views = [self._curves(run) for run in self._runs]
        self.view = {
            "runs": views,
            "load_top": max(max(max(row) for row in v["load"]) for v in views),
            "violation_top": max(max(v["max_violation"]) for v in views),
            "entropy_low": min(min(v["entropy"]) for v in views),
            "ranked": self.layer < 0,
        }
        self._speak()

    def _curves(self, run: Run) -> dict[str, Any]:
        """What is drawn of a run: its records nearest to the steps shown; `at` finds the record of each step."""
        load_SE, violation_S, entropy_S = self._of_layer(run)
        kept = sorted({run.at(step) for step in self._steps})
        return {
            "steps": [run.steps[i] for i in kept],
            "at": [kept.index(run.at(step)) for step in self._steps],
            "load": [[round(v, 5) for v in load_SE[i].tolist()] for i in kept],
            "max_violation": [round(float(violation_S[i]), 4) for i in kept],
            "entropy": [round(float(entropy_S[i]), 4) for i in kept],
        }

    def _keep_in_hand(self, change: Any) -> None:
        if self.run not in self.shown:
            self.run = self.shown[0]

    def _show_in_hand(self, change: Any) -> None:
        if self.run not in self.shown:
            self.shown = [*self.shown, self.run]

    def _speak(self, change: Any = None) -> None:
        others = [f"{self.max_violation[name]:.2f} ({name})" for name in self.shown if name != self.run]
        beside = f" MaxVio of the others: {', '.join(others)}." if others else ""
        self.says = f"Step {self.step:,}. {self.in_words(self.run)}{beside}"

    def in_words(self, name: str) -> str:
        """A run at this step, in a sentence."""
        run = next(run for run in self._runs if run.name == name)
        loads = self.loads[name]
        busiest, idle = max(range(len(loads)), key=loads.__getitem__), sum(v == 0 for v in loads)
        who = "the busiest expert of a layer" if self.layer < 0 else f"the busiest expert, {busiest},"
        said = f"{name}: {who} gets {_percent(loads[busiest])} of the choices (even: {100 / len(loads):.3g} %)"
        said += f", experts with nothing to do: {idle} of {len(loads)}" if idle and self.layer >= 0 else ""
        said += f", MaxVio {self.max_violation[name]:.2f}, entropy {self.entropy[name]:.3f}"
        said += f", mean loss {self.loss[name]:.3f} nats" if name in self.loss else ""
        recorded = run.steps[run.at(self.step)]
        return said + ("." if recorded == self.step else f"; recorded at step {recorded:,}.")

    def picture(self) -> Picture:
        """The loads of the runs shown at this step, and both curves with the step marked."""
        runs = [run for run in self._runs if run.name in self.shown]
        colors = [self.palette[i] for i, run in enumerate(self._runs) if run.name in self.shown]
        where = "" if len(self.layers) == 1 else f", {self.layers[self.layer]}"
        figure = draw(runs, colors, self.step, self.layer, where, self.view)
        figure.alt = f"Balance over training at step {self.step:,}{where}. " + " ".join(map(self.in_words, self.shown))
        return figure


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def balance_over_training(runs: Mapping[str, Mapping[int, Record]]) -> BalanceOverTraining:
    """The load of every expert over training, for one to six runs such as "none", "loss" and "bias".

    Args:
        runs: from a name to a mapping from the training step to the Routing of a batch, or to one Routing a layer. A
            record that carries loss_T has its mean loss told as well.

    Raises ValueError as `BalanceOverTraining` does.
    """
    return BalanceOverTraining(runs)
