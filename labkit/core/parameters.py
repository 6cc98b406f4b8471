"""How many parameters a layer and a model have, and how many of them one token uses. Pure arithmetic.

The convention for "active": everything except the routed experts that a token does not visit. Embeddings and the output
head count, as in the figures most model cards publish. Buffers (DeepSeek-V3's selection bias) are not parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.core.config import ModelConfig, MoEConfig


@dataclass(frozen=True)
class LayerParams:
    """Parameters of one mixture-of-experts layer; `expert` is one routed expert."""

    router: int
    expert: int
    routed_experts: int
    shared_experts: int
    active: int

    @property
    def total(self) -> int:
        """All parameters of the layer."""
        return self.router + self.routed_experts + self.shared_experts


@dataclass(frozen=True)
class ModelParams:
    """Parameters of a whole model by part; the parts sum to `total`."""

    embedding: int
    head: int
    attention: int
    norms: int
    dense: int
    router: int
    routed_experts: int
    shared_experts: int
    active: int

    @property
    def total(self) -> int:
        """All parameters of the model."""
        return sum(self.parts().values())

    @property
    def active_share(self) -> float:
        """Active over total."""
        return self.active / self.total

    def parts(self) -> dict[str, int]:
        """The breakdown, without `active`, in the order a token meets it."""
        names = ("embedding", "attention", "norms", "dense", "router", "routed_experts", "shared_experts", "head")
        return {name: getattr(self, name) for name in names}


def need_moe(config: object, who: str) -> MoEConfig:
    """The configuration itself. Raises ValueError unless it is a MoEConfig."""
    if not isinstance(config, MoEConfig):
        raise ValueError(f"{who} takes a MoEConfig, got {type(config).__name__}; a model's sparse layer is `model.moe`")
    return config


def need_model(model: object, who: str) -> ModelConfig:
    """The configuration itself. Raises ValueError unless it is a ModelConfig."""
    if not isinstance(model, ModelConfig):
        raise ValueError(f"{who} takes a ModelConfig, got {type(model).__name__}; `preset(name)` gives one")
    return model


def layer_params(config: MoEConfig) -> LayerParams:
    """Parameters of one MoE layer with SwiGLU experts.

    An expert has three matrices of D × F: gate, up and down (Shazeer 2020, arXiv 2002.05202, equation 6), so 3·D·F, and
    with biases 2·F + D more. The router has E·D, and E more with a bias. Active: router, K experts, shared experts.

    >>> p = layer_params(MoEConfig(d_model=4, d_expert=8, num_experts=4, top_k=1))
    >>> p.router, p.expert, p.total, p.active
    (16, 96, 400, 112)
    """
    c = need_moe(config, "layer_params")
    expert = 3 * c.d_model * c.d_expert + (2 * c.d_expert + c.d_model if c.expert_bias else 0)
    router = c.num_experts * c.d_model + (c.num_experts if c.router_bias else 0)
    shared = c.num_shared_experts * expert
    return LayerParams(router, expert, c.num_experts * expert, shared, router + c.top_k * expert + shared)


def attention_matrices(model: ModelConfig) -> int:
    """Parameters of one layer's attention projections, without biases, norms and sinks.

    GQA: D·d·(2·H + 2·H_kv). MLA (DeepSeek-V2, arXiv 2405.04434, section 2.1, equations 9–19): queries
    D·H·(d_nope + d_rope), or through a rank; keys and values down to kv_rank + d_rope and up to H·(d_nope + d_v);
    output H·d_v·D.

    >>> from labkit.core.presets import preset
    >>> attention_matrices(preset("mixtral-8x7b"))
    41943040
    """
    m = need_model(model, "attention_matrices")
    if m.attention == "gqa":
        return 2 * m.d_model * m.head_dim * (m.num_heads + m.num_kv_heads)
    q_out = m.num_heads * (m.mla_nope_dim + m.mla_rope_dim)
    queries = m.mla_q_rank * (m.d_model + q_out) if m.mla_q_rank else m.d_model * q_out
    down = m.d_model * (m.mla_kv_rank + m.mla_rope_dim)
    up = m.mla_kv_rank * m.num_heads * (m.mla_nope_dim + m.mla_v_dim)
    return queries + down + up + m.num_heads * m.mla_v_dim * m.d_model


def attention_vectors(model: ModelConfig) -> int:
    """Parameters of one layer's attention that are not matrices: biases, norms inside attention, sinks."""
    m = need_model(model, "attention_vectors")
    sinks = m.num_heads if m.attention_sinks else 0
    if m.attention == "mla":
        bias = m.mla_q_rank + m.mla_kv_rank + m.mla_rope_dim + m.d_model if m.attention_bias else 0
        return sinks + bias + m.mla_q_rank + m.mla_kv_rank
    heads = m.num_heads + m.num_kv_heads
    bias = m.head_dim * (heads + m.num_kv_heads) + m.d_model if m.attention_bias else 0
    norms = {"none": 0, "head": 2 * m.head_dim, "full": heads * m.head_dim}[m.qk_norm]
    return sinks + bias + norms


def model_params(model: ModelConfig) -> ModelParams:
    """Parameters of a model, total, active (see the module's convention) and by part.

    >>> from labkit.core.presets import preset
    >>> p = model_params(preset("mixtral-8x7b"))
    >>> p.total, p.active
    (46702792704, 12879925248)
    """
    m = need_model(model, "model_params")
    layer = layer_params(m.moe) if m.moe is not None else LayerParams(0, 0, 0, 0, 0)
    sparse, top_k = m.num_sparse_layers, m.moe.top_k if m.moe is not None else 0
    embedding = m.vocab_size * m.d_model
    parts = {
        "embedding": embedding,
        "head": 0 if m.tie_embeddings else embedding,
        "attention": m.num_layers * (attention_matrices(m) + attention_vectors(m)),
        "norms": (2 * m.num_layers + 1) * m.d_model,
        "dense": m.num_dense_layers * 3 * m.d_model * m.d_dense,
        "router": sparse * layer.router,
        "routed_experts": sparse * layer.routed_experts,
        "shared_experts": sparse * layer.shared_experts,
    }
    idle = sparse * (layer.routed_experts - top_k * layer.expert)
    return ModelParams(**parts, active=sum(parts.values()) - idle)


def vector_params(model: ModelConfig) -> int:
    """Parameters of a model that are vectors: norms, biases and sinks. Muon leaves these to AdamW.

    >>> from labkit.core.presets import preset
    >>> vector_params(preset("olmoe-1b-7b"))
    133120
    """
    m = need_model(model, "vector_params")
    vectors = (2 * m.num_layers + 1) * m.d_model + m.num_layers * attention_vectors(m)
    if m.moe is None:
        return vectors
    experts = m.moe.num_experts + m.moe.num_shared_experts
    expert_bias = experts * (2 * m.moe.d_expert + m.d_model) if m.moe.expert_bias else 0
    return vectors + m.num_sparse_layers * (expert_bias + (m.moe.num_experts if m.moe.router_bias else 0))
