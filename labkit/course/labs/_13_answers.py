"""Lab 13: right answers, as `reveal` shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_loss(student_BSV: Tensor, teacher_BSV: Tensor, labels_BS: Tensor, temperature: float, hard: float) -> Tensor:
    target_BS = labels_BS[:, 1:]
    learned = target_BS != -100
    if not learned.any():
        raise ValueError("no position has a label to predict: every one is -100")
    student_TV, teacher_TV = student_BSV[:, :-1][learned], teacher_BSV[:, :-1][learned]
    logp = F.log_softmax(teacher_TV / temperature, -1)
    logq = F.log_softmax(student_TV / temperature, -1)
    soft = (logp.exp() * (logp - logq)).sum(-1).mean()
    return hard * F.cross_entropy(student_TV, target_BS[learned]) + (1 - hard) * temperature**2 * soft


def divergence(student_TV: Tensor, teacher_TV: Tensor, beta: float) -> Tensor:
    def kl(p: Tensor, logp: Tensor, logm: Tensor) -> Tensor:
        return torch.where(p == 0, 0.0, p * (logp - logm)).sum(-1)

    logq, logp = student_TV.log_softmax(-1), teacher_TV.log_softmax(-1)
    if beta == 0:
        return kl(logp.exp(), logp, logq)
    if beta == 1:
        return kl(logq.exp(), logq, logp)
    logm = torch.logaddexp(logp + math.log(beta), logq + math.log1p(-beta))
    return beta * kl(logp.exp(), logp, logm) + (1 - beta) * kl(logq.exp(), logq, logm)


def tail_bucket(student_TV: Tensor, ids_TK: Tensor, logp_TK: Tensor, tail_T: Tensor) -> Tensor:
    logq_TV = student_TV.log_softmax(-1)
    kept_TK = logq_TV.gather(-1, ids_TK)
    rest_T = logq_TV.scatter(-1, ids_TK, -math.inf).logsumexp(-1)
    logp = torch.cat([logp_TK, tail_T[:, None]], -1)
    logq = torch.cat([kept_TK, rest_T[:, None]], -1)
    return torch.where(logp == -math.inf, 0.0, logp.exp() * (logp - logq)).sum(-1)


def equal_steps(
    steps: int, student: Mapping[str, int], teacher: Mapping[str, int], students: int = 1, epochs: int = 1
) -> int:
    def forward(model: Mapping[str, int]) -> int:
        active = model["dense"] + model["head"] + model.get("top_k", 0) * model.get("expert", 0)
        return 2 * active

    step = 3 * forward(student) * students * epochs
    return steps * (step + forward(teacher)) // step


def prune(layer: Mapping[str, Tensor], used_E: Tensor, number: int, top_k: int) -> tuple[dict[str, Tensor], int]:
    if not 1 <= number <= len(used_E):
        raise ValueError(f"number is {number}; give 1 to {len(used_E)}, the number of experts")
    order_E = torch.sort(used_E, descending=True, stable=True).indices
    keep_N = order_E[:number].sort().values
    kept = {
        name: tensor[keep_N] if name.startswith(("router.", "experts.")) else tensor for name, tensor in layer.items()
    }
    return kept, min(top_k, number)


def align(anchor: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    def units(gate_up_2FD: Tensor, down_DF: Tensor) -> Tensor:
        return torch.cat([*gate_up_2FD.chunk(2), down_DF.T], dim=1)

    gate_up_2FD, down_DF = other
    width = down_DF.shape[1]
    alike_FF = units(*anchor) @ units(*other).T
    order_F = torch.empty(width, dtype=torch.int64)
    for _ in range(width):
        place, unit = divmod(int(alike_FF.argmax()), width)
        order_F[place] = unit
        alike_FF[place], alike_FF[:, unit] = -math.inf, -math.inf
    gate_FD, up_FD = gate_up_2FD.chunk(2)
    return torch.cat([gate_FD[order_F], up_FD[order_F]]), down_DF[:, order_F]
