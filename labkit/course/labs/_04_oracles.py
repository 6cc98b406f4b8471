"""Lab 04's oracles: transformers' DeepSeek blocks, and numpy where the question is one of counting."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from labkit.core.config import MoEConfig
from labkit.course.attempt import Case
from labkit.nn.oracle import hf_block, hf_route


def shared_expert(
    x_TD: Tensor, topk_ids_TK: Tensor, topk_scores_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor,
    shared_gate_up_S2FD: Tensor, shared_down_SDF: Tensor,
) -> Tensor:  # fmt: skip
    """DeepSeek-V3's experts and its shared experts, which transformers keeps as one network of width S·F."""
    E, D, F = down_EDF.shape
    S = len(shared_down_SDF)
    config = MoEConfig(
        d_model=D, d_expert=F, num_experts=E, top_k=topk_ids_TK.shape[1], num_shared_experts=S,
        score_fn="sigmoid", group_score="top2_sum",
    )  # fmt: skip
    block = hf_block("deepseek_v3", config)
    gate, up = shared_gate_up_S2FD.chunk(2, dim=1)
    wide = {
        "gate_proj.weight": gate.reshape(S * F, D),
        "up_proj.weight": up.reshape(S * F, D),
        "down_proj.weight": shared_down_SDF.transpose(0, 1).reshape(D, S * F),
    }
    routed = {"gate_up_proj": gate_up_E2FD, "down_proj": down_EDF}
    y_TD = torch.func.functional_call(block.experts, routed, (x_TD, topk_ids_TK, topk_scores_TK))
    return y_TD + torch.func.functional_call(block.shared_experts, wide, (x_TD,))


def group_limited_top_k(
    scores_TE: Tensor, bias_E: Tensor, k: int, num_groups: int, top_groups: int, group_score: str = "top2_sum"
) -> tuple[Tensor, Tensor]:
    """The choice of DeepSeek-V3 ("top2_sum") or DeepSeek-V2 ("max"), put in order of the biased scores."""
    E = scores_TE.shape[1]
    config = MoEConfig(
        d_model=E, d_expert=2, num_experts=E, top_k=k, norm_topk=False, num_groups=num_groups,
        top_groups=top_groups, group_score=group_score,
    )  # fmt: skip
    if group_score == "max":
        ids_TK = hf_route("deepseek_v2", config, scores_TE.log(), torch.eye(E))[0]
    else:
        config = config.replace(score_fn="sigmoid", selection_bias=True)
        ids_TK = hf_route("deepseek_v3", config, torch.logit(scores_TE), torch.eye(E), bias_E)[0]
    order_TK = (scores_TE + bias_E).gather(1, ids_TK).argsort(dim=1, descending=True)
    ids_TK = ids_TK.gather(1, order_TK)
    return ids_TK, scores_TE.gather(1, ids_TK)


def decides(case: Case) -> bool:
    """Whether transformers can express a case.

    DeepSeek-V2's router has no bias and its block only limits more groups than one. DeepSeek-V3's masked with zero
    instead of minus infinity before its pull request 45441, so biased scores below zero are left to our own tests.
    """
    scores_TE, bias_E, _, num_groups, _, *group_score = case.args
    if group_score == ["max"]:
        return not bias_E.any() and num_groups > 1
    return bool((scores_TE + bias_E).min() > 0)


def lift(topk_ids_TK: Tensor, domain_T: Tensor, num_experts: int, num_domains: int) -> Tensor:
    """Observed counts over those expected if domain and expert were independent, counted by numpy."""
    T, K = topk_ids_TK.shape
    bins = (np.arange(num_domains + 1), np.arange(num_experts + 1))
    pairs = np.repeat(domain_T.numpy(), K), topk_ids_TK.numpy().reshape(-1)
    observed_GE = np.histogram2d(*pairs, bins=bins)[0]
    expected_GE = np.outer(observed_GE.sum(1), observed_GE.sum(0)) / (T * K)
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(np.where(expected_GE > 0, observed_GE / expected_GE, 1.0)).float()


def ablation(loss_T: Tensor, loss_without_T: Tensor, domain_T: Tensor, num_domains: int) -> Tensor:
    """numpy's mean without NaN, domain by domain."""
    rise_T, domain_T = (loss_without_T - loss_T).numpy(), domain_T.numpy()
    return torch.tensor([float(np.nanmean(rise_T[domain_T == domain])) for domain in range(num_domains)])
