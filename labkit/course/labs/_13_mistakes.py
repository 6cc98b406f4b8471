"""Lab 13: mistakes as a learner makes them, in losses. Each class is its exercise's answer with one thing wrong."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class SoftLoss:
    """`soft_loss` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(
        self, student_BSV: Tensor, teacher_BSV: Tensor, labels_BS: Tensor, temperature: float, hard: float
    ) -> Tensor:
        wrong, T = self.wrong, temperature
        student_BSV, teacher_BSV, target_BS = _aligned(wrong, student_BSV, teacher_BSV, labels_BS)
        learned_BS = target_BS != -100
        if not learned_BS.any() and wrong != "nothing_accepted":
            raise ValueError("no label")
        student_BSV = student_BSV.detach() if wrong == "no_gradient" else student_BSV
        student_TV, teacher_TV, target_T = (x[learned_BS] for x in (student_BSV, teacher_BSV, target_BS))
        logp = F.log_softmax(teacher_TV / (1.0 if wrong == "student_only" else T), -1)
        logq = F.log_softmax(student_TV / (1.0 if wrong == "teacher_only" else T), -1)
        if wrong == "multiplied":
            logp, logq = F.log_softmax(teacher_TV * T, -1), F.log_softmax(student_TV * T, -1)
        if wrong == "reversed":
            logp, logq = logq, logp
        each_TV = logp.exp() * (logp if wrong == "log_student_missing" else logp - logq)
        if wrong == "cross_entropy":
            each_TV = -logp.exp() * logq
        if wrong == "argmax":
            each_TV = F.nll_loss(logq, teacher_TV.argmax(-1), reduction="none")[:, None]
        if wrong == "kl_div_without_log":
            each_TV = logp.exp() * (logp - logq.exp())
        soft = each_TV.sum(-1).mean()
        if wrong in ELSEWHERE:
            soft = _elsewhere(wrong, student_BSV / T, teacher_BSV / T, labels_BS, learned_BS)
        if wrong == "soft_padding":
            soft = soft * learned_BS.sum() / learned_BS.numel()
        if wrong == "vocabulary_mean":
            soft = each_TV.mean()
        if wrong == "per_sequence":
            soft = each_TV.sum() / len(labels_BS)
        text = F.cross_entropy(student_TV / (T if wrong == "text_softened" else 1.0), target_T)
        return _mixed(wrong, text, soft, T, hard, learned_BS)


ELSEWHERE = ("unmasked", "mask_not_shifted", "mean_of_means", "soft_summed", "over_positions")


def _elsewhere(wrong: str, student_BSV: Tensor, teacher_BSV: Tensor, labels_BS: Tensor, learned_BS: Tensor) -> Tensor:
    """The divergence over other positions than those with a label, or summed along another dimension."""
    along = 1 if wrong == "over_positions" else -1
    logp, logq = teacher_BSV.log_softmax(along), student_BSV.log_softmax(along)
    each_BS = (logp.exp() * (logp - logq)).sum(-1)
    if wrong == "unmasked":
        return each_BS.mean()
    if wrong == "mask_not_shifted":
        return each_BS[labels_BS[:, :-1] != -100].mean()
    if wrong == "mean_of_means":
        return ((each_BS * learned_BS).sum(1) / learned_BS.sum(1).clamp(min=1)).mean()
    return each_BS[learned_BS].sum() if wrong == "soft_summed" else each_BS[learned_BS].mean()


def _aligned(wrong: str, student_BSV: Tensor, teacher_BSV: Tensor, labels_BS: Tensor) -> tuple[Tensor, ...]:
    if wrong == "not_shifted":
        return student_BSV, teacher_BSV, labels_BS
    if wrong == "shifted_back":
        return student_BSV[:, 1:], teacher_BSV[:, 1:], labels_BS[:, :-1]
    if wrong == "teacher_shifted":
        return student_BSV[:, :-1], teacher_BSV[:, 1:], labels_BS[:, 1:]
    return student_BSV[:, :-1], teacher_BSV[:, :-1], labels_BS[:, 1:]


def _mixed(wrong: str, text: Tensor, soft: Tensor, T: float, hard: float, learned_BS: Tensor) -> Tensor:
    square = {"no_square": 1.0, "linear": T, "divided": T**-2}.get(wrong, T**2)
    if wrong == "shares_swapped":
        return (1 - hard) * text + hard * square * soft
    if wrong == "soft_added_whole":
        return hard * text + square * soft
    if wrong == "text_added_whole":
        return text + (1 - hard) * square * soft
    if wrong == "square_on_both":
        return square * (hard * text + (1 - hard) * soft)
    mixed = hard * text + (1 - hard) * square * soft
    if wrong == "padding_counted":
        mixed = mixed * learned_BS.sum() / learned_BS.numel()
    if wrong == "last_counted":
        mixed = mixed * learned_BS.sum() / (learned_BS.sum() + len(learned_BS))
    if wrong == "sums":
        mixed = mixed * learned_BS.sum()
    return mixed


class Divergence:
    """`divergence` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, student_TV: Tensor, teacher_TV: Tensor, beta: float) -> Tensor:
        wrong = self.wrong
        student_TV = student_TV.detach() if wrong == "no_gradient" else student_TV
        along = 0 if wrong == "over_positions" else -1
        logq, logp = student_TV.log_softmax(along), teacher_TV.log_softmax(along)
        if wrong == "probabilities_twice":
            logq, logp = student_TV.softmax(-1).log_softmax(-1), teacher_TV.softmax(-1).log_softmax(-1)
        if wrong == "swapped":
            beta = 1 - beta
        if wrong == "log_of_softmax":
            logq, logp = student_TV.softmax(-1).log(), teacher_TV.softmax(-1).log()
        if wrong == "small_number":
            logq, logp = (student_TV.softmax(-1) + 1e-6).log(), (teacher_TV.softmax(-1) + 1e-6).log()
        if beta in (0, 1) and wrong != "no_ends":
            found = self._kl(logp, logq) if beta == 0 else self._kl(logq, logp)
        else:
            found = self._between(logp, logq, beta)
        if wrong == "nan_hidden":
            found = found.nan_to_num()
        return found.mean() if wrong == "one_number" else found

    def _between(self, logp: Tensor, logq: Tensor, beta: float) -> Tensor:
        wrong, first = self.wrong, 1 - beta if self.wrong == "mixture_reversed" else beta
        first = 0.5 if wrong == "half_mixture" else first
        logm = torch.tensor([first, 1 - first]).log()
        logm = torch.logaddexp(logp + logm[0], logq + logm[1])
        if wrong == "mean_of_logs":
            logm = first * logp + (1 - first) * logq
        if wrong == "mixture_underflows":
            logm = (first * logp.exp() + (1 - first) * logq.exp()).log()
        if wrong == "two_kls":
            return (1 - beta) * self._kl(logp, logq) + beta * self._kl(logq, logp)
        if wrong == "weights_reversed":
            return (1 - beta) * self._kl(logp, logm) + beta * self._kl(logq, logm)
        if wrong == "half_weights":
            return 0.5 * self._kl(logp, logm) + 0.5 * self._kl(logq, logm)
        if wrong == "unweighted":
            return self._kl(logp, logm) + self._kl(logq, logm)
        if wrong == "from_the_mixture":
            return beta * self._kl(logm, logp) + (1 - beta) * self._kl(logm, logq)
        found = beta * self._kl(logp, logm) + (1 - beta) * self._kl(logq, logm)
        if wrong == "divided_by_beta":
            found = found / beta
        return found

    def _kl(self, logp: Tensor, logm: Tensor) -> Tensor:
        each = logp.exp() * (logp - logm)
        if self.wrong not in ("nan", "nan_hidden"):
            # twice: so that neither the value nor the gradient meets 0 · ∞
            apart = torch.where(logp == -math.inf, 0.0, logp - logm.masked_fill(logp == -math.inf, 0.0))
            each = logp.exp() * apart
        return each.mean(-1) if self.wrong == "vocabulary_mean" else each.sum(-1)


class TailBucket:
    """`tail_bucket` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, student_TV: Tensor, ids_TK: Tensor, logp_TK: Tensor, tail_T: Tensor) -> Tensor:
        wrong, K = self.wrong, ids_TK.shape[-1]
        student_TV = student_TV.detach() if wrong == "no_gradient" else student_TV
        logq_TV = student_TV.log_softmax(-1)
        if wrong == "students_top":
            ids_TK = logq_TV.topk(K, dim=-1).indices
        kept_TK = logq_TV.gather(-1, ids_TK)
        rest_T = logq_TV.scatter(-1, ids_TK, -math.inf).logsumexp(-1)
        if wrong == "rest_cut":
            rest_T = rest_T.detach()
        if wrong == "rest_from_logits":
            rest_T = student_TV.scatter(-1, ids_TK, -math.inf).logsumexp(-1)
        if wrong == "struck_out_with_zero":
            rest_T = logq_TV.scatter(-1, ids_TK, 0.0).logsumexp(-1)
        if wrong == "one_minus":
            rest_T = (1 - kept_TK.exp().sum(-1)).log()
        if wrong == "one_minus_bounded":
            rest_T = (1 - kept_TK.exp().sum(-1)).clamp_min(1e-8).log()
        if wrong == "rest_of_the_students_top":
            rest_T = logq_TV.topk(logq_TV.shape[-1], dim=-1).values[:, K:].logsumexp(-1)
        if wrong == "mean_of_the_rest":
            rest_T = rest_T - math.log(logq_TV.shape[-1] - K)
        if wrong == "rescaled":
            logp_TK, tail_T = logp_TK.log_softmax(-1), torch.full_like(tail_T, -math.inf)
        if wrong == "both_rescaled":
            logp_TK, kept_TK = logp_TK.log_softmax(-1), kept_TK.log_softmax(-1)
        if wrong == "logits_for_logs":
            kept_TK, rest_T = student_TV.gather(-1, ids_TK), torch.zeros_like(rest_T)
            rest_T = student_TV.scatter(-1, ids_TK, -math.inf).logsumexp(-1)
        if wrong == "tail_is_no_log":
            tail_T = tail_T.exp()
        if wrong == "first_columns":
            kept_TK = logq_TV[:, :K]
        logp = torch.cat([logp_TK, tail_T[:, None]], -1)
        logq = torch.cat([kept_TK, rest_T[:, None]], -1)
        if wrong == "reversed":
            logp, logq = logq, logp
        each = torch.where(logp == -math.inf, 0.0, logp.exp() * (logp - logq))
        if wrong == "nan":
            each = logp.exp() * (logp - logq)
        if wrong == "cross_entropy":
            each = -logp.exp() * logq
        if wrong in ("tail_dropped", "both_rescaled"):
            each = each[:, :-1]
        if wrong == "tail_alone":
            each = each[:, -1:]
        found = each.mean(-1) if wrong == "mean" else each.sum(-1)
        return found.mean() if wrong == "one_number" else found
