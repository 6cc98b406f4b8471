"""Lab 13's oracles: TRL's distillation loss (imported only when asked) and torch's `kl_div` in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.attempt import Case


def _trl() -> Callable[..., Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.gkd.gkd_trainer import GKDTrainer
    return GKDTrainer.generalized_jsd_loss


def soft_loss(student_BSV: Tensor, teacher_BSV: Tensor, labels_BS: Tensor, temperature: float, hard: float) -> Tensor:
    """TRL's loss at β = 0, which leaves T² out, and torch's cross-entropy, a share of each."""
    target_BS = labels_BS[:, 1:]
    if bool((target_BS == -100).all()):
        raise ValueError("no label")
    student, teacher = student_BSV[:, :-1], teacher_BSV[:, :-1]
    soft = _trl()(student, teacher, labels=target_BS, beta=0.0, temperature=temperature)
    text = F.cross_entropy(student.flatten(0, 1), target_BS.flatten())
    return hard * text + (1 - hard) * temperature**2 * soft


def divergence(student_TV: Tensor, teacher_TV: Tensor, beta: float) -> Tensor:
    """TRL's loss, token by token."""
    return _trl()(student_TV, teacher_TV, beta=beta, reduction="none").sum(-1)


def possible(case: Case) -> bool:
    """Whether TRL takes a case: no token may have probability 0."""
    return bool(torch.isfinite(case.args[1]).all())


def tail_bucket(student_TV: Tensor, ids_TK: Tensor, logp_TK: Tensor, tail_T: Tensor) -> Tensor:
    """torch's kl_div in float64 of probabilities that are grouped first."""
    kept_TV = torch.zeros_like(student_TV, dtype=torch.bool).scatter(-1, ids_TK, True)
    q_TV = student_TV.double().softmax(-1)
    rest_T = torch.where(kept_TV, 0.0, q_TV).sum(-1)
    q = torch.cat([q_TV.gather(-1, ids_TK), rest_T[:, None]], -1)
    p = torch.cat([logp_TK, tail_T[:, None]], -1).double().exp()
    return F.kl_div(q.log(), p, reduction="none").sum(-1).to(student_TV.dtype)


def with_rest(case: Case) -> bool:
    """Whether the teacher left something over; kl_div differentiates no rest of 0."""
    return bool((case.args[3] > -inf).all())
