"""Which implementation decides for every token, and why: the fused kernel on a GPU, the reference elsewhere."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec

import torch
from torch import Tensor

from labkit.core.config import GroupScore, ScoreFn
from labkit.kernels import reference
from labkit.kernels.choice import Choice, Forced

NAMES = ("triton", "reference")
MOST_EXPERTS = 1024
_forced = Forced("route")


def choose(logits_TE: Tensor, implementation: str = "auto") -> Choice:
    """The implementation for these logits: the forced one, else the named one, else the first that can.

    Raises ValueError for an unknown name, and when the one forced or named cannot do it, saying why.

    >>> choose(torch.zeros(3, 8)).name
    'reference'
    """
    name = _forced.name or implementation
    if name not in ("auto", *NAMES):
        raise ValueError(f"implementation is {name!r}; choose 'auto' or one of {', '.join(NAMES)}")
    if name == "reference":
        return Choice(name, "forced" if _forced.name else "asked for")
    why_not = _triton_refuses(logits_TE, asked=name == "triton")
    if name == "triton":
        if why_not:
            raise ValueError(f"triton cannot route this: {why_not}; use implementation='auto' or 'reference'")
        return Choice(name, "forced" if _forced.name else "asked for")
    return Choice("reference", f"triton cannot: {why_not}") if why_not else Choice("triton", "the first choice can")


def force(name: str) -> contextlib.AbstractContextManager[None]:
    """Inside the block every call of `route` runs this implementation, in this thread or task only."""
    if name not in NAMES:
        raise ValueError(f"implementation is {name!r}; choose one of {', '.join(NAMES)}")
    return _forced.to(name)


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
    implementation: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """From logits to a decision, on the best implementation there is; arguments as `reference.route`.

    Returns `topk_ids_TK` [T, K] int64, `topk_scores_TK` [T, K] float32 or float64, `tokens_per_expert_E` [E] int64.
    """
    options = {
        "top_k": top_k, "score_fn": score_fn, "norm_topk": norm_topk, "route_scale": route_scale, "bias_E": bias_E,
        "num_groups": num_groups, "top_groups": top_groups, "group_score": group_score,
    }  # fmt: skip
    if choose(logits_TE, implementation).name == "triton":
        from labkit.kernels import topk  # Triton is loaded by the first call that needs it

        return topk.route(logits_TE, **options)
    ids_TK, scores_TK = reference.route(logits_TE, **options)
    counts_E = torch.zeros(logits_TE.shape[1], dtype=torch.int64, device=ids_TK.device)
    return ids_TK, scores_TK, counts_E.index_add_(0, ids_TK.flatten(), torch.ones_like(ids_TK.flatten()))


def _triton_refuses(logits_TE: Tensor, *, asked: bool) -> str:
    if logits_TE.device.type != "cuda" and not asked:
        return "its kernel needs a GPU; asked for, it runs on a CPU too, interpreted"
    if logits_TE.shape[-1] > MOST_EXPERTS:
        return f"there are {logits_TE.shape[-1]} experts, more than {MOST_EXPERTS}: a row must fit in registers"
    if find_spec("triton") is None:
        return 'Triton is not installed; pip install "labkit[gpu]"'
    from labkit.kernels.language import refusal

    return refusal(logits_TE)
