"""Lab 01's oracles: transformers' own routers, fed through an identity matrix (hidden states are the logits)."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.core.config import MoEConfig
from labkit.nn.oracle import hf_route, hf_router


def _config(E: int, k: int, norm_topk: bool, **fields) -> MoEConfig:
    return MoEConfig(d_model=E, d_expert=2, num_experts=E, top_k=k, norm_topk=norm_topk, **fields)


def _olmoe(logits_TE: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    E = logits_TE.shape[1]
    return hf_route("olmoe", _config(E, k, norm_topk=False), logits_TE, torch.eye(E))


def _deepseek(
    logits_TE: Tensor, k: int, norm_topk: bool, bias_E: Tensor | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    E = logits_TE.shape[1]
    fields = {"score_fn": "sigmoid", "group_score": "top2_sum", "selection_bias": True, "route_scale": scale}
    return hf_route("deepseek_v3", _config(E, k, norm_topk, **fields), logits_TE, torch.eye(E), bias_E)


def all_scores(logits: Tensor, score_fn: str = "softmax") -> Tensor:
    """Every expert's score: OLMoE (softmax) or DeepSeek-V3 (sigmoid) with K = E, DeepSeek-V4's own function."""
    flat_TE = logits.float().reshape(-1, logits.shape[-1])
    E = flat_TE.shape[1]
    if score_fn == "sqrtsoftplus":
        from transformers.activations import ACT2FN

        return ACT2FN["sqrtsoftplus"](logits.float())
    full_TE = _olmoe(flat_TE, E)[2] if score_fn == "softmax" else _deepseek(flat_TE, E, norm_topk=False)[2]
    return full_TE.reshape(logits.shape)


def knows(score_fn: str) -> bool:
    """Whether the installed transformers has this score function (the third came with DeepSeek-V4)."""
    from transformers.activations import ACT2FN

    return score_fn in ("softmax", "sigmoid") or (score_fn == "sqrtsoftplus" and score_fn in ACT2FN)


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """OLMoE's choice with the scores as logits (softmax keeps their order), and the scores it chose."""
    ids_TK = _olmoe(scores.reshape(-1, scores.shape[-1]), k)[0]
    ids = ids_TK.reshape(*scores.shape[:-1], k)
    return ids, scores.gather(-1, ids)


def renormalise(topk_scores: Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> Tensor:
    """DeepSeek-V3's weights when its K experts are all it has and their scores are these."""
    flat_TK = topk_scores.reshape(-1, topk_scores.shape[-1])
    return _deepseek(torch.logit(flat_TK), flat_TK.shape[1], norm_topk, scale=route_scale)[2].reshape(topk_scores.shape)


def select_with_bias(scores: Tensor, bias_E: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """DeepSeek-V3's choice and unnormalised weights, put in order of the biased scores (it leaves them unsorted)."""
    flat_TE = scores.reshape(-1, scores.shape[-1])
    ids_TK, weights_TK, _ = _deepseek(torch.logit(flat_TE), k, False, bias_E)
    order_TK = (flat_TE + bias_E).gather(1, ids_TK).argsort(dim=1, descending=True)
    shape = (*scores.shape[:-1], k)
    return ids_TK.gather(1, order_TK).reshape(shape), weights_TK.gather(1, order_TK).reshape(shape)


def k_one_gradient(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor, norm_topk: bool) -> Tensor:
    """The gradient that reaches the logits through transformers' Qwen3-MoE router."""
    T, E = logits_TE.shape
    module, call = hf_router("qwen3_moe", _config(E, 1, norm_topk))
    with torch.no_grad():
        module.weight.copy_(torch.eye(E))
    logits_TE = logits_TE.clone().requires_grad_(True)
    ids_T1, weights_T1, _ = call(logits_TE)
    loss = torch.nn.functional.mse_loss(weights_T1 * outputs_TED[torch.arange(T), ids_T1[:, 0]], target_TD)
    return torch.autograd.grad(loss, logits_TE)[0]
