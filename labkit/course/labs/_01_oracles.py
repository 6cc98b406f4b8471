"""Lab 01's oracles: transformers' own routers, fed through an identity matrix (hidden states are the logits)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _identity_router(kind: type, config: Any, width: int) -> Any:
    router = kind(config).float()
    with torch.no_grad():
        router.weight.copy_(torch.eye(width))
    return router


def _in_order(ids: Tensor, weights: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """A choice without an order (topk with sorted=False), put in descending order of `key`."""
    order = key.gather(1, ids).argsort(dim=1, descending=True)
    return ids.gather(1, order), weights.gather(1, order)


def olmoe(logits_TE: Tensor, k: int, norm_topk: bool) -> tuple[Tensor, Tensor]:
    """Ids and weights of transformers' OLMoE router for these logits."""
    from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

    E = logits_TE.shape[1]
    config = OlmoeConfig(hidden_size=E, num_experts=E, num_experts_per_tok=k, norm_topk_prob=norm_topk)
    _, weights, ids = _identity_router(OlmoeTopKRouter, config, E)(logits_TE.float())
    return ids, weights


def qwen3(logits_TE: Tensor, k: int, norm_topk: bool) -> tuple[Tensor, Tensor]:
    """Ids and weights of transformers' Qwen3-MoE router for these logits; differentiable."""
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

    E = logits_TE.shape[1]
    config = Qwen3MoeConfig(hidden_size=E, num_experts=E, num_experts_per_tok=k, norm_topk_prob=norm_topk)
    _, weights, ids = _identity_router(Qwen3MoeTopKRouter, config, E)(logits_TE)
    return ids, weights


def deepseek_v3(logits_TE: Tensor, k: int, norm_topk: bool, bias_E: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Ids and weights of transformers' DeepSeek-V3 router with one group, best first by biased score."""
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    E = logits_TE.shape[1]
    config = DeepseekV3Config(
        hidden_size=E, n_routed_experts=E, num_experts_per_tok=k, n_group=1, topk_group=1, norm_topk_prob=norm_topk,
        routed_scaling_factor=scale, moe_intermediate_size=2, n_shared_experts=1,
    )  # fmt: skip
    block = DeepseekV3MoE(config)
    gate = block.gate.float()
    with torch.no_grad():
        gate.weight.copy_(torch.eye(E))
        gate.e_score_correction_bias.copy_(bias_E)
    out = gate(logits_TE.float())
    if isinstance(out, Tensor):  # older versions: the gate gives logits, the block decides
        ids, weights = block.route_tokens_to_experts(out)
    else:
        _, weights, ids = out
    return _in_order(ids, weights, logits_TE.float().sigmoid() + bias_E)


def all_scores(logits: Tensor, score_fn: str = "softmax") -> Tensor:
    """Every expert's score: OLMoE (softmax) or DeepSeek-V3 (sigmoid) with K = E, DeepSeek-V4's own function."""
    flat_TE = logits.float().reshape(-1, logits.shape[-1])
    E = flat_TE.shape[1]
    if score_fn == "sqrtsoftplus":
        from transformers.activations import ACT2FN

        return ACT2FN["sqrtsoftplus"](logits.float())
    if score_fn == "softmax":
        ids, weights = olmoe(flat_TE, E, norm_topk=False)
    else:
        ids, weights = deepseek_v3(flat_TE, E, norm_topk=False, bias_E=torch.zeros(E), scale=1.0)
    return torch.zeros_like(flat_TE).scatter(1, ids, weights.detach()).reshape(logits.shape)


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """OLMoE's choice with the scores as logits (softmax keeps their order), and the scores it chose."""
    ids, _ = olmoe(scores.reshape(-1, scores.shape[-1]), k, norm_topk=False)
    ids = ids.reshape(*scores.shape[:-1], k)
    return ids, scores.gather(-1, ids)


def renormalise(topk_scores: Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> Tensor:
    """DeepSeek-V3's weights when its K experts are all it has and their scores are these."""
    flat_TK = topk_scores.reshape(-1, topk_scores.shape[-1])
    K = flat_TK.shape[1]
    ids, weights = deepseek_v3(torch.logit(flat_TK), K, norm_topk, torch.zeros(K), route_scale)
    return torch.zeros_like(flat_TK).scatter(1, ids, weights.detach()).reshape(topk_scores.shape)


def select_with_bias(scores: Tensor, bias_E: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """DeepSeek-V3's choice and unnormalised weights for these scores and this bias."""
    flat_TE = scores.reshape(-1, scores.shape[-1])
    ids, weights = deepseek_v3(torch.logit(flat_TE), k, False, bias_E, 1.0)
    shape = (*scores.shape[:-1], k)
    return ids.reshape(shape), weights.detach().reshape(shape)


def k_one_gradient(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor, norm_topk: bool) -> Tensor:
    """The gradient that reaches the logits through transformers' Qwen3-MoE router."""
    logits_TE = logits_TE.clone().requires_grad_(True)
    ids_T1, weights_T1 = qwen3(logits_TE, 1, norm_topk)
    chosen_TD = outputs_TED[torch.arange(len(ids_T1)), ids_T1[:, 0]]
    loss = torch.nn.functional.mse_loss(weights_T1 * chosen_TD, target_TD)
    return torch.autograd.grad(loss, logits_TE)[0]
