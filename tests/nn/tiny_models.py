"""Tiny seeded models of transformers' families with experts, and what their own modules were given.

Weights are normal with deviation 0.2 (those of norms around one), selection biases with 0.05: no router is degenerate.
"""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers
from torch import nn

from labkit.nn import Labelled

V, E, K = 64, 8, 3
_SIZES = {
    "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": V, "max_position_embeddings": 32, "num_experts_per_tok": K,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
_NARROW = {"moe_intermediate_size": 16}
_HEADS = {"num_key_value_heads": 4}
_LATENT = {
    **_HEADS, **_NARROW, "n_routed_experts": E, "first_k_dense_replace": 1, "q_lora_rank": None, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_shared_experts": 1, "n_group": 4,
    "topk_group": 2,
}  # fmt: skip
_DENSE_FIRST = {**_NARROW, "n_routed_experts": E, "first_k_dense_replace": 1, "n_shared_experts": 1, "head_dim": 8}
_LINEAR = {
    "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}  # fmt: skip
_COMPRESSED = {
    **_NARROW, "num_key_value_heads": 1, "n_routed_experts": E, "head_dim": 16, "q_lora_rank": 16, "o_groups": 2,
    "o_lora_rank": 8, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 4, "hc_mult": 2, "sliding_window": 8,
    "layer_types": ["sliding_attention"] * 3, "mlp_layer_types": ["hash_moe", "moe", "moe"],
}  # fmt: skip

# family: (class of its configuration, what that wants beside the sizes, numbers of the sparse layers)
FAMILIES = {
    "mixtral": ("MixtralConfig", {"num_local_experts": E}, [0, 1, 2]),
    "olmoe": ("OlmoeConfig", {"num_experts": E}, [0, 1, 2]),
    "qwen2_moe": (
        "Qwen2MoeConfig", {**_NARROW, "num_experts": E, "shared_expert_intermediate_size": 16}, [0, 1, 2],
    ),
    "qwen3_moe": ("Qwen3MoeConfig", {**_NARROW, "num_experts": E, "head_dim": 8, "norm_topk_prob": True}, [0, 1, 2]),
    "qwen3_next": (
        "Qwen3NextConfig",
        {**_NARROW, **_LINEAR, "num_experts": E, "head_dim": 8, "shared_expert_intermediate_size": 16},
        [0, 1, 2],
    ),
    "deepseek_v2": ("DeepseekV2Config", {**_LATENT, "topk_method": "group_limited_greedy"}, [1, 2]),
    "deepseek_v3": ("DeepseekV3Config", _LATENT, [1, 2]),
    "deepseek_v4": ("DeepseekV4Config", _COMPRESSED, [0, 1, 2]),
    "gpt_oss": (
        "GptOssConfig", {"num_local_experts": E, "head_dim": 8, "layer_types": ["full_attention"] * 3}, [0, 1, 2],
    ),
    "glm4_moe": ("Glm4MoeConfig", _DENSE_FIRST, [1, 2]),
    "dots1": (
        "Dots1Config", {**_DENSE_FIRST, "n_group": 1, "topk_group": 1, "layer_types": ["full_attention"] * 3}, [1, 2],
    ),
    "granitemoe": ("GraniteMoeConfig", {"num_local_experts": E}, [0, 1, 2]),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig",
        {**_NARROW, "moe_num_experts": E, "moe_k": K, "moe_layer_start_index": 1, "moe_num_shared_experts": 1},
        [1, 2],
    ),
    "hunyuan_v1_moe": ("HunYuanMoEV1Config", {"num_experts": E, "moe_topk": K, "head_dim": 8}, [0, 1, 2]),
    "phimoe": ("PhimoeConfig", {"num_local_experts": E, "num_experts_per_tok": 2}, [0, 1, 2]),
    "minimax_m2": ("MiniMaxM2Config", {"num_local_experts": E, "head_dim": 8, "rotary_dim": 8}, [0, 1, 2]),
    "jamba": (
        "JambaConfig",
        {
            "num_experts": E, "expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 2,
            "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4,
        },
        [1],
    ),
}  # fmt: skip
HASHED = {("deepseek_v4", 0)}  # layers whose router does not decide by its logits
_UNREAD = {"granitemoe": (5, 17), "jamba": (5, 17)}  # up to this version their routers answer something else


def build(family: str, seed: int = 0, **changes) -> nn.Module:
    """The family's causal language model; the test is skipped where this version of transformers lacks the family."""
    name, extra, _ = FAMILIES[family]
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    if tuple(map(int, transformers.__version__.split(".")[:2])) <= _UNREAD.get(family, ()):
        pytest.skip(f"transformers {transformers.__version__}: {family} has no router that answers three tensors")
    config = getattr(transformers, name)(**{**_SIZES, **extra, **changes})
    return seeded(transformers.AutoModelForCausalLM.from_config(config).float(), seed)


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter, selection bias and hash table drawn again."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name), std=0.2, generator=draw)
        if "moe_statics" in name:
            parameter.data.mul_(0.25)
    for name, buffer in model.named_buffers():
        if "bias" in name:
            buffer.copy_(0.05 * torch.randn(buffer.shape, generator=draw))
        elif name.endswith("tid2eid"):
            buffer.copy_(torch.rand(len(buffer), E, generator=draw).argsort(1)[:, : buffer.shape[1]])
    return model.eval()


def batch(B: int = 3, S: int = 9, seed: int = 1, mask_BS: torch.Tensor | None = None) -> Labelled:
    """Random token ids of two domains."""
    ids_BS = torch.randint(3, V, (B, S), generator=torch.Generator().manual_seed(seed))
    return Labelled(ids_BS, ("a", "b", "a", "b", "a")[:B], mask_BS)


def routers(model: nn.Module) -> list[nn.Module]:
    """The modules that decide, in order."""
    kinds = ("Router", "MoEV1Gate", "Gating")
    return [m for m in model.modules() if any(kind in type(m).__name__ for kind in kinds) and list(m.parameters())]


def experts(model: nn.Module) -> list[nn.Module]:
    """The modules that hold the routed experts' weights, in order."""
    return [m for m in model.modules() if "Experts" in type(m).__name__]


def given_to(modules: list[nn.Module], call) -> list[list[torch.Tensor]]:
    """The tensors that each module was called with in `call()`, by the order of their parameters."""
    heard = {module: [] for module in modules}

    def hear(module, positional, named):
        bound = inspect.signature(module.forward).bind(*positional, **named)
        heard[module] = [
            value.detach().clone() for value in bound.arguments.values() if isinstance(value, torch.Tensor)
        ]

    hooks = [module.register_forward_pre_hook(hear, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad():
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return [heard[module] for module in modules]


def dense(ids_TK: torch.Tensor, scores_TK: torch.Tensor, num_experts: int = E) -> torch.Tensor:
    """[T, E]: the scores at their experts, zero elsewhere; in whatever order the K came."""
    return torch.zeros(len(ids_TK), num_experts).scatter_(1, ids_TK.long().cpu(), scores_TK.float().cpu())
