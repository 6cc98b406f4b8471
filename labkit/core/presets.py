"""Published models as configurations, so that every count in the course is about a model one can download.

The values are those of each model's `config.json` on its model card (`SOURCES`). Left out on purpose: vision towers,
multi-token-prediction heads (DeepSeek-V3's second 14B) and quantised storage formats (gpt-oss ships its experts in
MXFP4; the parameter count does not change).
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from labkit.core.config import ModelConfig, MoEConfig, YarnConfig


def _mixtral(name: str, layers: int, d_model: int, heads: int, d_expert: int, context: int) -> ModelConfig:
    return ModelConfig(
        name=name, vocab_size=32_000, num_layers=layers, d_model=d_model, num_heads=heads, num_kv_heads=8, head_dim=128,
        norm_eps=1e-5, rope_theta=1e6, max_context=context,
        moe=MoEConfig(d_model=d_model, d_expert=d_expert, num_experts=8, top_k=2),
    )  # fmt: skip


def _qwen3(name: str, layers: int, d_model: int, heads: int, d_expert: int) -> ModelConfig:
    return ModelConfig(
        name=name, vocab_size=151_936, num_layers=layers, d_model=d_model, num_heads=heads, num_kv_heads=4,
        head_dim=128, qk_norm="head", rope_theta=1e6, max_context=40_960,
        moe=MoEConfig(d_model=d_model, d_expert=d_expert, num_experts=128, top_k=8),
    )  # fmt: skip


def _gpt_oss(name: str, layers: int, experts: int) -> ModelConfig:
    return ModelConfig(
        name=name, vocab_size=201_088, num_layers=layers, d_model=2880, num_heads=64, num_kv_heads=8, head_dim=64,
        attention_bias=True, attention_sinks=True, sliding_window=128, full_attention_every=2, norm_eps=1e-5,
        rope_theta=150_000.0, max_context=131_072, yarn=YarnConfig(32.0, 4096, truncate=False),
        moe=MoEConfig(
            d_model=2880, d_expert=2880, num_experts=experts, top_k=4, score_fn="topk_softmax", router_bias=True,
            expert_bias=True, activation="clamped_swiglu",
        ),
    )  # fmt: skip


_OLMOE = ModelConfig(
    name="olmoe-1b-7b", vocab_size=50_304, num_layers=16, d_model=2048, num_heads=16, num_kv_heads=16, head_dim=128,
    qk_norm="full", norm_eps=1e-5,
    moe=MoEConfig(d_model=2048, d_expert=1024, num_experts=64, top_k=8, norm_topk=False),
)  # fmt: skip

_DEEPSEEK_V2_LITE = ModelConfig(
    name="deepseek-v2-lite", vocab_size=102_400, num_layers=27, d_model=2048, num_heads=16, num_kv_heads=16,
    head_dim=192, attention="mla", mla_kv_rank=512, mla_nope_dim=128, mla_rope_dim=64, mla_v_dim=128,
    num_dense_layers=1, d_dense=10_944, rope_interleaved=True, max_context=163_840,
    yarn=YarnConfig(40, 4096, mscale=0.707, mscale_all_dim=0.707),
    moe=MoEConfig(d_model=2048, d_expert=1408, num_experts=64, top_k=6, num_shared_experts=2, norm_topk=False),
)  # fmt: skip

_DEEPSEEK_V3 = ModelConfig(
    name="deepseek-v3", vocab_size=129_280, num_layers=61, d_model=7168, num_heads=128, num_kv_heads=128,
    head_dim=192, attention="mla", mla_q_rank=1536, mla_kv_rank=512, mla_nope_dim=128, mla_rope_dim=64, mla_v_dim=128,
    num_dense_layers=3, d_dense=18_432, rope_interleaved=True, max_context=163_840,
    yarn=YarnConfig(40, 4096, mscale=1.0, mscale_all_dim=1.0),
    moe=MoEConfig(
        d_model=7168, d_expert=2048, num_experts=256, top_k=8, num_shared_experts=1, score_fn="sigmoid",
        route_scale=2.5, selection_bias=True, num_groups=8, top_groups=4, group_score="top2_sum",
    ),
)  # fmt: skip

_MODELS = (
    _mixtral("mixtral-8x7b", 32, 4096, 32, 14_336, 32_768),
    _mixtral("mixtral-8x22b", 56, 6144, 48, 16_384, 65_536),
    _OLMOE,
    _qwen3("qwen3-30b-a3b", 48, 2048, 32, 768),
    _qwen3("qwen3-235b-a22b", 94, 4096, 64, 1536),
    _DEEPSEEK_V2_LITE,
    _DEEPSEEK_V3,
    _gpt_oss("gpt-oss-20b", 24, 32),
    _gpt_oss("gpt-oss-120b", 36, 128),
)

PRESETS: Mapping[str, ModelConfig] = MappingProxyType({model.name: model for model in _MODELS})
"""Published models by name."""

SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1; Jiang et al. 2024, arXiv 2401.04088, table 1",
        "mixtral-8x22b": "mistralai/Mixtral-8x22B-v0.1",
        "olmoe-1b-7b": "allenai/OLMoE-1B-7B-0924; Muennighoff et al. 2024, arXiv 2409.02060",
        "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B; Qwen team 2025, arXiv 2505.09388",
        "qwen3-235b-a22b": "Qwen/Qwen3-235B-A22B; Qwen team 2025, arXiv 2505.09388",
        "deepseek-v2-lite": "deepseek-ai/DeepSeek-V2-Lite; DeepSeek-AI 2024, arXiv 2405.04434, appendix B",
        "deepseek-v3": "deepseek-ai/DeepSeek-V3; DeepSeek-AI 2024, arXiv 2412.19437, section 4.2",
        "gpt-oss-20b": "openai/gpt-oss-20b; OpenAI 2025, arXiv 2508.10925",
        "gpt-oss-120b": "openai/gpt-oss-120b; OpenAI 2025, arXiv 2508.10925",
    }
)
"""Where each preset's values come from: the model card, and the paper where there is one."""


def preset(name: str) -> ModelConfig:
    """The published model of this name.

    Args:
        name: a key of `PRESETS`, such as "olmoe-1b-7b"; upper and lower case are the same.

    Raises ValueError for an unknown name, naming the nearest.

    >>> preset("olmoe-1b-7b").moe.num_experts
    64
    >>> preset("olmoe-7b")
    Traceback (most recent call last):
    ValueError: there is no preset 'olmoe-7b'; did you mean 'olmoe-1b-7b'?
    """
    if not isinstance(name, str):
        raise ValueError(f"preset takes a name, got {name!r}; the presets are {', '.join(PRESETS)}")
    if name.lower() in PRESETS:
        return PRESETS[name.lower()]
    near = get_close_matches(name.lower(), PRESETS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the presets are {', '.join(PRESETS)}"
    raise ValueError(f"there is no preset {name!r}; {hint}")
