"""The planner's second view: a model on a cluster, its time and memory by part, and what binds."""

from __future__ import annotations

from typing import Any

import ipywidgets

from labkit.core.cluster import KINDS, RECOMPUTE, SCHEDULES, Plan, cluster
from labkit.core.cluster_search import STAGES, best_plan, data_degree
from labkit.core.cluster_serve import ServeEstimate, ServePlan, decode, prefill
from labkit.core.cluster_train import Estimate, train
from labkit.core.config import ModelConfig
from labkit.core.hardware import GB
from labkit.show.cards import Card
from labkit.show.picture import Picture
from labkit.show.step import SAID, step_picture

PHASES = ("train", "prefill", "decode")
NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1250, 2048, 4096, 8192, 12_500)
DEGREES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SEQUENCES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 15_360, 30_720)
EACH = (1, 8, 16, 32, 64, 128, 256, 512, 4096, 8192, 16_384)
BINDS = {
    "memory": "Memory binds: one GPU's part does not fit.",
    "compute": "Work binds: no kind of waiting takes a tenth of the step.",
    "tensor": "Tensor parallelism's messages bind.",
    "all_to_all": "The experts' all-to-all binds.",
    "bubble": "The pipeline's bubble binds: more sequences a step, or fewer stages, would fill it.",
    "data": "Data parallelism's messages bind.",
}


def estimate(model: ModelConfig, context: int, **chosen: Any) -> Estimate | ServeEstimate:
    """What the choices of the cluster view cost.

    Args:
        chosen: kind, nodes, phase, products, tp, ep; for training also pp, sequences, schedule, chunks, recompute and
            zero; for serving also each, the tokens or requests on one GPU. Others are not read.

    Raises ValueError where the choices make no plan.

    >>> from labkit.core.presets import preset
    >>> chosen = dict(kind="h100", nodes=8, phase="decode", products="bf16", tp=1, ep=8, each=64)
    >>> estimate(preset("mixtral-8x7b"), 4096, **chosen).binds
    'attention'
    """
    machine, experts = cluster(chosen["kind"], chosen["nodes"]), model.moe.num_experts if model.moe else 0
    tp, ep, precision = chosen["tp"], chosen["ep"], chosen["products"]
    limit = model.moe.top_groups if experts and model.moe.num_groups > 1 else 0
    if chosen["phase"] != "train":
        plan = ServePlan(
            tp=tp, ep=ep, batch=chosen["each"], context=context, precision=precision, slots=-(-experts // ep) * ep,
            node_limit=limit,
        )  # fmt: skip
        return (prefill if chosen["phase"] == "prefill" else decode)(model, machine, plan)
    pp, sequences = chosen["pp"], chosen["sequences"]
    dp = data_degree(machine, sequences, tp=tp, pp=pp, ep=ep)
    if not dp:
        raise ValueError(
            f"{machine.gpus} GPUs and {sequences} sequences are too few for tp {tp}, pp {pp} and ep {ep}; lower one of "
            "them, or take more nodes or sequences"
        )
    plan = Plan(
        dp=dp, tp=tp, pp=pp, ep=ep, batch=sequences // dp * dp, context=context, precision=precision,
        schedule=chosen["schedule"], chunks=chosen["chunks"] if chosen["schedule"] == "1f1b" else 1,
        recompute=chosen["recompute"], zero=chosen["zero"], node_limit=limit,
    )  # fmt: skip
    return train(model, machine, plan)


def cluster_card(e: Estimate | ServeEstimate) -> Card:
    """The estimate in words and numbers."""
    machine, fit = e.cluster, e.fit
    verdict = f"with {fit.spare / GB:,.1f} GB to spare" if fit else f"{-fit.spare / GB:,.1f} GB too much"
    lines = [
        *(_training_lines(e) if isinstance(e, Estimate) else _serving_lines(e)),
        f"One GPU holds {e.memory.total / GB:,.1f} GB of {fit.available / GB:,.1f} usable: {verdict}.",
        BINDS.get(e.binds, f"The longest part binds: {SAID.get(e.binds, e.binds)}."),
    ]
    total = e.seconds.total
    table = [("part of a step", "ms", "share")]
    table += [(SAID.get(k, k), f"{v * 1e3:,.2f}", f"{v / total:.0%}") for k, v in e.seconds.parts().items() if v]
    table += [("all of it", f"{total * 1e3:,.2f}", "100%"), ("hidden behind it", f"{e.hidden * 1e3:,.2f}", "–")]
    table += [(f"memory: {k}", f"{v / GB:,.1f} GB", "–") for k, v in vars(e.memory).items() if v]
    title = f"{e.model.name} on {machine.gpus:,} × {machine.gpu.name}, {machine.nodes:,} nodes"
    return Card("pass" if fit else "fail", title, lines, table)


def _training_lines(e: Estimate) -> list[str]:
    p = e.plan
    degrees = f"{p.dp} data × {p.tp} tensor × {p.pp} pipeline, experts over {p.ep}"
    return [
        f"Training: {degrees}: {p.gpus:,} of {e.cluster.gpus:,} GPUs, {p.micro_batches} micro-batches, "
        f"{p.tokens / 1e6:,.1f} million tokens a step.",
        f"{e.tokens_per_second:,.0f} tokens/s ({e.tokens_per_gpu:,.0f} per GPU), {e.tflops:,.0f} TFLOP/s per GPU, "
        f"{e.mfu:.0%} of the 16-bit peak; {e.gpu_hours_per_trillion:,.0f} GPU-hours and "
        f"${e.dollars_per_trillion:,.0f} per 10¹² tokens, at ${e.cluster.price:g} an hour.",
    ]


def _serving_lines(e: ServeEstimate) -> list[str]:
    each = "tokens of prompts" if e.phase == "prefill" else "requests"
    speed = f"; each request sees {e.tokens_per_request:,.1f} a second" if e.phase == "decode" else ""
    return [
        f"{e.phase.capitalize()}: attention over {e.plan.tp}, experts over {e.plan.ep}, {e.plan.batch:,} {each} on a "
        f"GPU: {e.plan.gpus} GPUs a deployment, {e.cluster.gpus // e.plan.gpus} of them.",
        f"{e.tokens_per_node:,.0f} tokens/s per node{speed}; ${e.dollars_per_million:,.2f} per million tokens, at "
        f"${e.cluster.price:g} a GPU-hour.",
    ]


def cluster_picture(e: Estimate | ServeEstimate) -> Picture:
    """Time and memory as bars, described by the whole card."""
    names = {"cache": "KV cache"}
    memory = {names.get(name, name): value for name, value in vars(e.memory).items()}
    picture = step_picture(e.seconds.parts(), memory, e.cluster.gpu.memory, e.fit.available)
    picture.alt = f"{cluster_card(e)}\n{picture.alt}"
    return picture


class ClusterControls:
    """The controls of the cluster view, by name; `show` tells them which of them matter."""

    def __init__(self, kind: str = "h100", nodes: int = 8) -> None:
        def pick(name: str, options: Any, value: Any) -> ipywidgets.Dropdown:
            return ipywidgets.Dropdown(
                description=name, options=list(options), value=value, layout={"width": "240px"},
                style={"description_width": "86px"},
            )  # fmt: skip

        nodes_offered = sorted({*NODES, nodes})
        self.all: dict[str, Any] = {
            "kind": pick("Cluster", KINDS, kind), "nodes": pick("Nodes of 8", nodes_offered, nodes),
            "phase": pick("Phase", PHASES, "train"), "products": pick("Products", ("bf16", "fp8"), "bf16"),
            "tp": pick("Tensor", DEGREES[:4], 1), "ep": pick("Experts over", DEGREES, 1),
            "pp": pick("Pipeline", STAGES, 1), "sequences": pick("Sequences", SEQUENCES, 1024),
            "schedule": pick("Schedule", SCHEDULES, "1f1b"), "chunks": pick("Chunks", range(1, 129), 1),
            "recompute": pick("Recompute", RECOMPUTE, "selective"), "zero": pick("ZeRO", (1, 2, 3), 1),
            "each": pick("On each GPU", EACH, 128),
        }  # fmt: skip
        self.best = ipywidgets.Button(description="Best plan", tooltip="The plan that trains most tokens per second")

    def values(self) -> dict[str, Any]:
        """What is chosen."""
        return {name: control.value for name, control in self.all.items()}

    def show(self, seen: bool) -> None:
        """Show those that matter in this phase, or none."""
        training = ("pp", "sequences", "schedule", "chunks", "recompute", "zero")
        phase = self.all["phase"].value
        for name, control in self.all.items():
            matters = phase == "train" if name in training else name != "each" or phase != "train"
            control.layout.display = None if seen and matters else "none"
        self.best.layout.display = None if seen and phase == "train" else "none"

    def take_best(self, model: ModelConfig, context: int) -> None:
        """Set the degrees to the best plan's. Raises ValueError where no plan fits."""
        v = self.values()
        plan = best_plan(
            model, cluster(v["kind"], v["nodes"]), batch=v["sequences"], context=context, precision=v["products"]
        ).plan
        for name in ("tp", "pp", "ep", "schedule", "chunks", "recompute", "zero"):
            self.all[name].value = getattr(plan, name)
