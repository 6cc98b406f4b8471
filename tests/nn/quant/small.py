"""Small seeded models of ours, and what a packed model should equal: the same model with weights made whole."""

from __future__ import annotations

import copy

import torch
from torch import nn

from labkit.core.config import ModelConfig, MoEConfig
from labkit.nn import Experts, SwiGLU, Transformer
from labkit.nn.quant.experts import QuantExperts
from labkit.nn.quant.modules import QuantEmbedding, QuantLinear, QuantSwiGLU

MOE = {"d_model": 64, "d_expert": 32, "num_experts": 4, "top_k": 2}
SIZES = {"vocab_size": 64, "num_layers": 2, "d_model": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
MLA = {
    "attention": "mla", "num_kv_heads": 4, "head_dim": 24, "mla_kv_rank": 16, "mla_rope_dim": 8, "mla_nope_dim": 16,
    "mla_v_dim": 16,
}  # fmt: skip


def ours(seed: int = 0, moe: dict | None = None, **changes) -> Transformer:
    """A transformer of ours with a dense layer, shared experts and random weights."""
    config = ModelConfig(
        "small", **{**SIZES, "num_dense_layers": 1, "d_dense": 96, **changes},
        moe=MoEConfig(**{**MOE, "num_shared_experts": 1, **(moe or {})}),
    )  # fmt: skip
    model = Transformer(config).eval()
    draw = torch.Generator().manual_seed(seed)
    model.reset_parameters(draw)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "bias" in name:
            nn.init.normal_(parameter, mean=float("norm" in name), std=0.2, generator=draw)
    return model


def ids(B: int = 2, S: int = 9, V: int = 64) -> torch.Tensor:
    return torch.randint(0, V, (B, S), generator=torch.Generator().manual_seed(7))


def whole(model: nn.Module, packed: nn.Module) -> nn.Module:
    """A copy of the plain model that holds the packed one's weights, made whole."""
    model = copy.deepcopy(model)
    plain = dict(model.named_modules())
    for path, module in packed.named_modules():
        mine = plain.get(path)
        if isinstance(module, (QuantLinear, QuantEmbedding)):
            mine.weight.data = module.weight
        elif isinstance(module, (QuantExperts, QuantSwiGLU)):
            for name, held in zip(_matrices(mine), (module.up, module.down), strict=True):
                w = held.packed.dequantize()
                getattr(mine, name).data = w.mT.contiguous() if getattr(mine, "is_transposed", False) else w
    return model


def _matrices(module: nn.Module) -> tuple[str, str]:
    if isinstance(module, Experts):
        return "gate_up_E2FD", "down_EDF"
    return ("gate_up_2FD", "down_DF") if isinstance(module, SwiGLU) else ("gate_up_proj", "down_proj")
