"""A tiny model of every family, in float64, with random weights everywhere."""

from __future__ import annotations

import torch

from labkit.core.config import ModelConfig, MoEConfig, YarnConfig
from labkit.nn import Transformer

V, D = 50, 24
_COMMON = {"vocab_size": V, "num_layers": 3, "d_model": D, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
_LATENT = {
    "attention": "mla", "num_kv_heads": 4, "head_dim": 10, "mla_kv_rank": 12, "mla_nope_dim": 6, "mla_rope_dim": 4,
    "mla_v_dim": 5, "rope_interleaved": True, "num_dense_layers": 1, "d_dense": 16,
}  # fmt: skip
_GROUPED = {"num_groups": 2, "top_groups": 1, "num_shared_experts": 1}
FAMILIES = {
    "mixtral": ({"sliding_window": 5}, {}),
    "olmoe": ({"num_kv_heads": 4, "qk_norm": "full"}, {"norm_topk": False}),
    "qwen3_moe": ({"qk_norm": "head", "head_dim": 6}, {}),
    "deepseek_v2": ({**_LATENT, "yarn": YarnConfig(4.0, 16, mscale=1.0, mscale_all_dim=0.5)}, _GROUPED),
    "deepseek_v3": (
        {**_LATENT, "mla_q_rank": 7},
        {**_GROUPED, "score_fn": "sigmoid", "selection_bias": True, "group_score": "top2_sum", "route_scale": 2.5},
    ),
    "gpt_oss": (
        {"attention_sinks": True, "attention_bias": True, "sliding_window": 4, "full_attention_every": 2},
        {"score_fn": "topk_softmax", "router_bias": True, "expert_bias": True, "activation": "clamped_swiglu"},
    ),
}  # fmt: skip


def build(family: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Transformer:
    """The family's model; every vector (norms, biases, sinks) is random too."""
    changes, sparse = FAMILIES[family]
    moe = MoEConfig(**{"d_model": D, "d_expert": 8, "num_experts": 6, "top_k": 2, **sparse})
    model = Transformer(ModelConfig(**{"name": family, **_COMMON, "moe": moe, **changes}))
    draw = torch.Generator().manual_seed(seed)
    model.reset_parameters(draw)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    return model.to(dtype).eval()
