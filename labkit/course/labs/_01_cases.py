"""Lab 01: right answers, as `reveal` shows them, and the inputs they are compared on."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.course.attempt import Case

FAMILIES = ("softmax", "sigmoid", "sqrtsoftplus")


def _normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def _fractions(seed: int, *shape: int) -> Tensor:
    """Scores in (0, 1) with no two equal in a row, as sigmoids are."""
    return (_normal(seed, *shape) * 1.5).sigmoid()


def _distinct(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Whole numbers around zero, shuffled: exact in every dtype, and no ties."""
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return (order.reshape(shape) - count // 2).to(dtype)


def scores(logits: Tensor, score_fn: str = "softmax") -> Tensor:
    logits = logits.float()
    if score_fn == "softmax":
        return logits.softmax(dim=-1)
    if score_fn == "sigmoid":
        return logits.sigmoid()
    if score_fn == "sqrtsoftplus":
        return torch.nn.functional.softplus(logits).sqrt()
    raise ValueError(f"score_fn is {score_fn!r}; choose softmax, sigmoid or sqrtsoftplus")


def scores_cases(seed: int) -> list[Case]:
    cases = [Case((_normal(seed, 1, 4), fn), label=f"one token, {fn}") for fn in FAMILIES]
    cases.append(Case((_normal(seed + 10, 7, 5),), label="the default"))
    for fn in FAMILIES:
        cases.append(Case((_normal(seed + 1, 2, 3, 5), fn), label=f"a batch of sequences, {fn}"))
        cases.append(Case((_normal(seed + 2, 3, 6).bfloat16(), fn), label=f"bfloat16, {fn}"))
        cases.append(Case((_normal(seed + 3, 4, 6, scale=200.0) + 300, fn), label=f"big logits, {fn}"))
        cases.append(Case((_normal(seed + 4, 3, 5), fn), label=f"gradients flow back, {fn}", needs_grad=True))
    apart = torch.tensor([[0.0], [-300.0], [-600.0]])
    cases.append(Case((_normal(seed + 5, 3, 5) + apart,), label="tokens whose logits lie far apart, softmax"))
    cases.append(Case((_normal(seed, 1, 4), "hardmax"), label="an unknown name: ValueError"))
    return cases


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    topk_scores, topk_ids = scores.topk(k, dim=-1)
    return topk_ids, topk_scores


def top_k_cases(seed: int) -> list[Case]:
    return [
        Case((_fractions(seed, 1, 3), 1), label="one token, K = 1"),
        Case((_fractions(seed + 1, 3, 4), 2)),
        Case((_fractions(seed + 2, 7, 5), 5), label="K = E"),
        Case((_fractions(seed + 3, 2, 3, 6), 2), label="a batch of sequences"),
        Case((_distinct(seed + 4, 4, 5), 3), label="negative scores too: raw logits, as GPT-OSS ranks them"),
        Case((_distinct(seed + 5, 3, 6, dtype=torch.bfloat16), 2), label="bfloat16 stays bfloat16"),
        Case((_fractions(seed + 6, 3, 5), 2), label="gradients flow back", needs_grad=True),
    ]


def renormalise(topk_scores: Tensor, norm_topk: bool = True, route_scale: float = 1.0) -> Tensor:
    if norm_topk:
        topk_scores = topk_scores / (topk_scores.sum(dim=-1, keepdim=True) + 1e-20)
    return topk_scores * route_scale


def renormalise_cases(seed: int) -> list[Case]:
    tiny = _fractions(seed + 4, 3, 4) * 1e-10
    return [
        Case((_fractions(seed, 1, 2),), label="one token"),
        Case((_fractions(seed + 1, 3, 2), False), label="not renormalised"),
        Case((_fractions(seed + 2, 7, 4), True, 2.5), label="scaled"),
        Case((_fractions(seed + 2, 7, 4), False, 2.5), label="scaled, not renormalised"),
        Case((_fractions(seed + 3, 2, 3, 2),), label="a batch of sequences"),
        Case((tiny,), label="tiny scores"),
        Case((torch.cat([tiny[:, :2], torch.zeros(1, 2)]),), label="one token's scores have all underflowed to zero"),
        Case((_fractions(seed + 5, 4, 1),), label="K = 1"),
        Case((_fractions(seed + 6, 3, 2),), label="gradients flow back", needs_grad=True),
        Case((_fractions(seed + 7, 3, 2), False), label="gradients flow back, not renormalised", needs_grad=True),
    ]


def select_with_bias(scores: Tensor, bias_E: Tensor, k: int) -> tuple[Tensor, Tensor]:
    topk_ids = (scores + bias_E).topk(k, dim=-1).indices
    return topk_ids, scores.gather(-1, topk_ids)


def select_cases(seed: int) -> list[Case]:
    strong = torch.zeros(6)
    strong[3] = 2.0
    telling = (torch.tensor([[0.6, 0.3, 0.1, 0.5, 0.4]]), torch.tensor([0.02, 0.5, -0.6, 0.05, -0.1]), 3)
    return [
        Case(telling, label="one token"),
        Case((_fractions(seed + 1, 7, 5), torch.zeros(5), 2), label="no bias"),
        Case((_fractions(seed + 2, 5, 6), _normal(seed + 3, 6, scale=0.3), 3)),
        Case((_fractions(seed + 4, 4, 6), strong, 1), label="one expert favoured by all, K = 1"),
        Case((_fractions(seed + 5, 3, 4), _normal(seed + 6, 4, scale=0.3), 4), label="K = E: only the order moves"),
        Case((_fractions(seed + 7, 2, 3, 6), _normal(seed + 8, 6, scale=0.3), 2), label="a batch of sequences"),
        Case((_fractions(seed + 9, 5, 4), torch.tensor([0.0, -9.0, 0.0, 0.0]), 2), label="one expert shut out"),
        Case(
            (_fractions(seed + 11, 3, 5), _normal(seed + 12, 5, scale=0.3), 2),
            label="gradients flow back",
            needs_grad=True,
        ),
    ]


def k_one_gradient(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor, norm_topk: bool) -> Tensor:
    logits_TE = logits_TE.detach().requires_grad_(True)
    scores_T1, ids_T1 = logits_TE.softmax(dim=-1).topk(1, dim=-1)
    weights_T1 = scores_T1 / scores_T1.sum(dim=-1, keepdim=True) if norm_topk else scores_T1
    chosen_TD = outputs_TED[torch.arange(len(ids_T1)), ids_T1[:, 0]]
    loss = ((weights_T1 * chosen_TD - target_TD) ** 2).mean()
    return torch.autograd.grad(loss, logits_TE)[0]


def k_one_cases(seed: int) -> list[Case]:
    cases = []
    for i, (T, E, D) in enumerate(((1, 3, 2), (7, 4, 5))):
        args = (_normal(seed + i, T, E), _normal(seed + 5 + i, T, E, D, scale=2.0), _normal(seed + 9 + i, T, D))
        count = "one token" if T == 1 else f"{T} tokens"
        cases += [Case((*args, flag), label=f"{count}, norm_topk={flag}") for flag in (False, True)]
    return cases
