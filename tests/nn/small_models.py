"""Small sparse models of ours with every setting that pruning and merging must carry over."""

from __future__ import annotations

import torch
from torch import nn

from labkit.core.config import ModelConfig, MoEConfig
from labkit.nn import Labelled, MoE, Transformer

KINDS = {
    "softmax": {},
    "softmax, not renormalised": {"norm_topk": False},
    "softmax of the chosen, biases": {
        "score_fn": "topk_softmax", "router_bias": True, "expert_bias": True, "activation": "clamped_swiglu",
    },
    "sigmoid, selection bias, shared": {
        "score_fn": "sigmoid", "selection_bias": True, "route_scale": 2.5, "num_shared_experts": 1,
    },
}  # fmt: skip
V, E, D, F = 48, 6, 16, 8


def build(kind: str = "softmax", seed: int = 0, *, tie: bool = True, dense: int = 0, **changes) -> Transformer:
    moe = MoEConfig(**{"d_model": D, "d_expert": F, "num_experts": E, "top_k": 2, **KINDS[kind], **changes})
    config = ModelConfig(
        "small", V, 3, D, num_heads=2, num_kv_heads=1, head_dim=8, moe=moe, num_dense_layers=dense,
        d_dense=24 if dense else 0, tie_embeddings=tie,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Transformer(config)
    for module in model.modules():
        if isinstance(module, MoE):
            for values in [*module.parameters(), *module.buffers()]:
                if values.ndim == 1 or values.shape in ((E, 2 * F), (E, D)):  # biases start at zero
                    nn.init.normal_(values, std=0.3)
    return model.eval()


def batch(B: int = 4, S: int = 10, seed: int = 1) -> Labelled:
    return Labelled(torch.randint(V, (B, S), generator=torch.Generator().manual_seed(seed)))
