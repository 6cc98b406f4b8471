"""What prefill and decode cost on a cluster: seconds of a step by part, tokens per second, memory. Pure arithmetic."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from labkit.core.cluster import RATES, Cluster, Rates
from labkit.core.cluster_links import all_to_all, gather_seconds
from labkit.core.cluster_memory import GpuMemory, moved_values
from labkit.core.config import Config, ModelConfig
from labkit.core.cost import ModelFlops, expected_experts, model_flops_per_token
from labkit.core.hardware import Fit
from labkit.core.memory import kv_cache_bytes_per_token
from labkit.core.parameters import layer_params, model_params, need_model
from labkit.core.whole import need_whole


@dataclass(frozen=True)
class ServePlan(Config):
    """How a model is spread for serving: attention over `tp` GPUs, a layer's experts over `ep`.

    Args:
        tp: GPUs that share each request's attention and dense layers; ep: GPUs that share a layer's experts, each with
            requests of its own; a multiple of tp.
        batch: tokens of one step on each GPU of ep: prompts' tokens in prefill, requests in decode.
        context: tokens of a prompt (prefill), or of the cache that a new token sees (decode).
        slots: experts of a layer with their copies; 0 for no copies.
        precision: "bf16" or "fp8" of weights, products and dispatch; cache and attention are in 16 bits.
        overlap: two half batches take turns, so that messages of one hide behind the other's work.
        node_limit: nodes that a token's experts may lie on, in prefill; 0 for no limit.

    >>> ServePlan(ep=32, batch=16384, slots=288).slots // 32
    9
    """

    tp: int = 1
    ep: int = 1
    batch: int = 1
    context: int = 4096
    slots: int = 0
    precision: str = "bf16"
    overlap: bool = True
    node_limit: int = 0

    def __post_init__(self) -> None:
        for name in ("tp", "ep", "batch", "context"):
            need_whole(f"ServePlan: {name}", getattr(self, name))
        for name in ("slots", "node_limit"):
            need_whole(f"ServePlan: {name}", getattr(self, name), 0)
        if self.precision not in ("bf16", "fp8"):
            raise ValueError(f"ServePlan: precision is {self.precision!r}; choose bf16 or fp8")

    @property
    def gpus(self) -> int:
        """GPUs of one deployment."""
        return max(self.tp, self.ep)


@dataclass(frozen=True)
class ServeSeconds:
    """One step's seconds on one GPU by part; what is hidden is not in it."""

    products: float
    experts: float
    attention: float
    elementwise: float
    launch: float
    tensor: float
    all_to_all: float

    @property
    def total(self) -> float:
        """The whole step."""
        return sum(vars(self).values())

    def parts(self) -> dict[str, float]:
        """The breakdown by name."""
        return asdict(self)


@dataclass(frozen=True)
class ServeEstimate:
    """A step of prefill or decode; `phase` says which."""

    model: ModelConfig
    cluster: Cluster
    plan: ServePlan
    phase: str
    seconds: ServeSeconds
    hidden: float
    memory: GpuMemory

    @property
    def tokens_per_gpu(self) -> float:
        """Tokens per second and GPU: of prompts in prefill, new ones in decode."""
        return self.plan.batch / self.seconds.total / self.plan.tp

    @property
    def tokens_per_node(self) -> float:
        """Tokens per second and node."""
        return self.tokens_per_gpu * self.cluster.gpus_per_node

    @property
    def tokens_per_request(self) -> float:
        """Tokens per second that one request sees; decode's."""
        return 1 / self.seconds.total

    @property
    def dollars_per_million(self) -> float:
        """What 10⁶ tokens cost at the cluster's price."""
        return self.cluster.price / 3600 / self.tokens_per_gpu * 1e6

    @property
    def fit(self) -> Fit:
        """Whether it fits, a tenth of the memory held in reserve."""
        return Fit(int(self.memory.total), int(self.cluster.gpu.memory * 0.9))

    @property
    def binds(self) -> str:
        """What limits it: "memory" if it does not fit, else the longest part."""
        parts = self.seconds.parts()
        return max(parts, key=parts.__getitem__) if self.fit else "memory"


def prefill(model: ModelConfig, cluster: Cluster, plan: ServePlan, rates: Rates = RATES) -> ServeEstimate:
    """One step over `batch` tokens of prompts of `context` tokens on each GPU; the head reads last tokens only.

    >>> from labkit.core.cluster import cluster
    >>> from labkit.core.presets import preset
    >>> plan = ServePlan(ep=32, batch=16384, slots=288, precision="fp8", node_limit=4)
    >>> e = prefill(preset("deepseek-v3"), cluster("h800", 4), plan)
    >>> 40_000 < e.tokens_per_node < 70_000, e.binds
    (True, 'experts')
    """
    f = model_flops_per_token(need_model(model, "prefill"), max(1, plan.context // 2))
    scores = plan.batch * f.scores / (cluster.gpu.tflops * 1e12 * rates.attention)
    return _estimate("prefill", model, cluster, plan, rates, f, f.total - f.scores - f.head, scores)


def decode(model: ModelConfig, cluster: Cluster, plan: ServePlan, rates: Rates = RATES) -> ServeEstimate:
    """One new token for each of `batch` requests on each GPU, with `context` positions in the cache.

    Attention is the longer of reading the cache and its products; MLA is counted absorbed, so that every head works on
    the latents: 2·context·H·(2·kv_rank + d_rope) a layer (DeepSeek-V2, arXiv 2405.04434, section 2.1.2). Both half
    batches read all weights, and every message goes straight over the network, K a token.

    >>> from labkit.core.cluster import cluster
    >>> from labkit.core.presets import preset
    >>> e = decode(preset("mixtral-8x7b"), cluster("h100", 1), ServePlan(tp=2, batch=64, context=1024))
    >>> e.fit.spare > 0, e.binds
    (True, 'experts')
    """
    f = model_flops_per_token(need_model(model, "decode"), plan.context)
    peak, wide = cluster.gpu.tflops * 1e12, cluster.gpu.bandwidth * rates.memory
    scores = f.scores
    if model.attention == "mla":
        scores = 2 * plan.context * model.num_layers * model.num_heads * (2 * model.mla_kv_rank + model.mla_rope_dim)
    read = plan.batch * plan.context * kv_cache_bytes_per_token(model) / wide
    attention = max(read, plan.batch * scores / (peak * rates.attention))
    return _estimate("decode", model, cluster, plan, rates, f, f.total - f.scores, attention)


def _estimate(
    phase: str, model: ModelConfig, cluster: Cluster, plan: ServePlan, rates: Rates, f: ModelFlops, flops: float,
    attention: float,
) -> ServeEstimate:  # fmt: skip
    """Put a phase together: `flops` of one token without attention's scores, `attention` in seconds on one GPU."""
    if plan.gpus > cluster.gpus:
        raise ValueError(f"{phase}: the plan takes {plan.gpus} GPUs, the cluster has {cluster.gpus}")
    halves = 2 if plan.overlap and plan.ep > 1 else 1
    product = cluster.gpu.tflops * 1e12 * rates.matmul * (rates.fp8 if plan.precision == "fp8" else 1)
    wide = cluster.gpu.bandwidth * rates.memory
    weights = _weights(model, plan)
    moe = model.moe
    routed = 6.0 * model.num_sparse_layers * moe.top_k * moe.d_model * moe.d_expert if moe is not None else 0.0
    visited = _visited_share(model, plan, halves) if moe is not None else 0.0
    work = {
        "products": max(plan.batch * (flops - routed) / product, halves * weights.rest * plan.tp / wide) / plan.tp,
        "experts": max(
            plan.batch * routed / (product * rates.grouped) / (plan.tp if plan.ep == 1 else 1),
            halves * weights.experts * visited / wide,
        ),
        "attention": attention / plan.tp,
        "elementwise": plan.batch * 2 * moved_values(model, copies=plan.ep > 1) * rates.passes / 2 / wide / plan.tp,
        "launch": halves * rates.kernels * model.num_layers * rates.launch,
    }
    exchange = _exchange(phase, model, cluster, plan, rates)
    tensor = 2 * 2 * model.num_layers * gather_seconds(cluster, plan.batch * model.d_model * 2, plan.tp, rates=rates)
    if halves == 2 and phase == "prefill":
        work = {name: value / (1 - rates.busy) for name, value in work.items()}
    hidden = min(exchange, sum(work.values())) if halves == 2 else 0.0
    cache = plan.batch * plan.context * kv_cache_bytes_per_token(model) / plan.tp
    kept = cache if phase == "decode" else plan.batch * kv_cache_bytes_per_token(model) / plan.tp
    memory = GpuMemory(weights.experts + weights.rest, 0.0, 0.0, plan.batch * 2 * _peak_values(model), kept)
    seconds = ServeSeconds(**work, tensor=tensor, all_to_all=exchange - hidden)
    return ServeEstimate(model, cluster, plan, phase, seconds, hidden, memory)


@dataclass(frozen=True)
class _Weights:
    """Bytes of weights on one GPU."""

    experts: float
    rest: float


def _weights(model: ModelConfig, plan: ServePlan) -> _Weights:
    size, p = 1 if plan.precision == "fp8" else 2, model_params(model)
    if model.moe is None:
        return _Weights(0.0, size * p.total / plan.tp)
    slots = max(plan.slots, model.moe.num_experts)
    held = model.num_sparse_layers * layer_params(model.moe).expert * slots / (plan.ep if plan.ep > 1 else plan.tp)
    return _Weights(size * held, size * (p.total - p.routed_experts) / plan.tp)


def _visited_share(model: ModelConfig, plan: ServePlan, halves: int) -> float:
    """The share of a layer's experts that the tokens of one half batch, of all GPUs together, visit."""
    tokens = max(1, plan.batch * (plan.ep if plan.ep > 1 else 1) // halves)
    return expected_experts(model.moe, tokens) / model.moe.num_experts


def _exchange(phase: str, model: ModelConfig, cluster: Cluster, plan: ServePlan, rates: Rates) -> float:
    if model.moe is None or plan.ep == 1:
        return 0.0
    small = phase == "decode"
    way = all_to_all(
        cluster, model.moe, plan.ep, fp8=plan.precision == "fp8", limit=plan.node_limit, once=not small, small=small,
        rates=rates,
    )  # fmt: skip
    return plan.batch * model.num_sparse_layers * way.seconds / plan.tp


def _peak_values(model: ModelConfig) -> float:
    """Values of one token that are alive at once: a layer's widest, and the residual."""
    widest = model.d_dense if model.num_dense_layers else 0
    if model.moe is not None:
        widest = max(widest, model.moe.top_k * (model.d_model + model.moe.d_expert))
    return model.d_model + 2 * widest
