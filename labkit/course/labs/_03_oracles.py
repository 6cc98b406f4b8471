"""Lab 03's oracles: transformers' balance loss, its z-loss, and its router with a capacity."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.attempt import Case


def aux_loss(logits_TE: Tensor, topk_ids_TK: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """Transformers' balance loss, which makes the choice itself."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    mask = None if mask_T is None else mask_T[None].long()
    E, K = logits_TE.shape[1], topk_ids_TK.shape[1]
    return load_balancing_loss_func((logits_TE,), num_experts=E, top_k=K, attention_mask=mask)


def chooses_alike(case: Case) -> bool:
    """Whether the choice in a case is the one that transformers makes: the highest logits, without ties."""
    logits_TE, ids_TK = case.args[:2]
    best_TK = logits_TE.topk(ids_TK.shape[1], dim=-1).indices
    return case.label != "an even load" and torch.equal(best_TK, ids_TK)


def z_loss(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """The z-loss of transformers' Switch model, which knows no mask: padding is cut out before."""
    from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

    return router_z_loss_func((logits_TE if mask_T is None else logits_TE[mask_T])[None])


def keep(topk_ids_TK: Tensor, topk_scores_TK: Tensor, capacity: int, policy: str = "position") -> Tensor:
    """Which tokens transformers' Switch router keeps: one expert a token, first come, first served."""
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

    E = int(topk_ids_TK.max()) + 1
    router = SwitchTransformersTop1Router(SwitchTransformersConfig(hidden_size=E, num_experts=E, router_bias=False))
    router.expert_capacity = capacity
    with torch.no_grad():
        router.classifier.weight.copy_(torch.eye(E))
        answers = router.eval()(10.0 * F.one_hot(topk_ids_TK[:, 0], E).float()[None])
    (dispatched_1TE,) = [answer for answer in answers if not answer.is_floating_point()]  # versions differ in the order
    return dispatched_1TE[0].sum(-1, keepdim=True) > 0


def one_expert_by_position(case: Case) -> bool:
    """Whether a case is one that Switch knows, in a version of transformers whose router has places."""
    return case.args[0].shape[1] == 1 and case.args[3:] in ((), ("position",)) and switch_turns_away()


@functools.cache
def switch_turns_away() -> bool:
    """Whether the installed Switch router drops a token that finds its expert full: up to 5.17 it never does.

    There the tokens are counted along an axis of length one, so the capacity never binds.
    """
    kept = keep(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1), 1)
    return kept.flatten().tolist() == [True, False]
