"""What things cost: FLOPs and bytes moved, and in one place the counts and the memory of the neighbouring modules.

Pure arithmetic, no torch. One multiply-add is two FLOPs; only matrix products count, as in torch's FLOP counter.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from labkit.core.config import ModelConfig, MoEConfig
from labkit.core.hardware import GPUS, Fit, Gpu, Roofline, fits, gpu, roofline
from labkit.core.memory import (
    InferenceMemory,
    TrainingMemory,
    activation_bytes,
    inference_memory,
    kv_cache_bytes,
    kv_cache_bytes_per_token,
    training_memory,
)
from labkit.core.parameters import (
    LayerParams,
    ModelParams,
    attention_matrices,
    layer_params,
    model_params,
    need_model,
    need_moe,
    vector_params,
)

__all__ = [
    "GPUS",
    "ExpertBytes",
    "Fit",
    "Gpu",
    "InferenceMemory",
    "LayerParams",
    "MoEFlops",
    "ModelFlops",
    "ModelParams",
    "Roofline",
    "TrainingMemory",
    "activation_bytes",
    "dense_equivalent",
    "expected_experts",
    "expert_bytes",
    "fits",
    "gpu",
    "inference_memory",
    "kv_cache_bytes",
    "kv_cache_bytes_per_token",
    "layer_params",
    "model_flops_per_token",
    "model_params",
    "moe_flops",
    "roofline",
    "training_memory",
    "vector_params",
]  # fmt: skip


def _need_tokens(who: str, tokens: int, name: str = "tokens") -> int:
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
        raise ValueError(f"{who}: {name} is {tokens!r}; give a whole number of zero or more")
    return tokens


@dataclass(frozen=True)
class MoEFlops:
    """Forward FLOPs of one MoE layer by part."""

    router: int
    routed_experts: int
    shared_experts: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(astuple(self))


@dataclass(frozen=True)
class ModelFlops:
    """Forward FLOPs of one token through a whole model, by part."""

    projections: int
    scores: int
    dense: int
    router: int
    experts: int
    head: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(astuple(self))


@dataclass(frozen=True)
class ExpertBytes:
    """Bytes that the experts of one layer move, weights and activations."""

    weights: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.activations


def moe_flops(config: MoEConfig, tokens: int) -> MoEFlops:
    """Forward FLOPs of one MoE layer for so many tokens.

    Router 2·T·D·E; each visited expert 2·3·D·F a token (gate, up, down), K routed ones and every shared one. Score
    functions, top-k, SiLU, biases and the weighted sum are left out: they are less than a hundredth at usual widths.

    >>> moe_flops(MoEConfig(d_model=4, d_expert=8, num_experts=4, top_k=2), tokens=10)
    MoEFlops(router=320, routed_experts=3840, shared_experts=0)
    """
    c = need_moe(config, "moe_flops")
    expert = 6 * c.d_model * c.d_expert * _need_tokens("moe_flops", tokens)
    return MoEFlops(2 * tokens * c.d_model * c.num_experts, c.top_k * expert, c.num_shared_experts * expert)


def dense_equivalent(config: MoEConfig) -> MoEConfig:
    """The same layer with every expert visited by every token: what sparsity is compared with.

    >>> dense_equivalent(MoEConfig(d_model=4, d_expert=8, num_experts=4, top_k=2)).top_k
    4
    """
    c = need_moe(config, "dense_equivalent")
    return c.replace(top_k=c.num_experts, num_groups=1, top_groups=1)


def model_flops_per_token(model: ModelConfig, context: int) -> ModelFlops:
    """Forward FLOPs of one token that sees `context` positions, itself among them.

    Two FLOPs per active matrix parameter (the embedding is a lookup and costs none; the head does even when tied), and
    for every layer 2·context·H·(d_query + d_value) for scores and their weighted sum, at most a window's worth where
    attention slides. MLA is counted in its expanded form, each latent expanded once. Training costs about three times
    this: the backward pass has two products for every one (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).

    >>> from labkit.core.presets import preset
    >>> f = model_flops_per_token(preset("mixtral-8x7b"), context=1)
    >>> f.total // 10**9
    25
    """
    m = need_model(model, "model_flops_per_token")
    _need_tokens("model_flops_per_token", context, "context")
    if context == 0:
        raise ValueError("model_flops_per_token: context is 0; a token sees at least itself, so give 1 or more")
    moe = moe_flops(m.moe, 1) if m.moe is not None else MoEFlops(0, 0, 0)
    widths = m.mla_nope_dim + m.mla_rope_dim + m.mla_v_dim if m.attention == "mla" else 2 * m.head_dim
    window = m.num_window_layers
    seen = (m.num_layers - window) * context + window * min(context, m.sliding_window)
    return ModelFlops(
        projections=2 * m.num_layers * attention_matrices(m),
        scores=2 * seen * m.num_heads * widths,
        dense=6 * m.num_dense_layers * m.d_model * m.d_dense,
        router=m.num_sparse_layers * moe.router,
        experts=m.num_sparse_layers * (moe.routed_experts + moe.shared_experts),
        head=2 * m.vocab_size * m.d_model,
    )


def expected_experts(config: MoEConfig, tokens: int) -> float:
    """How many of the E experts at least one of the tokens visits, if routing is uniform and independent.

    E·(1 − (1 − K/E)^T). Real routing is less even, so this is an upper estimate.

    >>> expected_experts(MoEConfig(d_model=4, d_expert=8, num_experts=4, top_k=2), tokens=2)
    3.0
    """
    c = need_moe(config, "expected_experts")
    _need_tokens("expected_experts", tokens)
    return c.num_experts * (1 - (1 - c.top_k / c.num_experts) ** tokens)


def expert_bytes(config: MoEConfig, tokens: int, bytes_per_value: float = 2, visited: int | None = None) -> ExpertBytes:
    """Bytes that one forward pass of a layer's experts reads and writes when each operation goes through memory.

    Weights: every visited expert once, and the shared ones. Activations, per token and visited expert: read D, write
    2·F (gate and up), read 2·F, write F (their product), read F, write D, so 2·D + 6·F values. Fused kernels save some
    of that; a kernel that reads a weight tile again for every block of tokens moves more.

    Args:
        tokens: T.
        bytes_per_value: of weights and activations.
        visited: how many routed experts have at least one token; if not given, the most there can be, min(E, T·K).

    Raises ValueError for a number out of range.

    >>> expert_bytes(MoEConfig(d_model=4, d_expert=8, num_experts=4, top_k=2), tokens=1)
    ExpertBytes(weights=384, activations=224)
    """
    c = need_moe(config, "expert_bytes")
    most = min(c.num_experts, _need_tokens("expert_bytes", tokens) * c.top_k)
    visited = most if visited is None else _need_tokens("expert_bytes", visited, "visited")
    if visited > most:
        raise ValueError(f"expert_bytes: {visited} experts visited, but {tokens} tokens reach {most} at most")
    if not bytes_per_value > 0:
        raise ValueError(f"expert_bytes: bytes_per_value is {bytes_per_value}; give a positive number")
    shared = c.num_shared_experts if tokens else 0
    weights = (visited + shared) * layer_params(c).expert * bytes_per_value
    rows = tokens * (c.top_k + c.num_shared_experts)
    return ExpertBytes(int(weights), int(rows * (2 * c.d_model + 6 * c.d_expert) * bytes_per_value))
