"""Tiny random models of every family: a configuration drawn by hypothesis, and transformers' model of it."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from labkit.core.config import ModelConfig, MoEConfig, YarnConfig
from labkit.core.names import hf_config

SIZES = st.sampled_from([5, 8, 12])


@st.composite
def moe_configs(draw, d_model: int, **fixed) -> MoEConfig:
    """A sparse layer; with `grouped` its experts may fall into groups."""
    grouped, shared = fixed.pop("grouped", False), fixed.pop("shared", False)
    groups = draw(st.sampled_from([1, 2, 3])) if grouped else 1
    experts = groups * draw(st.integers(2, 4)) if groups > 1 else draw(st.integers(2, 7))
    top_groups = draw(st.integers(1, groups))
    top_k = draw(st.integers(1, min(3, top_groups * (experts // groups))))
    values = {"num_groups": groups, "top_groups": top_groups, "num_experts": experts, "top_k": top_k, **fixed}
    if shared:
        values["num_shared_experts"] = draw(st.integers(1, 2))
    return MoEConfig(d_model=d_model, d_expert=draw(SIZES), **values)


@st.composite
def yarns(draw, **fixed) -> YarnConfig | None:
    """A stretched context, or none."""
    if draw(st.booleans()):
        return None
    return YarnConfig(draw(st.sampled_from([4.0, 16.0])), draw(st.sampled_from([16, 64])), **fixed)


@st.composite
def models(draw, family: str) -> ModelConfig:
    """A model that this family can express."""
    heads = draw(st.sampled_from([1, 2, 4]))
    kv_heads = draw(st.sampled_from([h for h in (1, 2, 4) if heads % h == 0]))
    head_dim = draw(st.sampled_from([4, 6, 8]))
    d_model = heads * head_dim if family == "olmoe" else draw(st.sampled_from([12, 16, 20]))
    common = {
        "name": family, "vocab_size": draw(st.integers(11, 40)), "num_layers": draw(st.integers(1, 3)),
        "d_model": d_model, "num_heads": heads, "num_kv_heads": kv_heads, "head_dim": head_dim,
        "tie_embeddings": draw(st.booleans()), "max_context": 64,
        "rope_theta": draw(st.sampled_from([100.0, 10_000.0])),
        "norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
    }  # fmt: skip
    return ModelConfig.from_dict(draw(_DRAWS[family](common)))


@st.composite
def _mixtral(draw, common: dict) -> dict:
    moe = draw(moe_configs(common["d_model"]))
    return {**common, "moe": moe, "sliding_window": draw(st.sampled_from([0, 3, 5]))}


@st.composite
def _olmoe(draw, common: dict) -> dict:
    moe = draw(moe_configs(common["d_model"], norm_topk=draw(st.booleans())))
    return {**common, "moe": moe, "qk_norm": "full", "attention_bias": draw(st.booleans())}


@st.composite
def _qwen3(draw, common: dict) -> dict:
    moe = draw(moe_configs(common["d_model"], norm_topk=draw(st.booleans())))
    dense = draw(st.integers(0, common["num_layers"]))
    return {
        **common, "moe": moe, "qk_norm": "head", "attention_bias": draw(st.booleans()), "num_dense_layers": dense,
        "d_dense": 14 if dense else 0,
    }  # fmt: skip


@st.composite
def _latent(draw, common: dict) -> dict:
    nope, rope = draw(st.sampled_from([4, 6])), draw(st.sampled_from([2, 4]))
    dense = draw(st.integers(0, common["num_layers"]))
    return {
        **common, "attention": "mla", "num_kv_heads": common["num_heads"], "head_dim": nope + rope,
        "mla_nope_dim": nope, "mla_rope_dim": rope, "mla_v_dim": draw(st.sampled_from([4, 5, 10])),
        "mla_kv_rank": draw(st.sampled_from([6, 10])), "mla_q_rank": draw(st.sampled_from([0, 7])),
        "attention_bias": draw(st.booleans()), "num_dense_layers": dense, "d_dense": 14 if dense else 0,
        "rope_interleaved": True, "yarn": draw(yarns(mscale=1.0, mscale_all_dim=draw(st.sampled_from([0.5, 1.0])))),
    }  # fmt: skip


@st.composite
def _deepseek_v2(draw, common: dict) -> dict:
    fixed = {"norm_topk": False, "route_scale": draw(st.sampled_from([1.0, 2.0]))}
    return {**draw(_latent(common)), "moe": draw(moe_configs(common["d_model"], grouped=True, shared=True, **fixed))}


@st.composite
def _deepseek_v3(draw, common: dict) -> dict:
    fixed = {
        "norm_topk": draw(st.booleans()), "route_scale": draw(st.sampled_from([1.0, 2.5])), "score_fn": "sigmoid",
        "selection_bias": True, "group_score": "top2_sum",
    }  # fmt: skip
    moe = draw(moe_configs(common["d_model"], grouped=True, shared=True, **fixed))
    return {**draw(_latent(common)), "moe": moe, "rope_interleaved": draw(st.booleans())}


@st.composite
def _gpt_oss(draw, common: dict) -> dict:
    fixed = {"score_fn": "topk_softmax", "router_bias": True, "expert_bias": True, "activation": "clamped_swiglu"}
    moe = draw(moe_configs(common["d_model"], swiglu_limit=draw(st.sampled_from([0.7, 7.0])), **fixed))
    window = draw(st.sampled_from([0, 3]))
    return {
        **common, "moe": moe, "attention_bias": draw(st.booleans()), "attention_sinks": True, "sliding_window": window,
        "full_attention_every": 2 if window and common["num_layers"] > 1 else 0,
        "yarn": draw(yarns(truncate=draw(st.booleans()))),
    }  # fmt: skip


_DRAWS = {
    "mixtral": _mixtral, "olmoe": _olmoe, "qwen3_moe": _qwen3, "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3, "gpt_oss": _gpt_oss,
}  # fmt: skip
FAMILIES = tuple(_DRAWS)


def theirs(config: ModelConfig, family: str, seed: int = 0) -> nn.Module:
    """transformers' own model with random weights everywhere: matrices, norms, biases, sinks, the selection bias."""
    from transformers import AutoModelForCausalLM

    found = hf_config(config, family, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    found._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(found, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
            if "norm" in name:
                tensor.uniform_(0.7, 1.3, generator=generator)
            else:
                std = tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 0.3
                tensor.normal_(std=std, generator=generator)
    return model


def saved(model: nn.Module, folder: Path) -> Path:
    """The folder that transformers writes."""
    model.save_pretrained(folder)
    return folder


def off(ours: Tensor, wanted: Tensor) -> float:
    """How far apart two tensors are, relative to the size of the wanted one."""
    return ((ours - wanted).norm() / wanted.norm().clamp_min(1e-12)).item()
