"""The planner: a published model, a GPU or a cluster, and what of it fits and how long it takes.

Plain ipywidgets, so every control takes the keyboard.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets

from labkit.core.cluster import KINDS
from labkit.core.cluster_serve import ServeEstimate
from labkit.core.cluster_train import Estimate
from labkit.core.config import ModelConfig
from labkit.core.cost import GPUS, Fit, fits, inference_memory, kv_cache_bytes_per_token, model_params, training_memory
from labkit.core.hardware import GB
from labkit.core.memory import OPTIMIZERS, PRECISIONS, WEIGHT_BITS, InferenceMemory, TrainingMemory
from labkit.core.presets import PRESETS, preset
from labkit.show.cards import Card
from labkit.show.figures import memory_stack
from labkit.show.picture import Picture, png
from labkit.show.widgets.base import Pictured
from labkit.show.widgets.planner_cluster import ClusterControls, cluster_card, cluster_picture, estimate

BATCHES = (1, 2, 4, 8, 16, 32, 64)
VIEWS = ("GPUs", "cluster")
CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)


@dataclass(frozen=True)
class Plan:
    """What one choice of model and machine needs, in bytes, and whether it fits with a tenth held in reserve."""

    model: str
    gpu: str
    count: int
    params: int
    active: int
    cache_per_token: float
    serving: InferenceMemory
    training: TrainingMemory
    checkpointed: TrainingMemory
    checkpointing: bool
    serve_fit: Fit
    train_fit: Fit

    @property
    def capacity(self) -> int:
        """Bytes on all the GPUs together."""
        return GPUS[self.gpu].memory * self.count

    def active_part(self, weights: int) -> int:
        """How many bytes of so many bytes of weights one token is multiplied with."""
        return weights * self.active // self.params


def plan(
    model: str | ModelConfig,
    gpu: str,
    *,
    count: int = 1,
    batch: int = 1,
    context: int = 4096,
    weight_bits: int = 16,
    precision: str = "mixed",
    optimizer: str = "adam",
    checkpointing: bool = False,
) -> Plan:
    """The memory of serving and of training a published model, the micro-batch being `batch` sequences of `context`.

    Args:
        model: a key of `PRESETS`, or a configuration of one's own.
        gpu: a key of `GPUS`; `count` of them share everything evenly, the best case.
        weight_bits: of the served weights.
        precision, optimizer, checkpointing: of training, as in `core.memory.training_memory`.

    Raises ValueError for an unknown name or a number out of range.

    >>> p = plan("olmoe-1b-7b", "T4", weight_bits=8)
    >>> bool(p.serve_fit), bool(p.train_fit)
    (True, False)
    """
    config = model if isinstance(model, ModelConfig) else preset(model)
    serving = inference_memory(config, batch, context, weight_bits)
    kept, light = (
        training_memory(
            config, batch * context, context, precision=precision, optimizer=optimizer, checkpointing=checkpoint
        )
        for checkpoint in (False, True)
    )
    chosen = light if checkpointing else kept
    params = model_params(config)
    return Plan(
        config.name, gpu, count, params.total, params.active, kv_cache_bytes_per_token(config), serving, kept, light,
        checkpointing, fits(serving.total, gpu, count), fits(chosen.total, gpu, count),
    )  # fmt: skip


def breakdowns(p: Plan) -> dict[str, dict[str, int]]:
    """The bars of `memory_stack`: serving, training, training with checkpointing."""
    bars = {"serve": {"weights": p.serving.weights, "KV cache": p.serving.kv_cache}}
    for name, t in (("train", p.training), ("train, checkpointing", p.checkpointed)):
        bars[name] = {"weights": t.weights, "master copy": t.master, "gradients": t.gradients}
        bars[name] |= {"optimizer": t.optimizer, "activations": t.activations}
    return bars


def _gb(value: float) -> str:
    return f"{value / GB:,.1f} GB"


def _verdict(what: str, fit: Fit) -> str:
    if fit:
        return f"{what} fits, with {_gb(fit.spare)} to spare."
    return f"{what} does not fit: {_gb(-fit.spare)} too much."


def card(p: Plan) -> Card:
    """The plan in words and numbers."""
    machine = f"{p.count} × {p.gpu}" if p.count > 1 else p.gpu
    active = [p.active_part(memory.weights) for memory in (p.serving, p.training, p.checkpointed)]
    table = [("what", "serve", "train", "train, checkpointing")]
    table += [
        ("weights", _gb(p.serving.weights), _gb(p.training.weights), _gb(p.checkpointed.weights)),
        ("  of these active for a token", *map(_gb, active)),
        ("master copy", "–", _gb(p.training.master), _gb(p.checkpointed.master)),
        ("gradients", "–", _gb(p.training.gradients), _gb(p.checkpointed.gradients)),
        ("optimizer", "–", _gb(p.training.optimizer), _gb(p.checkpointed.optimizer)),
        ("activations (estimate)", "–", _gb(p.training.activations), _gb(p.checkpointed.activations)),
        ("KV cache", _gb(p.serving.kv_cache), "–", "–"),
        ("total", _gb(p.serving.total), _gb(p.training.total), _gb(p.checkpointed.total)),
    ]
    how = "Training with checkpointing" if p.checkpointing else "Training without checkpointing"
    lines = [
        f"{p.params / 1e9:,.2f} billion parameters, {p.active / 1e9:,.2f} billion active per token "
        f"({p.active / p.params:.0%}); {p.cache_per_token / 1e3:,.1f} kB of KV cache per token at 16 bits.",
        f"{machine}: {_gb(p.capacity)}, of which {_gb(p.serve_fit.available)} are usable: a tenth is held in reserve. "
        f"{_verdict('Serving', p.serve_fit)} {_verdict(how, p.train_fit)}",
    ]
    return Card("pass" if p.serve_fit and p.train_fit else "info", f"{p.model} on {machine}", lines, table)


class Planner(Pictured, ipywidgets.VBox):
    """The live planner; `plan` is the plan of the present choices, `estimate` what they cost on a cluster.

    Args:
        model, gpu: what is chosen at first.
        also: models of one's own that stand in the list as well, under their names.
        cluster: a kind of cluster (`core.cluster.KINDS`), to open with that view; nodes: how many nodes of it.

    Raises ValueError for a model, a GPU or a cluster that the lists do not have, or a name in `also` that is taken.
    """

    def __init__(
        self,
        model: str = "olmoe-1b-7b",
        gpu: str = "T4",
        also: Sequence[ModelConfig] = (),
        cluster: str | None = None,
        nodes: int = 8,
    ) -> None:
        self._also = {config.name: config for config in also}
        if len({*PRESETS, *self._also}) < len(PRESETS) + len(also):
            raise ValueError(f"planner got also={[config.name for config in also]}; give names that are not taken yet")
        self._plan = plan(self._also.get(model, model), gpu)
        self.model = _pick("Model", [*PRESETS, *self._also], self._plan.model)
        self.gpu = _pick("GPU", GPUS, gpu)
        self.count = _pick("GPUs", (1, 2, 4, 8, 16, 32, 64), 1)
        self.batch = _pick("Batch", BATCHES, 1)
        self.context = _pick("Context", CONTEXTS, 4096)
        self.weight_bits = _pick("Serving bits", WEIGHT_BITS, 16)
        self.precision = _pick("Training", PRECISIONS, "mixed")
        self.optimizer = _pick("Optimizer", OPTIMIZERS, "adam")
        self.checkpointing = ipywidgets.Checkbox(description="Gradient checkpointing", value=False, indent=False)
        self.view = ipywidgets.ToggleButtons(description="Where", options=VIEWS, value=VIEWS[cluster is not None])
        self.cluster = ClusterControls(*([] if cluster is None else [_known(cluster)]), nodes=nodes)
        self._estimate: Estimate | ServeEstimate | None = None
        self._quiet = False
        self._out = ipywidgets.HTML()
        here = [*self._controls().values(), *self.cluster.all.values(), self.cluster.best]
        row = ipywidgets.HBox(here, layout={"flex_flow": "row wrap", "max_width": "760px"})
        super().__init__(children=[self.view, row, self._out])
        for control in (self.view, *here[:-1]):
            control.observe(self._refresh, names="value")
        self.cluster.best.on_click(self._take_best)
        self._refresh()

    def choose(self, **values: Any) -> Planner:
        """Set several controls, of both views, and draw once; returns itself.

        Raises ValueError for a name that no control has, or a value that its list does not have.

        >>> Planner().choose(view="cluster", nodes=1, ep=8).estimate.plan.ep
        8
        """
        controls = {"view": self.view, **self._controls(), **self.cluster.all}
        unknown = [name for name in values if name not in controls]
        if unknown:
            raise ValueError(f"the planner has no control {unknown[0]!r}; it has {', '.join(controls)}")
        self._quiet = True
        try:
            for name, value in values.items():
                options = getattr(controls[name], "options", (value,))
                if value not in options:
                    raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(str, options))}")
                controls[name].value = value
        finally:
            self._quiet = False
            self._refresh()
        return self

    @property
    def plan(self) -> Plan:
        """What the present choices need."""
        return self._plan

    @property
    def estimate(self) -> Estimate | ServeEstimate | None:
        """What the cluster view's present choices cost; None if they make no plan, or in the other view."""
        return self._estimate

    def picture(self) -> Picture:
        """The stacked bars, described by the whole table."""
        if self._estimate is not None:
            return cluster_picture(self._estimate)
        p = self._plan
        name = f"{p.count} × {p.gpu}" if p.count > 1 else p.gpu
        figure = memory_stack(breakdowns(p), p.capacity, name, usable=p.serve_fit.available)
        figure.alt = str(card(p))
        return figure

    def _controls(self) -> dict[str, Any]:
        names = ("model", "gpu", "count", "batch", "context", "weight_bits", "precision", "optimizer", "checkpointing")
        return {name: getattr(self, name) for name in names}

    def _refresh(self, change: Any = None) -> None:
        if self._quiet:
            return
        clustered = self.view.value == "cluster"
        self.cluster.show(clustered)
        for name, control in self._controls().items():
            control.layout.display = "none" if clustered and name not in ("model", "context") else None
        chosen = {name: control.value for name, control in self._controls().items()}
        model = chosen.pop("model")
        self._plan, self._estimate = plan(self._also.get(model, model), **chosen), None
        if clustered:
            try:
                self._estimate = estimate(self._config, self.context.value, **self.cluster.values())
            except ValueError as problem:
                self._out.value = Card("fail", "These choices make no plan", [str(problem)]).html()
                return
        self._draw(card(self._plan) if self._estimate is None else cluster_card(self._estimate))

    @property
    def _config(self) -> ModelConfig:
        return self._also.get(self.model.value) or preset(self.model.value)

    def _take_best(self, button: Any) -> None:
        self._quiet = True
        try:
            self.cluster.take_best(self._config, self.context.value)
        except ValueError as problem:
            self._out.value = Card("fail", "No plan fits", [str(problem)]).html()
            return
        finally:
            self._quiet = False
        self._refresh()

    def _draw(self, words: Card) -> None:
        picture = self.picture()
        data = b64encode(png(picture)).decode("ascii")
        what = "memory" if self._estimate is None else "time and memory"
        said = escape(f"Stacked bars of {what}: {picture.alt}", quote=True)
        image = f'<img alt="{said}" src="data:image/png;base64,{data}" style="max-width: 100%;">'
        self._out.value = f"{words.html()}{image}"


def _pick(name: str, options: Any, value: Any) -> ipywidgets.Dropdown:
    return ipywidgets.Dropdown(description=name, options=list(options), value=value, layout={"width": "240px"})


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"there is no cluster {kind!r}; choose one of {', '.join(KINDS)}")
    return kind


def planner(
    model: str = "olmoe-1b-7b",
    gpu: str = "T4",
    also: Sequence[ModelConfig] = (),
    cluster: str | None = None,
    nodes: int = 8,
) -> Planner:
    """The planner, opened at this model and GPU or cluster, with the models of `also` in its list."""
    return Planner(model, gpu, also, cluster, nodes)
