"""Tiny seeded models of the six families, with logits wide enough that an error shows."""

from __future__ import annotations

import torch

from labkit.core.config import ModelConfig, MoEConfig, YarnConfig
from labkit.nn import MoE, Transformer

V, E, K = 40, 6, 2
MOE = MoEConfig(d_model=16, d_expert=6, num_experts=E, top_k=K)
PLAIN = ModelConfig("plain", V, 2, 16, num_heads=4, num_kv_heads=2, head_dim=4, moe=MOE, rope_theta=1e4, max_context=96)
LATENT = PLAIN.replace(
    num_kv_heads=4, head_dim=8, attention="mla", mla_kv_rank=6, mla_nope_dim=4, mla_rope_dim=4, mla_v_dim=3,
    num_dense_layers=1, d_dense=20, rope_interleaved=True, max_context=64,
    yarn=YarnConfig(4.0, 16, mscale=1.0, mscale_all_dim=0.5),
    moe=MOE.replace(num_shared_experts=2, norm_topk=False, route_scale=1.5, num_groups=3, top_groups=2),
)  # fmt: skip
FAMILIES = {
    "mixtral": PLAIN.replace(sliding_window=5),
    "olmoe": PLAIN.replace(qk_norm="full", tie_embeddings=True, moe=MOE.replace(norm_topk=False)),
    "qwen3_moe": PLAIN.replace(qk_norm="head", num_dense_layers=1, d_dense=20, attention_bias=True),
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT.replace(
        mla_q_rank=6, attention_bias=True,
        moe=LATENT.moe.replace(score_fn="sigmoid", selection_bias=True, group_score="top2_sum", norm_topk=True),
    ),
    "gpt_oss": PLAIN.replace(
        attention_bias=True, attention_sinks=True, sliding_window=3, full_attention_every=2,
        yarn=YarnConfig(8.0, 16, truncate=False), max_context=128,
        moe=MOE.replace(score_fn="topk_softmax", router_bias=True, expert_bias=True, activation="clamped_swiglu",
                        swiglu_limit=0.7),
    ),
}  # fmt: skip


def seeded(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model in which no two tensors are alike and biases count."""
    model, generator = Transformer(config).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in {id(t): (n, t) for n, t in model.state_dict(keep_vars=True).items()}.values():
            flat = tensor.ndim == 1 or "bias" in name
            tensor.normal_(std=0.3 if flat else 2.0 * tensor.shape[-1] ** -0.5, generator=generator)
            if "norm" in name:
                tensor.add_(1.0)
    return model


def crowded(config: ModelConfig) -> Transformer:
    """A model whose routers send every token to the same K experts: all logits are equal, the lower numbers win."""
    model = seeded(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, MoE):
                for bias in (module.router.weight_ED, module.router.bias_E, module.router.expert_bias_E):
                    if bias is not None:
                        bias.zero_()
    return model


def prompts(B: int = 3, S: int = 7, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids [B, S] and a mask: row b begins with b padding tokens."""
    ids_BS = torch.randint(V, (B, S), generator=torch.Generator().manual_seed(seed))
    return ids_BS, (torch.arange(S)[None] >= torch.arange(B)[:, None]).long()
