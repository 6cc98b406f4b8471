"""Bytes on one GPU of a cluster: training by plan, and serving. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.core.cluster import Plan
from labkit.core.cluster_links import SCALE_BYTES
from labkit.core.config import ModelConfig
from labkit.core.memory import attention_values, ffn_values
from labkit.core.parameters import layer_params, model_params


@dataclass(frozen=True)
class GpuMemory:
    """Bytes on the fullest GPU, by what they hold."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    cache: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Share:
    """Parameters that one GPU holds: of routed experts, and of everything else."""

    experts: float
    rest: float

    @property
    def total(self) -> float:
        """Both."""
        return self.experts + self.rest


def local_params(model: ModelConfig, plan: Plan) -> Share:
    """The parameters of one GPU before any sharding over data parallelism: over pp, and tp or ep.

    The stages are taken as equal; embedding and head count where they are, spread over all of them.
    """
    p, modules = model_params(model), model.num_mtp_layers
    layer = layer_params(model.moe).routed_experts if model.moe is not None else 0
    routed = p.routed_experts + modules * layer
    rest = p.total - p.routed_experts + modules * (p.attention / model.num_layers + 2 * model.d_model**2)
    return Share(routed / (plan.pp * plan.ep), rest / (plan.pp * plan.tp))


def kept_values(model: ModelConfig, recompute: str = "none", *, copies: bool = False) -> float:
    """Values that all layers keep for the backward pass of one token.

    Attention as `core.memory.activation_bytes` counts it. Feed-forward kernels are taken as fused: they keep their
    input and what gate and up give, 2·F, and make SwiGLU again (docs/kernels.md: the 513 MiB of olmoe-16k are its
    T·K·2·F values).
    "selective" makes norms' outputs again too, and what MLA expands from its latents (DeepSeek-V3, arXiv 2412.19437,
    section 3.2.3); "full" keeps each layer's input.

    Args:
        copies: whether each of a token's K experts has its own copy of the token, as on other GPUs.
    """
    m = model
    if recompute == "full":
        return m.num_layers * m.d_model
    attention, dense, sparse = attention_values(m, m.max_context, True), 2 * (m.d_model + m.d_dense), 0
    if m.moe is not None:
        visited = m.moe.top_k + m.moe.num_shared_experts
        sparse = 2 * m.d_model + 2 * visited * m.moe.d_expert + (m.moe.top_k * m.d_model if copies else 0)
    if recompute == "selective":
        expanded = m.num_heads * (2 * (m.mla_nope_dim + m.mla_rope_dim) + m.mla_v_dim) if m.attention == "mla" else 0
        attention -= m.d_model + expanded
        dense, sparse = dense - m.d_model, sparse - m.d_model
    return m.num_layers * attention + m.num_sparse_layers * sparse + m.num_dense_layers * dense


def moved_values(model: ModelConfig, *, copies: bool = False) -> float:
    """Values of one token that all layers' kernels move outside of products, counted as in `Rates.passes`.

    Attention's and dense feed-forward's as `core.memory.activation_bytes` counts what they keep; of a sparse layer only
    the norm's, and with `copies` the K copies sent and received: the rest of its traffic is in `Rates.grouped`.
    """
    m = model
    sparse = 2 * m.d_model + (2 * m.moe.top_k * m.d_model if copies else 0) if m.moe is not None else 0
    dense = ffn_values(m, False) if m.num_dense_layers else 0
    attention = m.num_layers * attention_values(m, m.max_context, True)
    return attention + m.num_sparse_layers * sparse + m.num_dense_layers * dense


def training_memory_per_gpu(model: ModelConfig, plan: Plan) -> GpuMemory:
    """Bytes of the fullest GPU in training.

    Weights in 16 bits (in FP8 a byte more for the copy that products read); gradients and optimizer as the plan says,
    the optimizer always over dp; with ZeRO-3 two gathered layers and one's gradients besides. Activations, in FP8 a
    byte and its share of a scale a value, of `in_flight` micro-batches at once on the first stage (1F1B: p and the
    interleaving's share more, Narayanan et al. 2021, section 2.2; DualPipe: p + 1 and the weights twice, DeepSeek-V3,
    table 2), and the logits of one micro-batch if the pipeline has one stage.
    """
    local, dp = local_params(model, plan), plan.dp * plan.cp
    sharded = local.experts / expert_ranks(plan) + local.rest / dp
    twice = 2 if plan.schedule == "dualpipe" and plan.pp > 1 else 1
    fp8 = plan.precision == "fp8"
    working = 8 * local.total * plan.pp / model.num_layers if plan.zero == 3 else 0
    tokens = plan.micro_batch * plan.context / (plan.cp * plan.tp)
    kept = kept_values(model, plan.recompute, copies=plan.ep > 1) * (1 + SCALE_BYTES if fp8 else 2)
    logits = tokens * 6 * model.vocab_size if plan.pp == 1 else 0
    return GpuMemory(
        weights=(3 if fp8 else 2) * (sharded if plan.zero == 3 else local.total * twice) + working,
        gradients=plan.gradient_bytes * (sharded if plan.zero >= 2 else local.total * twice),
        optimizer=plan.state_bytes * sharded,
        activations=tokens * kept / plan.pp * in_flight(plan) + logits,
    )


def expert_ranks(plan: Plan) -> int:
    """GPUs that hold the same experts: the data-parallel group of routed experts."""
    return plan.dp * plan.tp * plan.cp // plan.ep


def in_flight(plan: Plan) -> float:
    """Micro-batches whose activations a rank holds at once, in stages' worth; two where they hide each other's sends.

    >>> in_flight(Plan(pp=4, batch=16)), in_flight(Plan(pp=4, batch=16, schedule="dualpipe"))
    (4.0, 5.0)
    """
    if plan.pp == 1:
        return 2.0 if plan.ep > 1 and "ep" in plan.overlap and plan.micro_batches > 1 else 1.0
    if plan.schedule == "dualpipe":
        return float(min(plan.micro_batches, plan.pp + 1))
    more = (plan.pp - 1) / (plan.pp * plan.chunks) if plan.chunks > 1 else 0.0
    return min(plan.micro_batches, plan.pp) * (1 + more)
