"""Keeping experts alive: losses that push the load towards even, and a bias that moves it without a loss.

Every function reads `Routing` records. The counts come from the choices that were made (`topk_ids_TK`) and carry no
gradient; the probabilities come from `logits_TE` and carry all of it. Padding influences nothing: `mask_T` takes those
tokens out before anything is computed. A batch of nothing but padding has no load, so it is a ValueError.

Two conventions for the load f_e are in use, and a coefficient means something only together with one of them:
- Σ f_e = K, the share of tokens that chose e: transformers' `load_balancing_loss_func`, and `switch_loss` here. Even
  load gives K times the coefficient.
- Σ f_e = 1, the share of choices: Switch Transformers (whose K is 1). Even load gives the coefficient itself; divide
  `switch_loss` by K. DeepSeek's f_i, which holds the factor E too, gives this value as well (`sequence_loss`).

Capacity is in `core.capacity`, expert choice in `train.expert_choice`, hash routing in `nn.fixed`.

Legend: T tokens, E experts, K experts per token, N sequences.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.core.config import ScoreFn
from labkit.core.routing import Routing
from labkit.kernels.reference import scores, widen
from labkit.train.expert_choice import ExpertChoice, expert_choice

__all__ = ["ExpertChoice", "bias_step", "expert_choice", "sequence_loss", "switch_loss", "update_bias", "z_loss"]


def switch_loss(routing: Routing | Sequence[Routing], mask_T: Tensor | None = None, *, alpha: float = 1.0) -> Tensor:
    """The auxiliary load-balancing loss of Switch Transformers, for any K: α · E · Σ_e f_e · P_e.

    f_e is the share of tokens that chose expert e (Σ f_e = K), P_e the mean softmax probability of e. Equations 4 to 6
    of Fedus et al. 2021 (arXiv 2101.03961) for K = 1; for several layers and K as in transformers'
    `load_balancing_loss_func`. GShard (Lepikhin et al. 2020, arXiv 2006.16668, algorithm 1) multiplies the same two
    means, but counts first choices only and divides by E. Even load gives α · K; the worst, α · E.

    Args:
        routing: one layer, or several: their tokens are put together, as transformers does. Then two layers that lean
            opposite ways look even. A mean of `switch_loss` over the layers cannot be fooled so.
        mask_T: [T] or any shape of T elements, the same for every layer; true or 1 where a token is real.
        alpha: the coefficient.

    Returns a scalar in float32 (float64 for float64 logits), differentiable in the logits. The probabilities are a
    softmax whatever score function the router has. Raises ValueError without a real token, or if layers differ in E.

    >>> even = Routing.of(torch.zeros(2, 4), torch.tensor([[0, 1], [2, 3]]), torch.ones(2, 2))
    >>> switch_loss(even).item(), switch_loss([even, even], alpha=0.5).item()
    (2.0, 1.0)
    """
    layers = (routing,) if isinstance(routing, Routing) else tuple(routing)
    if not layers:
        raise ValueError("switch_loss needs at least one Routing, got an empty sequence")
    layers = [_real(r, mask_T, "switch_loss") for r in layers]
    widths = sorted({r.num_experts for r in layers})
    if len(widths) > 1:
        raise ValueError(f"switch_loss puts layers together, but they have {widths} experts; call it once for each")
    num_tokens = sum(r.num_tokens for r in layers)
    probability_E = sum(widen(r.logits_TE).softmax(-1).sum(0) for r in layers) / num_tokens
    load_E = sum(r.tokens_per_expert_E for r in layers).to(probability_E.dtype) / num_tokens
    return alpha * widths[0] * (load_E * probability_E).sum()


def sequence_loss(
    routing: Routing,
    sequence_T: Tensor | None = None,
    mask_T: Tensor | None = None,
    *,
    alpha: float = 1.0,
    score_fn: ScoreFn = "sigmoid",
) -> Tensor:
    """DeepSeek's balance loss within each sequence, α · Σ_i f_i · P_i, averaged over the sequences.

    For a sequence of S real tokens, f_i = E / (K·S) · (tokens that chose i) and P_i is the mean over the sequence of
    s'_i = s_i / Σ_j s_j. Equations 17 to 20 of DeepSeek-V3 (2024, arXiv 2412.19437), with s the sigmoid of the logits;
    "softmax" gives the form of DeepSeek-V2. Even load gives α. The choices are those that were made; equation 18 ranks
    the scores without the selection bias, which is the same as long as the bias moves no choice.

    Args:
        routing: one layer; add the losses of several.
        sequence_T: which sequence each token is of, any whole numbers; [T] or any shape of T elements, int64. Left
            out: `routing.sequence_T`.
        mask_T: [T] or any shape of T elements, true or 1 where a token is real. A sequence of nothing but padding does
            not enter the average.
        alpha: the coefficient; score_fn: "sigmoid", "softmax" or "sqrtsoftplus", as the router's.

    Returns a scalar in float32 (float64 for float64 logits), differentiable in the logits. Raises ValueError without a
    real token, without sequences, or for another score function.

    >>> r = Routing.of(torch.zeros(2, 2), torch.tensor([[0], [1]]), torch.ones(2, 1))
    >>> sequence_loss(r, torch.tensor([7, 7])).item()
    1.0
    """
    if isinstance(routing, Routing) and sequence_T is not None:
        routing = dataclasses.replace(routing, sequence_T=sequence_T.reshape(-1).to(routing.logits_TE.device))
    r = _real(routing, mask_T, "sequence_loss")
    if r.sequence_T is None:
        raise ValueError(
            "sequence_loss needs to know each token's sequence; give sequence_T, for a batch of shape [B, S] "
            "torch.arange(B).repeat_interleave(S)"
        )
    names_N, sequence_T = r.sequence_T.unique(return_inverse=True)
    N, E, K = len(names_N), r.num_experts, r.top_k
    share_TE = _shares(r.logits_TE, score_fn)
    length_N1 = torch.bincount(sequence_T, minlength=N)[:, None].to(share_TE.dtype)
    probability_NE = share_TE.new_zeros(N, E).index_add(0, sequence_T, share_TE) / length_N1
    pairs_TK = sequence_T[:, None] * E + r.topk_ids_TK
    counts_NE = torch.bincount(pairs_TK.reshape(-1), minlength=N * E).reshape(N, E)
    load_NE = counts_NE.to(share_TE.dtype) * E / (K * length_N1)
    return alpha * (load_NE * probability_NE).sum(1).mean()


def z_loss(routing: Routing, mask_T: Tensor | None = None, *, coefficient: float = 1.0) -> Tensor:
    """The router z-loss, the mean over tokens of (log Σ_e exp logit_e)²: it keeps the logits small.

    Equation 5 of ST-MoE (Zoph et al. 2022, arXiv 2202.08906). It does not balance: it says nothing about the choices.

    Args:
        routing: one layer; add the losses of several.
        mask_T: [T] or any shape of T elements, true or 1 where a token is real.
        coefficient: 0.001 in the paper.

    Returns a scalar in float32 (float64 for float64 logits), differentiable in the logits. Raises ValueError without a
    real token.

    >>> round(z_loss(Routing.of(torch.zeros(1, 2), torch.tensor([[0]]), torch.ones(1, 1))).item(), 4)  # (ln 2)²
    0.4805
    """
    logits_TE = widen(_real(routing, mask_T, "z_loss").logits_TE)
    return coefficient * logits_TE.logsumexp(-1).square().mean()


def update_bias(bias_E: Tensor, tokens_per_expert_E: Tensor, *, rate: float) -> Tensor:
    """The selection bias after one step of loss-free balancing: b_e + rate · sign(mean load − load_e).

    Algorithm 1 of Wang et al. 2024 (arXiv 2408.15664), used by DeepSeek-V3 (section 2.1.2).

    Args:
        bias_E: [E], float32 or wider; in half precision a small step would round away.
        tokens_per_expert_E: [E], the load of the whole batch: with several devices, their sum.
        rate: the step u, 0 or more; 0.001 in both papers.

    Returns a new [E] in the bias's dtype, without gradient. Raises ValueError for what does not fit.

    >>> update_bias(torch.zeros(3), torch.tensor([6, 3, 0]), rate=0.5).tolist()
    [-0.5, 0.0, 0.5]
    """
    if bias_E.ndim != 1 or bias_E.shape != tokens_per_expert_E.shape:
        raise ValueError(
            f"bias_E has shape {tuple(bias_E.shape)} and tokens_per_expert_E {tuple(tokens_per_expert_E.shape)}; "
            "give one number for each expert in both"
        )
    if bias_E.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"bias_E has dtype {bias_E.dtype}, in which a step of {rate} may vanish; keep it in float32")
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"rate is {rate}; give a number of 0 or more")
    load_E = tokens_per_expert_E.detach().to(bias_E.device)
    towards_E = (load_E.sum() - len(load_E) * load_E).sign()  # without a division, so that even is exactly even
    return bias_E.detach() + rate * towards_E.to(bias_E.dtype)


def bias_step(router: nn.Module, routing: Routing, rate: float = 1e-3, mask_T: Tensor | None = None) -> None:
    """Move `router.expert_bias_E` in place by one `update_bias`, from the choices of one training batch.

    Call it after the optimiser's step, outside evaluation; the batch that it learns from is already routed, so the
    balance cannot leak what follows a token. Over several batches or devices add up the counts and use `update_bias`.

    Args:
        router: whatever has an `expert_bias_E` [E], float32, such as `nn.Router` with `selection_bias`.
        routing: what it decided.
        rate: the step u; mask_T: [T] or any shape of T elements, true or 1 where a token is real.

    Raises ValueError if the router has no such bias, or without a real token.
    """
    bias_E = getattr(router, "expert_bias_E", None)
    if bias_E is None:
        raise ValueError(
            f"{type(router).__name__} has no expert_bias_E to move; build it with MoEConfig(selection_bias=True)"
        )
    counts_E = _real(routing, mask_T, "bias_step").tokens_per_expert_E
    with torch.no_grad():
        bias_E.copy_(update_bias(bias_E, counts_E, rate=rate))


def _real(r: Routing, mask_T: Tensor | None, who: str) -> Routing:
    """The record without padding; ValueError if that leaves nothing."""
    if not isinstance(r, Routing):
        raise ValueError(f"{who} reads one Routing per layer, got {type(r).__name__}; `Routing.of` builds one")
    if mask_T is not None:
        num_tokens, r = r.num_tokens, r.keep(mask_T)
        if num_tokens and not r.num_tokens:
            raise ValueError(f"{who} needs a real token; mask_T calls all {num_tokens} padding: leave out this batch")
    if not r.num_tokens:
        raise ValueError(f"{who} needs at least one token; this Routing has none")
    return r


def _shares(logits_TE: Tensor, score_fn: ScoreFn) -> Tensor:
    """s'_TE: each token's scores divided by their sum (DeepSeek-V3, equation 19)."""
    if score_fn == "sigmoid":  # the same quotient by logarithms, so that scores that all underflow are no 0/0
        return F.logsigmoid(widen(logits_TE)).softmax(-1)
    if score_fn == "topk_softmax":
        raise ValueError("score_fn is 'topk_softmax', which scores only chosen experts; give 'softmax'")
    scores_TE = scores(logits_TE, score_fn)
    return scores_TE / scores_TE.sum(-1, keepdim=True)
