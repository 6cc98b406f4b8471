"""The specification: routing and experts in slow, obvious torch. Every faster kernel is tested against these functions.

Left out on purpose: capacity and dropping (see `core.capacity`), quantised weights, anything fused.
Arithmetic runs in float32 whatever comes in, in float64 where float64 comes in (so that gradients can be checked).

Shape suffixes: T tokens, D model width, F expert width, E experts, K experts per token, N = T·K pairs (token, expert).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.core.config import GROUP_SCORES, SCORE_FNS, GroupScore, ScoreFn

# What transformers' DeepSeek-V3 router adds before it divides: too small to change a sum of softmax scores, and it
# keeps 0/0 out when K sigmoids all underflow.
RENORMALISE_EPS = 1e-20


def widen(tensor: Tensor) -> Tensor:
    """The same values in float32, or untouched in float64: the precision in which routing is decided."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def scores(logits_TE: Tensor, score_fn: ScoreFn = "softmax") -> Tensor:
    """How much a token likes each expert: the logits, through a score function.

    Args:
        logits_TE: [T, E], floating point.
        score_fn: "softmax" over the experts; "sigmoid" of each; "sqrtsoftplus", the square root of softplus;
            "topk_softmax" leaves the logits alone here, since its softmax waits until K of them are chosen.

    Returns [T, E] in float32 (float64 if the logits are). Raises ValueError for other shapes, dtypes and names.

    >>> scores(torch.tensor([[0.0, 0.0, 1000.0]])).tolist()
    [[0.0, 0.0, 1.0]]
    """
    _need_matrix("logits_TE", logits_TE)
    logits_TE = widen(logits_TE)
    match score_fn:
        case "softmax":
            return logits_TE.softmax(dim=-1)
        case "sigmoid":
            return logits_TE.sigmoid()
        case "sqrtsoftplus":
            # clamped where softplus underflows: the root's slope at zero is infinite
            return F.softplus(logits_TE).clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        case "topk_softmax":
            return logits_TE
    raise ValueError(f"score_fn is {score_fn!r}; choose one of {', '.join(SCORE_FNS)}")


def select(
    scores_TE: Tensor,
    top_k: int,
    *,
    bias_E: Tensor | None = None,
    num_groups: int = 1,
    top_groups: int = 1,
    group_score: GroupScore = "max",
) -> Tensor:
    """Choose each token's K experts, best first; equal scores go to the lower expert number.

    Args:
        scores_TE: [T, E], floating point.
        top_k: K, from 1 to the number of experts within reach.
        bias_E: [E], added for the choice only (loss-free balancing, DeepSeek-V3, section 2.1.2, equation 16).
        num_groups: experts fall into this many groups of neighbours; 1 means no groups.
        top_groups: only experts of the best `top_groups` groups can be chosen (DeepSeek-V2, section 2.2.2).
        group_score: a group is worth its best expert ("max", DeepSeek-V2) or the sum of its two best ("top2_sum",
            DeepSeek-V3).

    Returns [T, K] int64, without gradient. Raises ValueError for sizes that do not fit each other.

    >>> select(torch.tensor([[0.1, 0.4, 0.3, 0.2]]), 2, bias_E=torch.tensor([0.9, 0.0, 0.0, 0.0])).tolist()
    [[0, 1]]
    """
    _need_matrix("scores_TE", scores_TE)
    E = scores_TE.shape[1]
    _check_selection(E, top_k, bias_E, num_groups, top_groups, group_score)
    choice_TE = widen(scores_TE.detach())
    if bias_E is not None:
        choice_TE = choice_TE + bias_E.detach().to(choice_TE)
    if top_groups < num_groups:
        choice_TE = _keep_best_groups(choice_TE, num_groups, top_groups, group_score)
    return _best(choice_TE, top_k)


def weigh(
    scores_TE: Tensor,
    topk_ids_TK: Tensor,
    *,
    score_fn: ScoreFn = "softmax",
    norm_topk: bool = True,
    route_scale: float = 1.0,
) -> Tensor:
    """The weight of each chosen expert's output: its own score, renormalised if asked, then scaled.

    With `norm_topk` the K scores are divided by their sum plus 1e-20 (`RENORMALISE_EPS`). With K = 1 that makes every
    score 1 and stops the router's gradient. "topk_softmax", a softmax over the K chosen logits, sums to one anyhow.

    Args:
        scores_TE: [T, E] from `scores`, without any selection bias.
        topk_ids_TK: [T, K] int64.

    Returns [T, K], differentiable in `scores_TE`.

    >>> weigh(torch.tensor([[0.6, 0.2, 0.2]]), torch.tensor([[0, 1]]), route_scale=2.0).tolist()
    [[1.5, 0.5]]
    """
    _need_matrix("scores_TE", scores_TE)
    _need_ids(topk_ids_TK, scores_TE.shape[0])
    if score_fn not in SCORE_FNS:
        raise ValueError(f"score_fn is {score_fn!r}; choose one of {', '.join(SCORE_FNS)}")
    topk_scores_TK = widen(scores_TE).gather(1, topk_ids_TK)
    if score_fn == "topk_softmax":
        topk_scores_TK = topk_scores_TK.softmax(dim=-1)
    elif norm_topk:
        topk_scores_TK = topk_scores_TK / (topk_scores_TK.sum(dim=-1, keepdim=True) + RENORMALISE_EPS)
    return topk_scores_TK * route_scale


def route(
    logits_TE: Tensor,
    *,
    top_k: int,
    score_fn: ScoreFn = "softmax",
    norm_topk: bool = True,
    route_scale: float = 1.0,
    bias_E: Tensor | None = None,
    num_groups: int = 1,
    top_groups: int = 1,
    group_score: GroupScore = "max",
) -> tuple[Tensor, Tensor]:
    """From logits to a decision: `scores`, then `select`, then `weigh`.

    Args:
        logits_TE: [T, E], floating point; the rest is explained at the three functions.

    Returns `topk_ids_TK` [T, K] int64, best first (by biased score), and `topk_scores_TK` [T, K] float32 or float64.

    >>> ids, weights = route(torch.tensor([[2.0, 1.0, 0.0]]).log_softmax(-1), top_k=2)
    >>> ids.tolist(), round(weights.sum().item(), 6)
    ([[0, 1]], 1.0)
    """
    scores_TE = scores(logits_TE, score_fn)
    groups = {"num_groups": num_groups, "top_groups": top_groups, "group_score": group_score}
    topk_ids_TK = select(scores_TE, top_k, bias_E=bias_E, **groups)
    weights_TK = weigh(scores_TE, topk_ids_TK, score_fn=score_fn, norm_topk=norm_topk, route_scale=route_scale)
    return topk_ids_TK, weights_TK


def _best(values_TE: Tensor, k: int) -> Tensor:
    return values_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]


def _keep_best_groups(choice_TE: Tensor, num_groups: int, top_groups: int, group_score: GroupScore) -> Tensor:
    T, E = choice_TE.shape
    grouped = choice_TE.view(T, num_groups, E // num_groups)
    best = 1 if group_score == "max" else 2
    worth = grouped.topk(best, dim=-1).values.sum(dim=-1)
    keep = torch.zeros_like(worth, dtype=torch.bool).scatter_(1, _best(worth, top_groups), True)
    return grouped.masked_fill(~keep[:, :, None], float("-inf")).view(T, E)


def _check_selection(E, top_k, bias_E, num_groups, top_groups, group_score) -> None:
    if num_groups < 1 or E % num_groups:
        raise ValueError(f"num_groups is {num_groups}, which does not divide {E} experts; give a divisor")
    if not 1 <= top_groups <= num_groups:
        raise ValueError(f"top_groups is {top_groups}; give 1 to {num_groups}, the number of groups")
    if group_score not in GROUP_SCORES:
        raise ValueError(f"group_score is {group_score!r}; choose one of {', '.join(GROUP_SCORES)}")
    size = E // num_groups
    if group_score == "top2_sum" and top_groups < num_groups and size < 2:
        raise ValueError(f"group_score 'top2_sum' needs two experts in a group, here there is {size}; use 'max'")
    if not 1 <= top_k <= top_groups * size:
        raise ValueError(f"top_k is {top_k}; give 1 to {top_groups * size}, the experts within reach")
    if bias_E is not None and bias_E.shape != (E,):
        raise ValueError(f"bias_E has shape {tuple(bias_E.shape)}; expected ({E},)")


def _need_matrix(name: str, tensor: Tensor) -> None:
    if tensor.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; flatten it to two dimensions")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} has dtype {tensor.dtype}; give floating point")


def _need_ids(topk_ids_TK: Tensor, T: int) -> None:
    if topk_ids_TK.ndim != 2 or topk_ids_TK.shape[0] != T:
        raise ValueError(f"topk_ids_TK has shape {tuple(topk_ids_TK.shape)}; expected ({T}, K)")
    if topk_ids_TK.dtype != torch.int64:
        raise ValueError(f"topk_ids_TK has dtype {topk_ids_TK.dtype}; give torch.int64")


def swiglu(x: Tensor, w_gate_up_2FD: Tensor, w_down_DF: Tensor) -> Tensor:
    """One expert: SiLU of the gate half, times the up half, projected back (Shazeer 2020, "GLU variants", equation 6).

    Args:
        x: [..., D].
        w_gate_up_2FD: [2F, D], the gate's F rows first, then up's. A leading E (with x [E, ..., D]) runs E experts.
        w_down_DF: [D, F].

    Returns [..., D]. Raises ValueError if the widths do not fit.

    >>> swiglu(torch.ones(1), torch.tensor([[0.0], [3.0]]), torch.ones(1, 1)).tolist()
    [0.0]
    """
    D, F_ = w_down_DF.shape[-2:]
    if w_gate_up_2FD.shape[-2:] != (2 * F_, D) or x.shape[-1] != D:
        raise ValueError(
            f"x {tuple(x.shape)}, gate_up {tuple(w_gate_up_2FD.shape)} and down {tuple(w_down_DF.shape)} do not fit; "
            "expected [..., D], [..., 2F, D] and [..., D, F]"
        )
    gate, up = (x @ w_gate_up_2FD.mT).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ w_down_DF.mT


def experts_loop(
    x_TD: Tensor, topk_ids_TK: Tensor, topk_scores_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Each expert in turn computes its own tokens; weighted outputs are added where they came from.

    Args:
        x_TD: [T, D] tokens.
        topk_ids_TK: [T, K] int64 chosen experts.
        topk_scores_TK: [T, K] weights of their outputs.
        gate_up_E2FD: [E, 2F, D]; down_EDF: [E, D, F].

    Returns [T, D] in x's dtype (sums run in float32 or wider). Raises ValueError for sizes that do not fit.
    """
    check_experts(x_TD, topk_ids_TK, topk_scores_TK, gate_up_E2FD, down_EDF)
    out_TD = torch.zeros_like(widen(x_TD))
    for expert in range(gate_up_E2FD.shape[0]):
        token, slot = torch.where(topk_ids_TK == expert)
        y = swiglu(x_TD[token], gate_up_E2FD[expert], down_EDF[expert])
        out_TD = out_TD.index_add(0, token, (y * topk_scores_TK[token, slot, None]).to(out_TD.dtype))
    return out_TD.to(x_TD.dtype)


def experts_onehot(
    x_TD: Tensor, topk_ids_TK: Tensor, topk_scores_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Every expert computes every token, mostly zeros: dispatch and combine are einsums with a mask.

    The dispatch of GShard (Lepikhin et al. 2020, algorithm 2) and Switch, without a capacity: no token is dropped, and
    E / K times the needed multiplications are done. Arguments and result as `experts_loop`.
    """
    check_experts(x_TD, topk_ids_TK, topk_scores_TK, gate_up_E2FD, down_EDF)
    zeros_TE = topk_scores_TK.new_zeros(x_TD.shape[0], gate_up_E2FD.shape[0])
    dispatch_TE = zeros_TE.scatter(1, topk_ids_TK, 1.0).to(x_TD.dtype)
    combine_TE = widen(zeros_TE.scatter(1, topk_ids_TK, topk_scores_TK))
    y_ETD = swiglu(torch.einsum("te,td->etd", dispatch_TE, x_TD), gate_up_E2FD, down_EDF).to(combine_TE.dtype)
    return torch.einsum("te,etd->td", combine_TE, y_ETD).to(x_TD.dtype)


def experts_sorted(
    x_TD: Tensor, topk_ids_TK: Tensor, topk_scores_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Sort the pairs by expert, so that each expert reads one contiguous slice; then put everything back.

    Arguments and result as `experts_loop`.
    """
    check_experts(x_TD, topk_ids_TK, topk_scores_TK, gate_up_E2FD, down_EDF)
    order_N, token_N, offsets_E = sort_by_expert(topk_ids_TK, gate_up_E2FD.shape[0])
    slices = permute(x_TD, token_N).tensor_split(offsets_E[:-1].tolist())
    y_ND = torch.cat([swiglu(x, up, down) for x, up, down in zip(slices, gate_up_E2FD, down_EDF, strict=True)])
    return combine(y_ND, order_N, topk_scores_TK).to(x_TD.dtype)


def sort_by_expert(topk_ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Order the N = T·K pairs (token, expert) by expert; within one expert, by token.

    Args:
        topk_ids_TK: [T, K] int64.
        num_experts: E.

    Returns `order_N` (int64: position n of the sorted list holds pair `order_N[n]` of the flattened [T, K]),
    `token_N` (int64: whose token that is) and `offsets_E` (int32: where each expert's slice ends).

    >>> order, token, offsets = sort_by_expert(torch.tensor([[2, 0], [0, 1]]), num_experts=4)
    >>> order.tolist(), token.tolist(), offsets.tolist()
    ([1, 2, 3, 0], [0, 1, 1, 0], [2, 3, 4, 4])
    """
    _need_ids(topk_ids_TK, len(topk_ids_TK) if topk_ids_TK.ndim else 0)
    if num_experts < 1:
        raise ValueError(f"num_experts is {num_experts}; give 1 or more")
    ids_N, order_N = topk_ids_TK.reshape(-1).sort(stable=True)
    experts_E = torch.arange(num_experts, device=ids_N.device)
    offsets_E = torch.searchsorted(ids_N, experts_E, right=True).int()
    return order_N, order_N // topk_ids_TK.shape[1], offsets_E


def permute(x_TD: Tensor, token_N: Tensor) -> Tensor:
    """One row for each pair, in the order of `sort_by_expert`: [N, D]. Raises ValueError unless x is [T, D].

    >>> permute(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1, 1, 0])).flatten().tolist()
    [1.0, 2.0, 2.0, 1.0]
    """
    _need_matrix("x_TD", x_TD)
    if token_N.ndim != 1 or token_N.dtype != torch.int64:
        raise ValueError(f"token_N is {tuple(token_N.shape)} {token_N.dtype}; give the int64 vector of sort_by_expert")
    return x_TD[token_N]


def combine(y_ND: Tensor, order_N: Tensor, topk_scores_TK: Tensor) -> Tensor:
    """Undo `sort_by_expert` and add up each token's K outputs, weighted by their scores.

    Args:
        y_ND: [N, D] expert outputs in sorted order.
        order_N: [N] int64 from `sort_by_expert`.
        topk_scores_TK: [T, K] with T·K = N.

    Returns [T, D] in y's dtype (the sum runs in float32 or wider). Raises ValueError for other sizes.

    >>> combine(torch.tensor([[1.0], [10.0]]), torch.tensor([1, 0]), torch.tensor([[0.5, 0.25]])).tolist()
    [[5.25]]
    """
    _need_matrix("y_ND", y_ND)
    _need_matrix("topk_scores_TK", topk_scores_TK)
    T, K = topk_scores_TK.shape
    if order_N.shape != (T * K,) or y_ND.shape[0] != T * K:
        raise ValueError(
            f"y_ND has {y_ND.shape[0]} rows and order_N shape {tuple(order_N.shape)}; expected {T * K}, "
            f"one for each of the {T} x {K} scores"
        )
    y_TKD = y_ND[order_N.argsort()].view(T, K, y_ND.shape[1])
    return (widen(y_TKD) * topk_scores_TK[:, :, None]).sum(dim=1).to(y_ND.dtype)


def check_experts(
    x_TD: Tensor, topk_ids_TK: Tensor, topk_scores_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> None:
    """Raise ValueError unless tokens, decisions and expert weights fit each other (shapes and dtypes, not values)."""
    _need_matrix("x_TD", x_TD)
    T, D = x_TD.shape
    _need_ids(topk_ids_TK, T)
    if topk_scores_TK.shape != topk_ids_TK.shape:
        raise ValueError(f"topk_scores_TK has shape {tuple(topk_scores_TK.shape)}; expected {tuple(topk_ids_TK.shape)}")
    if gate_up_E2FD.ndim != 3 or gate_up_E2FD.shape[1] % 2 or gate_up_E2FD.shape[2] != D:
        raise ValueError(f"gate_up_E2FD has shape {tuple(gate_up_E2FD.shape)}; expected (E, 2F, {D})")
    E, F_ = gate_up_E2FD.shape[0], gate_up_E2FD.shape[1] // 2
    if down_EDF.shape != (E, D, F_):
        raise ValueError(f"down_EDF has shape {tuple(down_EDF.shape)}; expected {(E, D, F_)}")
    if not x_TD.dtype == gate_up_E2FD.dtype == down_EDF.dtype:
        raise ValueError(
            f"x_TD is {x_TD.dtype}, gate_up_E2FD {gate_up_E2FD.dtype} and down_EDF {down_EDF.dtype}; give one dtype"
        )
