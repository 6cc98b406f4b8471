"""Transformers' own routers, experts and sparse blocks, tiny and seeded: what ours must agree with.

Every class name of transformers that the labs compare with stands in this file (checked with 5.15 to 5.23).
Importing it is cheap: transformers is imported when a function is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.core.config import MoEConfig


@dataclass(frozen=True)
class Family:
    """Where transformers keeps one family, and which decisions its router can express."""

    package: str
    config: str
    router: str
    experts: str
    block: str
    fixed: tuple[tuple[str, object], ...]  # MoEConfig fields that its code hard-wires
    width: str = "moe_intermediate_size"  # the configuration's name of F


_SOFTMAX = (("score_fn", "softmax"), ("route_scale", 1.0), ("selection_bias", False), ("num_groups", 1))
_PLAIN = (*_SOFTMAX, ("router_bias", False), ("num_shared_experts", 0))

FAMILIES = {
    "mixtral": Family(
        "mixtral", "MixtralConfig", "MixtralTopKRouter", "MixtralExperts", "MixtralSparseMoeBlock",
        (*_PLAIN, ("norm_topk", True)), "intermediate_size",
    ),
    "olmoe": Family(
        "olmoe", "OlmoeConfig", "OlmoeTopKRouter", "OlmoeExperts", "OlmoeSparseMoeBlock", _PLAIN, "intermediate_size",
    ),
    "qwen3_moe": Family(
        "qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeTopKRouter", "Qwen3MoeExperts", "Qwen3MoeSparseMoeBlock", _PLAIN,
    ),
    "deepseek_v2": Family(
        "deepseek_v2", "DeepseekV2Config", "DeepseekV2TopkRouter", "DeepseekV2Experts", "DeepseekV2Moe",
        (
            ("score_fn", "softmax"), ("norm_topk", False), ("selection_bias", False), ("router_bias", False),
            ("group_score", "max"),
        ),
    ),
    "deepseek_v3": Family(
        "deepseek_v3", "DeepseekV3Config", "DeepseekV3TopkRouter", "DeepseekV3Experts", "DeepseekV3MoE",
        (("score_fn", "sigmoid"), ("router_bias", False), ("group_score", "top2_sum")),
    ),
    "gpt_oss": Family(
        "gpt_oss", "GptOssConfig", "GptOssTopKRouter", "GptOssExperts", "GptOssMLP",
        (
            ("score_fn", "topk_softmax"), ("route_scale", 1.0), ("selection_bias", False), ("num_groups", 1),
            ("router_bias", True),
        ),
        "intermediate_size",
    ),
}  # fmt: skip


def hf_router(family: str, config: MoEConfig, seed: int = 0) -> tuple[nn.Module, Callable[[Tensor], tuple]]:
    """Transformers' router of one family, with seeded normal weights (deviation D^-0.5) and biases.

    Args:
        family: one of `FAMILIES`.
        config: what it should decide; ValueError if that family cannot.
        seed: of the weights.

    Returns the module and a function from x [T, D] to `(topk_ids_TK, topk_scores_TK, full_TE)`, where `full_TE` holds
    the scores at the chosen experts and zero elsewhere: it does not depend on the order of the K.
    """
    module = _seeded(_class(family, "router")(_hf_config(family, config)), config, seed)

    def call(x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, topk_scores_TK, topk_ids_TK = module(x_TD)
        full_TE = topk_scores_TK.new_zeros(len(topk_ids_TK), config.num_experts)
        return topk_ids_TK, topk_scores_TK, full_TE.scatter(1, topk_ids_TK, topk_scores_TK)

    return module, call


def hf_route(
    family: str, config: MoEConfig, x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What transformers' router decides for x with these weights: `(topk_ids_TK, topk_scores_TK, full_TE)`.

    Args:
        x_TD: [T, D]; weight_ED: [E, D].
        bias_E: [E], the selection bias of "deepseek_v3" or the learned router bias of "gpt_oss"; other families have
            none and raise ValueError.
    """
    module, call = hf_router(family, config)
    name = {"deepseek_v3": "e_score_correction_bias", "gpt_oss": "bias"}.get(family)
    if bias_E is not None and name is None:
        raise ValueError(f"transformers' {family} router has no bias; leave bias_E out")
    with torch.no_grad():
        module.to(weight_ED.dtype)
        module.weight.copy_(weight_ED)
        if name:
            getattr(module, name).copy_(torch.zeros(config.num_experts) if bias_E is None else bias_E)
        return call(x_TD)


def hf_experts(
    family: str, config: MoEConfig, x_TD: Tensor, topk_ids_TK: Tensor, topk_scores_TK: Tensor,
    gate_up_E2FD: Tensor, down_EDF: Tensor,
) -> Tensor:  # fmt: skip
    """What transformers' eager experts make of these decisions with these weights: [T, D].

    Raises ValueError for "gpt_oss", whose experts have biases, a clamp and another layout.
    """
    if family == "gpt_oss":
        raise ValueError("gpt_oss experts have biases, a clamp and another layout; compare with another family")
    module = _class(family, "experts")(_hf_config(family, config))
    names = {"gate_up_proj": gate_up_E2FD, "down_proj": down_EDF}
    return torch.func.functional_call(module, names, (x_TD, topk_ids_TK, topk_scores_TK))


def hf_block(family: str, config: MoEConfig, seed: int = 0) -> nn.Module:
    """Transformers' whole sparse block (router, eager experts, shared experts), seeded; [B, S, D] in and out."""
    return _seeded(_class(family, "block")(_hf_config(family, config)), config, seed)


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ValueError(f"family is {name!r}; choose one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _class(family: str, part: str) -> type:
    found = _family(family)
    module = importlib.import_module(f"transformers.models.{found.package}.modeling_{found.package}")
    name = getattr(found, part)
    if not hasattr(module, name):
        near = [n for n in dir(module) if part[:6].lower() in n.lower()]
        raise ValueError(f"this transformers has no {name}; it has {near}. Install a version from 5.15 to 5.23")
    return getattr(module, name)


def _hf_config(family: str, config: MoEConfig):
    found = _family(family)
    for key, value in found.fixed:
        if getattr(config, key) != value and not _idle(config, key):
            raise ValueError(f"transformers' {family} has {key} = {value!r}; the config says {getattr(config, key)!r}")
    E = config.num_experts
    values = {
        "hidden_size": config.d_model, found.width: config.d_expert, "num_experts_per_tok": config.top_k,
        "norm_topk_prob": config.norm_topk, "routed_scaling_factor": config.route_scale,
        "n_shared_experts": config.num_shared_experts, "n_group": config.num_groups, "topk_group": config.top_groups,
        "topk_method": "group_limited_greedy" if config.num_groups > 1 else "greedy",
        "num_experts": E, "num_local_experts": E, "n_routed_experts": E, "hidden_act": "silu",
        "num_attention_heads": 1, "num_key_value_heads": 1,
    }  # fmt: skip
    package = importlib.import_module(f"transformers.models.{found.package}.configuration_{found.package}")
    built = getattr(package, found.config)
    known = built()
    built = built(**{key: value for key, value in values.items() if hasattr(known, key)})
    built._experts_implementation = "eager"
    return built


def _idle(config: MoEConfig, key: str) -> bool:
    return key == "group_score" and config.num_groups == 1


def _seeded(module: nn.Module, config: MoEConfig, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
            width = tensor.shape[-1] if tensor.ndim > 1 else 100.0
            tensor.normal_(std=width**-0.5, generator=generator)
            if name.endswith("e_score_correction_bias") and not config.selection_bias:
                tensor.zero_()
    return module
