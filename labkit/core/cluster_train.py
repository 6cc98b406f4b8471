"""What a training step costs on a cluster: seconds by part, memory, and what binds. Pure arithmetic."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache

from labkit.core.cluster import RATES, Cluster, Plan, Rates
from labkit.core.cluster_links import all_to_all, gather_seconds
from labkit.core.cluster_memory import GpuMemory, expert_ranks, local_params, moved_values, training_memory_per_gpu
from labkit.core.config import ModelConfig
from labkit.core.cost import ModelFlops, model_flops_per_token
from labkit.core.hardware import Fit
from labkit.core.parameters import need_model

OPTIMIZER_BYTES = (
    30  # per parameter: gradient, master weight and two moments read in float32, three and 16 bits written
)


@dataclass(frozen=True)
class StepSeconds:
    """A step's seconds on one GPU by part; what is hidden behind products is not in it.

    `products`: attention's projections, dense and shared feed-forward, router, head. `experts`: routed ones.
    `elementwise`: everything that only moves values, and the sum of
    gradients over micro-batches. `tensor`, `all_to_all`, `data`: waiting for these messages.
    `bubble`: waiting for other stages. `optimizer`: the update.
    """

    products: float
    experts: float
    attention: float
    elementwise: float
    tensor: float
    all_to_all: float
    bubble: float
    data: float
    optimizer: float

    @property
    def total(self) -> float:
        """The whole step."""
        return sum(vars(self).values())

    @property
    def compute(self) -> float:
        """What is computed, without any waiting."""
        return self.products + self.experts + self.attention + self.elementwise + self.optimizer

    def parts(self) -> dict[str, float]:
        """The breakdown by name."""
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """A training step on a cluster.

    Args:
        model, cluster, plan: what was asked.
        seconds: of one step by part; hidden: seconds of messages behind products; memory: bytes of the fullest GPU.
        flops: model FLOPs per token, forward and backward, attention counted causally; no recomputation.
    """

    model: ModelConfig
    cluster: Cluster
    plan: Plan
    seconds: StepSeconds
    hidden: float
    memory: GpuMemory
    flops: float

    @property
    def tokens_per_second(self) -> float:
        """Of the whole cluster."""
        return self.plan.tokens / self.seconds.total

    @property
    def tokens_per_gpu(self) -> float:
        """Tokens per second and GPU."""
        return self.tokens_per_second / self.plan.gpus

    @property
    def tflops(self) -> float:
        """Model TFLOP/s of one GPU."""
        return self.tokens_per_gpu * self.flops / 1e12

    @property
    def mfu(self) -> float:
        """Model FLOPs over the GPU's dense 16-bit peak (Chowdhery et al. 2022, arXiv 2204.02311, appendix B)."""
        return self.tflops / self.cluster.gpu.tflops

    @property
    def gpu_hours_per_trillion(self) -> float:
        """GPU-hours for 10¹² tokens."""
        return 1e12 / self.tokens_per_gpu / 3600

    @property
    def dollars_per_trillion(self) -> float:
        """What 10¹² tokens cost at the cluster's price."""
        return self.gpu_hours_per_trillion * self.cluster.price

    @property
    def fit(self) -> Fit:
        """Whether it fits, a tenth of the memory held in reserve."""
        return Fit(int(self.memory.total), int(self.cluster.gpu.memory * 0.9))

    @property
    def binds(self) -> str:
        """What limits it: "memory" if it does not fit, else the longest wait if that is a tenth, else "compute".

        The waits are "tensor", "all_to_all", "bubble" and "data".
        """
        if not self.fit:
            return "memory"
        parts = self.seconds.parts()
        longest = max(("tensor", "all_to_all", "bubble", "data"), key=parts.__getitem__)
        return longest if parts[longest] >= 0.1 * self.seconds.total else "compute"


def train(model: ModelConfig, cluster: Cluster, plan: Plan, rates: Rates = RATES) -> Estimate:
    """What one step of training costs.

    All-to-all hides behind another micro-batch's work, so a step of one micro-batch hides none. One micro-batch on one
    stage: products at their rates, attention at its own, values that are kept for the backward
    pass through the memory `rates.passes` times; messages in turn or hidden, as the plan says. Hidden all-to-all slows
    products down by the multiprocessors it takes. A step is m micro-batches on the slowest stage, the bubble, what of
    data parallelism's messages is not hidden, and the optimizer.

    Args:
        model: with `num_mtp_layers`, these modules are trained too; plan: no more GPUs than the cluster has.

    Raises ValueError if the plan does not fit the cluster or the model (stages, experts, heads).

    >>> from labkit.core.cluster import cluster
    >>> from labkit.core.presets import preset
    >>> e = train(preset("olmoe-1b-7b"), cluster("h100", 1), Plan(dp=8, ep=8, batch=64))
    >>> e.binds, 0.1 < e.mfu < 0.6
    ('compute', True)
    """
    _need_fitting(need_model(model, "train"), cluster, plan)
    flops = training_flops(model, plan.context)
    work = _micro_batch(model, cluster, plan, rates)
    lone = sum(work.values())
    waits, hidden = _waits(model, cluster, plan, rates, work)
    if hidden["ep"] and "ep" in plan.overlap:
        work = {name: value / (1 - rates.busy) for name, value in work.items()}
    slow, m = _slowest_stage(model, plan), plan.micro_batches
    stage = sum(work.values()) + waits["tensor"] + waits["all_to_all"]
    data, behind = _data_parallel(model, cluster, plan, rates, max(0.0, sum(work.values()) - sum(hidden.values())), m)
    local = local_params(model, plan)
    sharded = local.experts / expert_ranks(plan) + local.rest / (plan.dp * plan.cp)
    seconds = StepSeconds(
        **{name: value * m for name, value in work.items()},
        tensor=waits["tensor"] * m,
        all_to_all=waits["all_to_all"] * m,
        bubble=stage * m * (slow - 1) + stage * slow * m * plan.bubble,
        data=data,
        optimizer=sharded * OPTIMIZER_BYTES / (cluster.gpu.bandwidth * rates.memory),
    )
    behind += m * (sum(hidden.values()) + sum(work.values()) - lone)
    return Estimate(model, cluster, plan, seconds, behind, training_memory_per_gpu(model, plan), flops)


@lru_cache(maxsize=64)
def forward_flops(model: ModelConfig, context: int) -> ModelFlops:
    """Forward FLOPs of a token at a causal sequence's mean position, multi-token modules included."""
    f = model_flops_per_token(model, max(1, context // 2))
    extra, layers = model.num_mtp_layers, model.num_layers
    if not extra:
        return f
    return ModelFlops(
        projections=f.projections + extra * (f.projections // layers + 4 * model.d_model**2),
        scores=f.scores + extra * f.scores // layers,
        dense=f.dense,
        router=f.router + extra * f.router // max(1, model.num_sparse_layers),
        experts=f.experts + extra * f.experts // max(1, model.num_sparse_layers),
        head=f.head * (1 + extra),
    )


def training_flops(model: ModelConfig, context: int) -> float:
    """Model FLOPs of one token, forward and backward: three times the forward pass."""
    return 3.0 * forward_flops(model, context).total


def _need_fitting(model: ModelConfig, cluster: Cluster, plan: Plan) -> None:
    if plan.gpus > cluster.gpus:
        raise ValueError(f"train: the plan takes {plan.gpus} GPUs, the cluster has {cluster.gpus}")
    if plan.pp * plan.chunks > model.num_layers + 2:
        raise ValueError(
            f"train: {plan.pp} stages of {plan.chunks} chunks for {model.num_layers} layers; give fewer of either"
        )
    experts = model.moe.num_experts if model.moe is not None else 1
    if experts % plan.ep or model.num_heads % plan.tp:
        raise ValueError(
            f"train: ep={plan.ep} of {experts} experts and tp={plan.tp} of {model.num_heads} heads; both must divide"
        )


def _micro_batch(model: ModelConfig, cluster: Cluster, plan: Plan, rates: Rates) -> dict[str, float]:
    """Seconds of one micro-batch's work, forward and backward, on a mean stage of one GPU."""
    f, peak = forward_flops(model, plan.context), cluster.gpu.tflops * 1e12
    product = peak * rates.matmul * (rates.fp8 if plan.precision == "fp8" else 1.0)
    tokens = plan.micro_batch * plan.context / (plan.cp * plan.tp * plan.pp)
    times = 4 if plan.recompute == "full" else 3
    shared = _shared_flops(model)
    routed = f.experts - shared
    moved = tokens * 2 * moved_values(model, copies=plan.ep > 1) * rates.passes * times / 3
    summed = 2 * plan.gradient_bytes * local_params(model, plan).total
    return {
        "products": tokens * times * (f.total - f.scores - routed) / product,
        "experts": max(tokens * times * routed / (product * rates.grouped), _expert_reads(model, cluster, plan, rates)),
        "attention": tokens * (times + 0.5) * f.scores / (peak * rates.attention),
        "elementwise": (moved + summed) / (cluster.gpu.bandwidth * rates.memory),
    }


def _shared_flops(model: ModelConfig) -> float:
    if model.moe is None:
        return 0.0
    layers = model.num_sparse_layers + model.num_mtp_layers
    return 6.0 * layers * model.moe.num_shared_experts * model.moe.d_model * model.moe.d_expert


def _expert_reads(model: ModelConfig, cluster: Cluster, plan: Plan, rates: Rates) -> float:
    """Seconds to read a GPU's experts twice and write their gradients once, whatever the number of tokens."""
    size = 2 * (1 if plan.precision == "fp8" else 2) + 2 * plan.gradient_bytes
    return local_params(model, plan).experts * size / (cluster.gpu.bandwidth * rates.memory)


def _waits(
    model: ModelConfig, cluster: Cluster, plan: Plan, rates: Rates, work: dict[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of one micro-batch on a mean stage: messages that are waited for, and that are hidden."""
    tokens = plan.micro_batch * plan.context / plan.cp
    layers = model.num_layers / plan.pp
    tensor = exchange = 0.0
    if plan.tp > 1:
        blocks = 2 * model.num_dense_layers / model.num_layers + model.num_sparse_layers / model.num_layers
        one = gather_seconds(cluster, tokens * model.d_model * 2, plan.tp, rates=rates)
        tensor = 5 * blocks * layers * one
    if model.moe is not None and plan.ep > 1:
        way = all_to_all(
            cluster, model.moe, plan.ep, fp8=plan.precision == "fp8", limit=plan.node_limit, once=plan.once_per_node,
            rates=rates,
        )  # fmt: skip
        sparse = (model.num_sparse_layers + model.num_mtp_layers) / plan.pp
        exchange = 2 * way.seconds * sparse * tokens / plan.tp
    room = sum(work.values())
    kept, hidden = {}, {}
    for name, key, value in (("tensor", "tp", tensor), ("all_to_all", "ep", exchange)):
        hides = key in plan.overlap and (key == "tp" or plan.micro_batches > 1)
        hidden[key] = min(value, room) if hides else 0.0
        kept[name] = value - hidden[key]
        room -= hidden[key]
    return kept, hidden


def _slowest_stage(model: ModelConfig, plan: Plan) -> float:
    """The slowest rank's work over the mean: it holds whole layers, and the last one the head, but fewer layers.

    With DualPipe a rank holds a stage of each direction, the first with the last (DeepSeek-V3, section 3.2.1), so pairs
    of stages are what whole layers are divided among.
    """
    ranks = plan.pp // 2 if plan.schedule == "dualpipe" else plan.pp
    if ranks <= 1:
        return 1.0
    f, layers = forward_flops(model, plan.context), model.num_layers + model.num_mtp_layers
    worth = f.head / ((f.total - f.head) / layers)
    most = min(max(-(-(layers - x) // (ranks - 1)), x + worth) for x in range(layers // ranks + 1))
    return max(1.0, most * ranks / (layers + worth))


def _data_parallel(
    model: ModelConfig, cluster: Cluster, plan: Plan, rates: Rates, free: float, m: int
) -> tuple[float, float]:
    """Seconds of gradients and weights over data parallelism in a step: waited for, and hidden.

    `free` seconds of a micro-batch's work have no other message behind them. ZeRO-3 sends in every micro-batch; else
    only the last one's backward pass and the next step's first forward pass can hide anything.
    """
    local, size = local_params(model, plan), 1 if plan.precision == "fp8" else 2
    group = plan.dp * plan.cp
    gathers, reduces = (2 * m, m) if plan.zero == 3 else (1, 1)
    both = 0.0
    for params, ranks, stride in ((local.rest, group, plan.tp), (local.experts, expert_ranks(plan), plan.ep)):
        gather = gather_seconds(cluster, params * size, ranks, stride, rates)
        reduce = gather_seconds(cluster, params * plan.gradient_bytes, ranks, stride, rates)
        both += gathers * gather + reduces * reduce
    room = free * (m if plan.zero == 3 else 1) if "dp" in plan.overlap else 0.0
    hidden = min(both, room)
    return both - hidden, hidden
