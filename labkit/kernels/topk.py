"""The router's decision in one kernel: scores, bias, groups, top-k, renormalisation and the count of every expert.

Eager torch reads and writes a [T, E] tensor for each of these steps. Here a program keeps some rows in registers from
the first step to the last and writes K numbers a token. `reference.route` says what must come out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from labkit.core.config import SCORE_FNS, GroupScore, ScoreFn
from labkit.kernels import reference
from labkit.kernels.language import refusal, tl, triton, watched

ELEMENTS = 2048  # logits in the registers of one program
EPS = tl.constexpr(reference.RENORMALISE_EPS)
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
LEAST = tl.constexpr(-(2**63))


@triton.jit
def _scores(logits, SCORE_FN: tl.constexpr):
    """`reference.scores` of rows whose columns beyond the experts are −∞."""
    if SCORE_FN == "softmax":
        powers = tl.exp(logits - tl.max(logits, 1)[:, None])
        scores = powers / tl.sum(powers, 1)[:, None]
    elif SCORE_FN == "sigmoid":
        scores = 1 / (1 + tl.exp(-logits))
    elif SCORE_FN == "sqrtsoftplus":
        softplus = tl.maximum(logits, 0.0) + tl.log(1 + tl.exp(-tl.abs(logits)))
        scores = tl.sqrt(tl.maximum(softplus, TINY))
    else:
        scores = logits
    return scores


@triton.jit
def _keep_groups(choice, expert, size, GROUPS: tl.constexpr, TOP: tl.constexpr, PAIR: tl.constexpr):
    """−∞ for every expert outside the TOP best groups; a group is worth its best expert, or with PAIR its two best."""
    column = tl.arange(0, triton.next_power_of_2(GROUPS))
    worth = tl.full((choice.shape[0], triton.next_power_of_2(GROUPS)), float("-inf"), tl.float32)
    for group in tl.static_range(GROUPS):
        inside = tl.where((expert // size == group)[None, :], choice, float("-inf"))
        best = tl.max(inside, 1)
        if PAIR:
            first = tl.min(tl.where(inside == best[:, None], expert[None, :], choice.shape[1]), 1)
            best += tl.max(tl.where(expert[None, :] == first[:, None], float("-inf"), inside), 1)
        worth = tl.where((column == group)[None, :], best[:, None], worth)
    for group in tl.static_range(GROUPS):
        mine = tl.sum(tl.where((column == group)[None, :], worth, 0.0), 1)[:, None]
        ahead = (worth > mine) | ((worth == mine) & (column < group)[None, :])
        out = tl.sum((ahead & (column < GROUPS)[None, :]).to(tl.int32), 1) >= TOP
        choice = tl.where((expert // size == group)[None, :] & out[:, None], float("-inf"), choice)
    return choice


@triton.jit
def _route(
    logits_ptr, bias_ptr, ids_ptr, weights_ptr, counts_ptr, T, E, size, scale,
    K: tl.constexpr, SCORE_FN: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr,
    GROUPS: tl.constexpr, TOP: tl.constexpr, PAIR: tl.constexpr,
    ROWS: tl.constexpr, EXPERTS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Rows of logits to K ids and weights each. An expert's key is its score's bits, made to sort as numbers do, above
    its number counted backwards: the largest key is the best expert, and of equals the one with the lower number."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)
    slot = tl.arange(0, SLOTS)
    real = (row < T)[:, None] & (expert < E)[None, :]
    logits = tl.load(logits_ptr + row[:, None] * E + expert[None, :], mask=real, other=float("-inf")).to(tl.float32)
    logits = tl.where((row < T)[:, None], logits, 0.0)
    scores = _scores(logits, SCORE_FN)
    choice = scores
    if BIAS:
        choice += tl.load(bias_ptr + expert, mask=expert < E, other=0.0).to(tl.float32)[None, :]
    if TOP < GROUPS:
        choice = _keep_groups(choice, expert, size, GROUPS, TOP, PAIR)
    bits = (choice + 0.0).to(tl.int32, bitcast=True)  # + 0: there is one zero
    sortable = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    key = tl.where((expert < E)[None, :], sortable * EXPERTS + (EXPERTS - 1 - expert)[None, :], LEAST)
    ids = tl.zeros((ROWS, SLOTS), tl.int64)
    weights = tl.full((ROWS, SLOTS), float("-inf") if SCORE_FN == "topk_softmax" else 0.0, tl.float32)
    for k in range(K):
        best = key == tl.max(key, 1)[:, None]
        at = (slot == k)[None, :]
        ids = tl.where(at, tl.sum(tl.where(best, expert[None, :], 0), 1)[:, None].to(tl.int64), ids)
        weights = tl.where(at, tl.sum(tl.where(best, scores, 0.0), 1)[:, None], weights)
        key = tl.where(best, LEAST, key)
    chosen = (key == LEAST) & real
    weights = _weigh(weights, slot < K, SCORE_FN, NORM) * scale
    out = row[:, None] * K + slot[None, :]
    mask = (row < T)[:, None] & (slot < K)[None, :]
    tl.store(ids_ptr + out, ids, mask=mask)
    tl.store(weights_ptr + out, weights, mask=mask)
    counts = tl.sum(chosen.to(tl.int64), 0)
    tl.atomic_add(counts_ptr + expert, counts, mask=(expert < E) & (counts > 0))  # whole numbers: any order is exact


@triton.jit
def _weigh(scores, used, SCORE_FN: tl.constexpr, NORM: tl.constexpr):
    """`reference.weigh` before its scale."""
    if SCORE_FN == "topk_softmax":
        powers = tl.where(used[None, :], tl.exp(scores - tl.max(scores, 1)[:, None]), 0.0)
        scores = powers / tl.sum(powers, 1)[:, None]
    elif NORM:
        scores = scores / (tl.sum(scores, 1)[:, None] + EPS)
    return scores


@triton.jit
def _route_backward(
    grad_ptr, ids_ptr, logits_ptr, out_ptr, T, E, scale,
    K: tl.constexpr, SCORE_FN: tl.constexpr, NORM: tl.constexpr,
    ROWS: tl.constexpr, EXPERTS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """From the gradient of K weights a token to that of its E logits; the scores are computed again, not saved."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)
    slot = tl.arange(0, SLOTS)
    real = (row < T)[:, None] & (expert < E)[None, :]
    logits = tl.load(logits_ptr + row[:, None] * E + expert[None, :], mask=real, other=float("-inf")).to(tl.float32)
    logits = tl.where((row < T)[:, None], logits, 0.0)
    scores = _scores(logits, SCORE_FN)
    topk = tl.full((ROWS, SLOTS), float("-inf") if SCORE_FN == "topk_softmax" else 0.0, tl.float32)
    used = row < T
    for k in range(K):
        id = tl.load(ids_ptr + row * K + k, mask=used, other=0)
        one = tl.sum(tl.where(expert[None, :] == id[:, None], scores, 0.0), 1)[:, None]
        topk = tl.where((slot == k)[None, :], one, topk)
    at = row[:, None] * K + slot[None, :]
    grad = tl.load(grad_ptr + at, mask=used[:, None] & (slot < K)[None, :], other=0.0).to(tl.float32) * scale
    weights = _weigh(topk, slot < K, SCORE_FN, NORM)
    if SCORE_FN == "topk_softmax":
        grad = weights * (grad - tl.sum(grad * weights, 1)[:, None])
    elif NORM:
        grad = (grad - tl.sum(grad * weights, 1)[:, None]) / (tl.sum(topk, 1)[:, None] + EPS)
    spread = tl.zeros((ROWS, EXPERTS), tl.float32)
    for k in range(K):
        id = tl.load(ids_ptr + row * K + k, mask=used, other=0)
        one = tl.sum(tl.where((slot == k)[None, :], grad, 0.0), 1)[:, None]
        spread = tl.where(expert[None, :] == id[:, None], one, spread)
    if SCORE_FN == "softmax":
        spread = scores * (spread - tl.sum(spread * scores, 1)[:, None])
    elif SCORE_FN == "sigmoid":
        spread = spread * scores * (1 - scores)
    elif SCORE_FN == "sqrtsoftplus":
        slope = 1 / (1 + tl.exp(-logits)) / (2 * scores)
        spread = tl.where(scores * scores > TINY, spread * slope, 0.0)
    tl.store(out_ptr + row[:, None] * E + expert[None, :], spread.to(out_ptr.dtype.element_ty), mask=real)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.route` in one kernel, and how many tokens chose each expert; differentiable once in the logits.

    Args:
        logits_TE: [T, E], float32, float16 or bfloat16; without NaN. The rest is explained at `reference`'s functions.

    Returns `topk_ids_TK` [T, K] int64, best first, `topk_scores_TK` [T, K] float32, `tokens_per_expert_E` [E] int64.
    Raises ValueError as `reference.route` does, and where no kernel can run.

    >>> ids, weights, counts = route(torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), top_k=2)
    >>> ids.tolist(), counts.tolist()
    ([[0, 1], [0, 1]], [2, 2, 0])
    """
    reference._need_matrix("logits_TE", logits_TE)
    if score_fn not in SCORE_FNS:
        raise ValueError(f"score_fn is {score_fn!r}; choose one of {', '.join(SCORE_FNS)}")
    reference._check_selection(logits_TE.shape[1], top_k, bias_E, num_groups, top_groups, group_score)
    why_not = refusal(logits_TE)
    if why_not:
        raise ValueError(f"the routing kernel cannot take these logits: {why_not}")
    pair = group_score == "top2_sum"
    given = (logits_TE, bias_E, top_k, score_fn, norm_topk, route_scale, num_groups, top_groups, pair)
    recorded = torch.is_grad_enabled() and logits_TE.requires_grad
    call = _forward if watched() else _Eager.apply if recorded else _decide
    weights, ids, counts = call(*given)
    return ids, weights, counts


def _decide(
    logits_TE: Tensor, bias_E: Tensor | None, top_k: int, score_fn: str, norm_topk: bool, route_scale: float,
    num_groups: int, top_groups: int, pair: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    T, E = logits_TE.shape
    logits_TE = logits_TE.contiguous()
    ids = logits_TE.new_empty(T, top_k, dtype=torch.int64)
    weights = logits_TE.new_empty(T, top_k, dtype=torch.float32)
    counts = logits_TE.new_zeros(E, dtype=torch.int64)
    bias = None if bias_E is None else bias_E.detach().contiguous()
    if T:
        sizes = _sizes(E, top_k)
        _route[(triton.cdiv(T, sizes["ROWS"]),)](
            logits_TE, bias, ids, weights, counts, T, E, E // num_groups, route_scale, K=top_k, SCORE_FN=score_fn,
            NORM=norm_topk, BIAS=bias is not None, GROUPS=num_groups, TOP=top_groups, PAIR=pair, **sizes,
        )  # fmt: skip
    return weights, ids, counts


_forward = torch.library.custom_op("labkit::route", _decide, mutates_args=())


@_forward.register_fake
def _(logits_TE, bias_E, top_k, *rest):
    T, E = logits_TE.shape
    ids = logits_TE.new_empty((T, top_k), dtype=torch.int64)
    return ids.new_empty((T, top_k), dtype=torch.float32), ids, ids.new_empty((E,))


@torch.library.custom_op("labkit::route_backward", mutates_args=())
def _backward(
    grad_TK: Tensor, ids_TK: Tensor, logits_TE: Tensor, score_fn: str, norm_topk: bool, route_scale: float
) -> Tensor:
    (T, E), K = logits_TE.shape, ids_TK.shape[1]
    logits_TE = logits_TE.contiguous()
    out = torch.empty_like(logits_TE)
    if T:
        sizes = _sizes(E, K)
        _route_backward[(triton.cdiv(T, sizes["ROWS"]),)](
            grad_TK.contiguous(), ids_TK, logits_TE, out, T, E, route_scale, K=K, SCORE_FN=score_fn, NORM=norm_topk,
            **sizes,
        )  # fmt: skip
    return out


@_backward.register_fake
def _(grad_TK, ids_TK, logits_TE, score_fn, norm_topk, route_scale):
    return torch.empty_like(logits_TE.contiguous())


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits_TE, _, _, *ctx.how = inputs[:6]
    ctx.save_for_backward(output[1], logits_TE)


def _gradient(ctx: Any, grad_TK: Tensor, _ids: None, _counts: None) -> tuple[Tensor | None, ...]:
    return _backward(grad_TK, *ctx.saved_tensors, *ctx.how), *(None,) * 8


_forward.register_autograd(_gradient, setup_context=_keep)


class _Eager(torch.autograd.Function):
    forward, setup_context = staticmethod(_decide), staticmethod(_keep)
    backward = staticmethod(once_differentiable(_gradient))


def _sizes(E: int, K: int) -> dict[str, int]:
    experts = triton.next_power_of_2(E)
    rows = max(1, ELEMENTS // experts)
    return {"ROWS": rows, "EXPERTS": experts, "SLOTS": triton.next_power_of_2(K), "num_warps": 4}
