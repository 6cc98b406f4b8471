"""A tiny model of every family, with random weights everywhere, alone and over a paged cache."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from labkit.core.config import ModelConfig, MoEConfig, YarnConfig
from labkit.nn import Transformer
from labkit.serve.cache.paged import Layout, PagedCache

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


def tokens(length: int, seed: int = 0) -> tuple[int, ...]:
    """Random ids."""
    return tuple(torch.randint(V, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


@torch.no_grad()
def alone(model, ids) -> torch.Tensor:
    """[S, V] logits of one sequence without any cache."""
    return model(torch.tensor([ids], device=model.device)).logits[0]


@torch.no_grad()
def run(model, cache: PagedCache, chunks) -> list[torch.Tensor]:
    """One step; the logits of each chunk's tokens."""
    layout = Layout.of(chunks, cache.block_size, model.device)
    ids_1T = torch.tensor([[token for chunk in chunks for token in chunk.tokens]], device=model.device)
    with cache.using(layout):
        logits = model(ids_1T, position_ids=layout.positions_T[None], cache=cache).logits[0]
    return list(logits.split([len(chunk.tokens) for chunk in chunks]))


def chunk(ids, start: int, stop: int, blocks) -> SimpleNamespace:
    """What the scheduler would say."""
    return SimpleNamespace(start=start, tokens=tuple(ids[start:stop]), blocks=tuple(blocks))
