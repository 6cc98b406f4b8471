"""Lab 03: the mended step, the inputs that each of the six faults shows on, and the faults themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.attempt import Case
from labkit.course.judge import Mistake
from labkit.course.labs._03_cases import keep, normal

Step = tuple[Tensor, Tensor, Tensor]


def mend(
    logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor, mask_T: Tensor, bias_E: Tensor, k: int, capacity: int,
    alpha: float,
) -> Step:  # fmt: skip
    T, E = logits_TE.shape
    logits_TE = logits_TE.detach().requires_grad_(True)
    scores_TE = logits_TE.softmax(dim=-1)
    ids_TK = (scores_TE + bias_E).topk(k, dim=-1).indices
    weights_TK = scores_TE.gather(1, ids_TK)
    if k > 1:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    weights_TK = weights_TK * keep(ids_TK, weights_TK, capacity, "score")
    y_TD = (weights_TK[..., None] * outputs_TED[torch.arange(T)[:, None], ids_TK]).sum(dim=1)
    choices_TE = F.one_hot(ids_TK, E).sum(dim=1).float()
    balance = E * (choices_TE[mask_T].mean(dim=0) * scores_TE[mask_T].mean(dim=0)).sum()
    loss = ((y_TD - target_TD)[mask_T] ** 2).mean() + alpha * balance
    return y_TD.detach(), loss.detach(), torch.autograd.grad(loss, logits_TE)[0]


def mend_cases(seed: int) -> list[Case]:
    """One case for each fault, alone, and some where they meet (but never padding with a full expert)."""

    def case(at: int, T: int, E: int, k: int, label: str, *, real=None, bias=0.0, capacity=None, alpha=0.0) -> Case:
        D, base = 3, seed + 10 * at
        mask_T = torch.arange(T) < (T if real is None else real)
        logits_TE = normal(base, T, E, scale=1.5)
        logits_TE[~mask_T] = torch.linspace(4.0, 0.0, E)  # padding looks alike
        bias_E = bias * torch.linspace(-1.0, 1.0, E)
        tensors = (logits_TE, normal(base + 1, T, E, D, scale=2.0), normal(base + 2, T, D), mask_T, bias_E)
        return Case((*tensors, k, T if capacity is None else capacity, alpha), label=label)

    return [
        case(0, 2, 3, 2, "two tokens, K = 2, nothing else"),
        case(1, 6, 4, 2, "K = 2"),
        case(2, 6, 4, 1, "K = 1: the weight is the score"),
        case(3, 7, 4, 2, "a selection bias", bias=0.4),
        case(4, 7, 4, 1, "a selection bias, K = 1", bias=0.4),
        case(5, 9, 3, 2, "room for three tokens an expert", capacity=3),
        case(6, 6, 4, 2, "a balance loss", alpha=0.5),
        case(7, 11, 4, 2, "a balance loss, five tokens are padding", alpha=0.5, real=6),
        case(8, 9, 4, 2, "three tokens are padding, no balance loss", real=6),
        case(9, 12, 5, 2, "bias, little room and a balance loss", bias=0.2, capacity=4, alpha=0.3),
        case(11, 13, 4, 1, "K = 1, bias, padding and a balance loss", bias=0.2, alpha=0.3, real=8),
    ]


@dataclass(frozen=True)
class _Faults:
    """Which lines of the step are wrong. Called as the exercise is."""

    double_softmax: bool = False
    balance: str = "added"  # or "dropped", "detached", "padded", "what is left", "without alpha"
    renormalise: str = "above one"  # or "always", "never"
    bias: str = "choice"  # or "leaks", "ignored", "on logits", "inside softmax"
    capacity: str = "score"  # or "position", "ignored", "scaled up", "undivided"
    task: str = "real tokens"  # or "padding too", "divided by all", "summed over D"
    weights_detached: bool = False
    padding_blanked: bool = False

    def __call__(
        self, logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor, mask_T: Tensor, bias_E: Tensor, k: int,
        capacity: int, alpha: float,
    ) -> Step:  # fmt: skip
        T, E = logits_TE.shape
        logits_TE = logits_TE.detach().requires_grad_(True)
        scores_TE, biased_TE = self._scores(logits_TE, bias_E)
        ids_TK = biased_TE.topk(k, dim=-1).indices
        full_TK = self._weigh(scores_TE, biased_TE, ids_TK)
        weights_TK = self._kept(ids_TK, full_TK, scores_TE.gather(1, ids_TK), capacity)
        y_TD = (weights_TK[..., None] * outputs_TED[torch.arange(T)[:, None], ids_TK]).sum(dim=1)
        left_TK = keep(ids_TK, full_TK, capacity, "score") if self.balance == "what is left" else ids_TK >= 0
        choices_TE = (F.one_hot(ids_TK, E) * left_TK[..., None]).sum(dim=1).float()
        balance = self._balance(logits_TE.softmax(dim=-1), choices_TE, mask_T)
        loss = self._task(y_TD, target_TD, mask_T) + (1.0 if self.balance == "without alpha" else alpha) * balance
        shown_TD = y_TD * mask_T[:, None] if self.padding_blanked else y_TD
        return shown_TD.detach(), loss.detach(), torch.autograd.grad(loss, logits_TE)[0]

    def _scores(self, logits_TE: Tensor, bias_E: Tensor) -> tuple[Tensor, Tensor]:
        """The scores that the weights are read from, and what the choice is made by."""
        scores_TE = logits_TE.softmax(dim=-1)
        if self.bias == "ignored":
            return scores_TE, scores_TE
        if self.bias == "on logits":
            return scores_TE, logits_TE + bias_E
        if self.bias == "inside softmax":
            return ((logits_TE + bias_E).softmax(dim=-1),) * 2
        return scores_TE, scores_TE + bias_E

    def _weigh(self, scores_TE: Tensor, biased_TE: Tensor, ids_TK: Tensor) -> Tensor:
        weights_TK = (biased_TE if self.bias == "leaks" else scores_TE).gather(1, ids_TK)
        if self.double_softmax:
            return weights_TK.softmax(dim=-1) if ids_TK.shape[1] > 1 else weights_TK
        if self.renormalise == "always" or (self.renormalise == "above one" and ids_TK.shape[1] > 1):
            weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
        return weights_TK.detach() if self.weights_detached else weights_TK

    def _kept(self, ids_TK: Tensor, weights_TK: Tensor, scores_TK: Tensor, capacity: int) -> Tensor:
        if self.capacity == "ignored":
            return weights_TK
        ranks_TK = scores_TK if self.capacity == "undivided" else weights_TK
        kept_TK = weights_TK * keep(ids_TK, ranks_TK, capacity, "position" if self.capacity == "position" else "score")
        if self.capacity == "scaled up":
            total_T1 = kept_TK.sum(dim=-1, keepdim=True)
            return kept_TK * weights_TK.sum(dim=-1, keepdim=True) / torch.where(total_T1 > 0, total_T1, 1.0)
        return kept_TK

    def _task(self, y_TD: Tensor, target_TD: Tensor, mask_T: Tensor) -> Tensor:
        error_TD = (y_TD - target_TD) ** 2
        if self.task == "padding too":
            return error_TD.mean()
        if self.task == "divided by all":
            return (error_TD * mask_T[:, None]).mean()
        return error_TD[mask_T].sum(dim=-1).mean() if self.task == "summed over D" else error_TD[mask_T].mean()

    def _balance(self, scores_TE: Tensor, choices_TE: Tensor, mask_T: Tensor) -> Tensor:
        if self.balance == "padded":
            mask_T = torch.ones_like(mask_T)
        value = scores_TE.shape[1] * (choices_TE[mask_T].mean(dim=0) * scores_TE[mask_T].mean(dim=0)).sum()
        return {"detached": value.detach(), "dropped": 0.0 * value.detach()}.get(self.balance, value)


MISTAKES = (
    Mistake(
        "double_softmax",
        "Patient B: the K scores went through a second softmax. They are probabilities already, all between 0 and "
        "1, so the second one makes them nearly equal: with K = 2 no expert ever gets more than e/(1 + e), 73% of a "
        "token. Divide by their sum instead.",
        like=_Faults(double_softmax=True),
    ),
    Mistake(
        "balance_loss_dropped",
        "Patient D: the balance loss never reaches the loss that is returned, so alpha is a knob that turns nothing.",
        like=_Faults(balance="dropped"),
    ),
    Mistake(
        "balance_loss_detached",
        "Patient D in disguise: the number is in the loss, but its gradient is not: somewhere between the scores and "
        "the sum the balance loss left autograd (detach, item, no_grad). A log would look right, and nothing balances.",
        like=_Faults(balance="detached"),
    ),
    Mistake(
        "renormalised_k_one",
        "Patient E: with K = 1 a score divided by itself is 1, and so is a softmax over one logit, whatever the router "
        "says; from the task no gradient comes back. With one expert a token the weight has to be the score itself.",
        like=_Faults(renormalise="always"),
    ),
    Mistake(
        "bias_leaks",
        "Patient F: the bias is in the weights. It may move the choice and nothing else; read the weights of the "
        "chosen experts from the scores without it.",
        like=_Faults(bias="leaks"),
    ),
    Mistake(
        "drops_by_position",
        "Patient C: the experts take whoever comes first in the batch. Here the lowest weights must go, wherever they "
        "stand.",
        like=_Faults(capacity="position"),
    ),
    Mistake(
        "padding_counts",
        "Patient A: padding votes in the balance loss. Both factors, the share of the choices and the mean "
        "probability, are taken over real tokens.",
        like=_Faults(balance="padded"),
    ),
    Mistake(
        "never_renormalised",
        "With K = 2 the two weights of a token do not sum to one. Only K = 1 goes without the division.",
        like=_Faults(renormalise="never"),
    ),
    Mistake("bias_ignored", "`bias_E` does not move the choice at all.", like=_Faults(bias="ignored")),
    Mistake("capacity_ignored", "No expert is ever full: `capacity` is not read.", like=_Faults(capacity="ignored")),
    Mistake(
        "dropped_weight_returned",
        "After dropping, the weights were divided again, so that a token's other expert takes over the share that was "
        "lost. Here a dropped pair gets weight zero and the others keep theirs.",
        like=_Faults(capacity="scaled up"),
    ),
    Mistake(
        "task_over_padding",
        "The balance loss is right, but the squared error is averaged over padding too. Nobody cares what a model "
        "answers to padding.",
        like=_Faults(task="padding too"),
    ),
    Mistake(
        "task_over_all_tokens",
        "The squared error of padding was left out of the sum, but the mean still divides by all T tokens.",
        like=_Faults(task="divided by all"),
    ),
    Mistake(
        "summed_over_d",
        "The squared errors of a token were added up. The mean is over real tokens and over D.",
        like=_Faults(task="summed over D"),
    ),
    Mistake(
        "bias_on_logits",
        "The bias was added to the logits for the choice. It is added to the scores, so after the softmax: 0.1 on a "
        "logit and 0.1 on a probability are not the same push.",
        like=_Faults(bias="on logits"),
    ),
    Mistake(
        "bias_inside_softmax",
        "Patient F by another door: the bias went into the logits before the softmax, so it is in every score and in "
        "every weight. Add it to the scores, for the choice alone.",
        like=_Faults(bias="inside softmax"),
    ),
    Mistake(
        "ranked_before_division",
        "Who is dropped was decided by the scores before they were divided by their sum. The weights are renormalised "
        "first, and the lowest *weights* go.",
        like=_Faults(capacity="undivided"),
    ),
    Mistake(
        "weights_detached",
        "The weights left autograd (detach, no_grad, or a value read out), so the task does not move the router.",
        like=_Faults(weights_detached=True),
    ),
    Mistake(
        "balance_after_dropping",
        "The balance loss counts only the choices that found a place. An overfull expert then never looks busier than "
        "its capacity. Count before dropping.",
        like=_Faults(balance="what is left"),
    ),
    Mistake(
        "alpha_unread",
        "The balance loss came in with weight 1: `alpha` is not read.",
        like=_Faults(balance="without alpha"),
    ),
    Mistake(
        "padding_blanked",
        "The loss is right, but the output for padding was set to zero. The layer answers for all tokens; only the "
        "losses leave padding out.",
        like=_Faults(padding_blanked=True),
    ),
)
