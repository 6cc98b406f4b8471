"""The router's decision in one kernel: scores, bias, groups, top-k, renormalisation and the count of every expert.

Eager torch reads and writes a [T, E] tensor for each of these steps. Here a program keeps some rows in registers from
the first step to the last and writes K numbers a token. `reference.route` says what must come out. Its ids come out
too, except where scores differ by no more than the rounding of their last bits: another exponential rounds otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from labkit.core.config import SCORE_FNS, GroupScore, ScoreFn
from labkit.kernels import reference
from labkit.kernels.language import refusal, tl, triton, watched

EPS = tl.constexpr(reference.RENORMALISE_EPS)
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)  # what `reference.scores` clamps softplus at
FLAT = tl.constexpr(-87.33654)  # log(TINY): below, the clamp stops the gradient
LOWEST = tl.constexpr(-(2**31))
MINUS_INFINITY = tl.constexpr(float("-inf"))


@triton.jit
def _softmax(logits):
    powers = tl.exp(logits - tl.max(logits, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None]


@triton.jit
def _softplus(x):
    """max(x, 0) + log(1 + y), y = exp(−|x|), with log(1 + y) = 2·artanh(s), s = y / (2 + y), as its series.

    `tl.log(1 + y)` would forget a small y: what 1 + y rounds away, and on a GPU all below 2⁻²² (lg2.approx).
    """
    y = tl.exp(-tl.abs(x))
    s = y / (2 + y)  # at most 1/3: the first term left out is below 1e-8 of the sum
    square = s * s
    series = 1 / 13 * square + 1 / 11
    for i in tl.static_range(5):
        series = series * square + 1 / (9 - 2 * i)
    return tl.where(x > 0, x, 0.0) + 2 * s * series


@triton.jit
def _scores(logits, SCORE_FN: tl.constexpr):
    """`reference.scores` of rows whose columns beyond the experts are −∞."""
    if SCORE_FN == "softmax":
        scores = _softmax(logits)
    elif SCORE_FN == "sigmoid":
        scores = 1 / (1 + tl.exp(-logits))
    elif SCORE_FN == "sqrtsoftplus":
        softplus = _softplus(logits)
        scores = tl.sqrt(tl.where(softplus < TINY, TINY, softplus))
    else:
        scores = logits
    return scores


@triton.jit
def _keys(values):
    """Integers in the order of these floats: bits of a float with + are that already, with − all but the sign flip.

    −0 gets the key of 0, NaN the highest (as in torch.sort), and none is near LOWEST: that of −∞ lies 2²³ above it.
    """
    bits = tl.where(values == 0, 0.0, values).to(tl.int32, bitcast=True)
    return tl.where(values == values, bits ^ ((bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)


@triton.jit
def _take(key, column, rank):
    """Each row's highest key, the leftmost of equal ones, becomes LOWEST + rank: no maximum sees it again."""
    best = tl.max(key, 1)
    first = tl.min(tl.where(key == best[:, None], column[None, :], 0x7FFFFFFF), 1)
    return tl.where(column[None, :] == first[:, None], LOWEST + rank, key)


@triton.jit
def _keep_groups(
    choice, GROUPS: tl.constexpr, TOP: tl.constexpr, PAIR: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr
):
    """−∞ outside the TOP best of GROUPS groups; a group is worth its best expert, or with PAIR its two best."""
    member = tl.reshape(choice, (choice.shape[0], WIDTH, SIZE))
    worth = tl.max(member, 2)
    if PAIR:
        number = tl.arange(0, SIZE)[None, None, :]
        first = tl.min(tl.where(member == worth[:, :, None], number, SIZE), 2)
        worth += tl.max(tl.where(number == first[:, :, None], MINUS_INFINITY, member), 2)
    group = tl.arange(0, WIDTH)
    key = tl.where((group < GROUPS)[None, :], _keys(worth), LOWEST + GROUPS)
    for rank in range(TOP):
        key = _take(key, group, rank)
    kept = key < LOWEST + TOP
    return tl.reshape(tl.where(kept[:, :, None], member, MINUS_INFINITY), choice.shape)


@triton.jit(do_not_specialize=["T"])
def _route(
    logits_ptr, bias_ptr, ids_ptr, weights_ptr, counts_ptr, T, scale,
    E: tl.constexpr, K: tl.constexpr, SCORE_FN: tl.constexpr, NORM: tl.constexpr,
    GROUPS: tl.constexpr, TOP: tl.constexpr, PAIR: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """ROWS tokens by WIDTH groups of SIZE columns, both rounded up to powers of two; in order of expert number."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH * SIZE)
    expert = column // SIZE * (E // GROUPS) + column % SIZE
    real = (column // SIZE < GROUPS) & (column % SIZE < E // GROUPS)
    inside = (row < T)[:, None] & real[None, :]
    logits = tl.load(logits_ptr + row[:, None] * E + expert[None, :], mask=inside, other=0.0).to(tl.float32)
    scores = _scores(tl.where(real[None, :], logits, MINUS_INFINITY), SCORE_FN)
    choice = scores
    if bias_ptr is not None:
        choice += tl.load(bias_ptr + expert, mask=real, other=0.0).to(tl.float32)[None, :]
    if TOP < GROUPS:
        choice = _keep_groups(tl.where(real[None, :], choice, MINUS_INFINITY), GROUPS, TOP, PAIR, WIDTH, SIZE)
    key = tl.where(real[None, :], _keys(choice), LOWEST + E)
    for rank in range(K):
        key = _take(key, column, rank)
    chosen = key < LOWEST + K
    weights = _weigh(scores, chosen, SCORE_FN, NORM) * scale
    place = row[:, None] * K + (key & 0x7FFFFFFF)  # the rank again: every chosen expert writes itself
    mask = chosen & (row < T)[:, None]
    tl.store(ids_ptr + place, tl.broadcast_to(expert[None, :], place.shape).to(tl.int64), mask=mask)
    tl.store(weights_ptr + place, weights, mask=mask)
    counts = tl.sum(mask.to(tl.int32), 0)
    tl.atomic_add(counts_ptr + expert, counts.to(tl.int64), mask=counts > 0, sem="relaxed")  # integers: order is free


@triton.jit
def _weigh(scores, chosen, SCORE_FN: tl.constexpr, NORM: tl.constexpr):
    """`reference.weigh` before its scale; only what stands at chosen experts counts."""
    if SCORE_FN == "topk_softmax":
        weights = _softmax(tl.where(chosen, scores, MINUS_INFINITY))
    elif NORM:
        weights = scores / (tl.sum(tl.where(chosen, scores, 0.0), 1) + EPS)[:, None]
    else:
        weights = scores
    return weights


@triton.jit(do_not_specialize=["T"])
def _route_backward(
    grad_ptr, ids_ptr, logits_ptr, out_ptr, T, scale,
    E: tl.constexpr, K: tl.constexpr, SCORE_FN: tl.constexpr, NORM: tl.constexpr,
    ROWS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """From the gradient of K weights a token to that of its E logits; the scores are computed again, not saved."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)
    inside = (row < T)[:, None] & (expert < E)[None, :]
    at = row[:, None] * E + expert[None, :]
    logits = tl.load(logits_ptr + at, mask=inside, other=0.0).to(tl.float32)
    logits = tl.where((expert < E)[None, :], logits, MINUS_INFINITY)
    grad = tl.zeros((ROWS, EXPERTS), tl.float32)
    chosen = tl.zeros((ROWS, EXPERTS), tl.int1)
    for rank in range(K):
        id = tl.load(ids_ptr + row * K + rank, mask=row < T, other=rank).to(tl.int32)
        here = expert[None, :] == id[:, None]
        one = tl.load(grad_ptr + row * K + rank, mask=row < T, other=0.0).to(tl.float32) * scale
        grad = tl.where(here, one[:, None], grad)
        chosen = chosen | here
    scores = _scores(logits, SCORE_FN)
    if SCORE_FN == "topk_softmax":
        weights = _weigh(scores, chosen, SCORE_FN, NORM)
        grad = weights * (grad - tl.sum(grad * weights, 1)[:, None])
    elif NORM:
        total = tl.sum(tl.where(chosen, scores, 0.0), 1) + EPS
        mean = tl.sum(tl.where(chosen, grad * scores, 0.0), 1) / total
        grad = tl.where(chosen, (grad - mean[:, None]) / total[:, None], 0.0)
    if SCORE_FN == "softmax":
        grad = scores * (grad - tl.sum(grad * scores, 1)[:, None])
    elif SCORE_FN == "sigmoid":
        grad = grad * scores * (1 - scores)
    elif SCORE_FN == "sqrtsoftplus":
        slope = 1 / (1 + tl.exp(-tl.maximum(logits, FLAT))) / (2 * scores)
        grad = tl.where(logits < FLAT, 0.0, grad * slope)
    tl.store(out_ptr + at, grad.to(out_ptr.dtype.element_ty), mask=inside)


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
        logits_TE: [T, E], float32, float16 or bfloat16. The rest is explained at `reference`'s functions.

    Returns `topk_ids_TK` [T, K] int64, best first, `topk_scores_TK` [T, K] float32, `tokens_per_expert_E` [E] int64;
    the same bits every time. Raises ValueError as `reference.route` does, and where no kernel can run.

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
    if bias_E is not None:
        bias_E = bias_E.detach().to(logits_TE.device)
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
    ids = logits_TE.new_empty(T, top_k, dtype=torch.int64)
    weights = logits_TE.new_empty(T, top_k, dtype=torch.float32)
    counts = logits_TE.new_zeros(E, dtype=torch.int64)
    if top_groups == num_groups:
        num_groups = top_groups = 1  # every group is kept
    width, size = triton.next_power_of_2(num_groups), triton.next_power_of_2(E // num_groups)
    tile = _tile(width * size)
    if T:
        _route[(triton.cdiv(T, tile["ROWS"]),)](
            logits_TE.contiguous(), None if bias_E is None else bias_E.contiguous(), ids, weights, counts, T,
            route_scale, E=E, K=top_k, SCORE_FN=score_fn, NORM=norm_topk, GROUPS=num_groups, TOP=top_groups,
            PAIR=pair, WIDTH=width, SIZE=size, **tile,
        )  # fmt: skip
    return weights, ids, counts


_forward = torch.library.custom_op("labkit::route", _decide, mutates_args=())


@_forward.register_fake
def _(logits_TE, bias_E, top_k, *rest):
    T, E = logits_TE.shape
    ids = logits_TE.new_empty((T, top_k), dtype=torch.int64)
    return ids.new_empty((T, top_k), dtype=torch.float32), ids, ids.new_empty((E,))


def _differentiate(
    grad_TK: Tensor, ids_TK: Tensor, logits_TE: Tensor, score_fn: str, norm_topk: bool, route_scale: float
) -> Tensor:
    (T, E), K = logits_TE.shape, ids_TK.shape[1]
    logits_TE = logits_TE.contiguous()
    out = torch.empty_like(logits_TE)
    experts = triton.next_power_of_2(E)
    tile = _tile(experts)
    if T:
        _route_backward[(triton.cdiv(T, tile["ROWS"]),)](
            grad_TK.contiguous(), ids_TK, logits_TE, out, T, route_scale, E=E, K=K, SCORE_FN=score_fn, NORM=norm_topk,
            EXPERTS=experts, **tile,
        )  # fmt: skip
    return out


_backward = torch.library.custom_op("labkit::route_backward", _differentiate, mutates_args=())


@_backward.register_fake
def _(grad_TK, ids_TK, logits_TE, score_fn, norm_topk, route_scale):
    return torch.empty_like(logits_TE.contiguous())


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits_TE, _, _, *ctx.how = inputs[:6]
    ctx.save_for_backward(output[1], logits_TE)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad_TK: Tensor | None, _ids: None, _counts: None) -> tuple[Tensor | None, ...]:
    if grad_TK is None:
        return (None,) * 9
    return (_backward if watched() else _differentiate)(grad_TK, *ctx.saved_tensors, *ctx.how), *(None,) * 8


_forward.register_autograd(_gradient, setup_context=_keep)


class _Eager(torch.autograd.Function):
    forward, setup_context = staticmethod(_decide), staticmethod(_keep)
    backward = staticmethod(once_differentiable(_gradient))


def _tile(columns: int) -> dict[str, int]:
    """Rows of a program and its warps, measured on an H200; rows of 256 and more are quickest inside a warp each."""
    logits = 2048 if columns <= 128 else 512
    return {"ROWS": max(1, logits // columns), "num_warps": max(1, logits // 512, columns // 512)}
