"""Lab 03: keeping experts alive. Its exercises and the words that help.

What they are tested on lies in `_03_cases` and `_03_mend`, the mistakes that their checks know in `_03_words`,
`_03_mistakes`, `_03_places` and `_03_mend`; the six patients of the clinic are in `_03_clinic`, the questions about
them in `_03_diagnoses`.
"""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.labs import Lab, _03_mend, _03_places
from labkit.course.labs import _03_cases as right
from labkit.course.labs import _03_oracles as theirs
from labkit.course.labs import _03_words as words
from labkit.course.labs._03_recap import QUESTIONS

AUX_LOSS = Exercise(
    id="03.aux_loss",
    title="The auxiliary loss, without padding",
    difficulty=2,
    minutes=15,
    points=3,
    reference=right.aux_loss,
    cases=right.aux_cases,
    hints=(
        "Two vectors with one entry an expert: how often it was chosen, and how probable it was on average. Which "
        "of the two can carry a gradient?",
        "F.one_hot(topk_ids_TK, E).sum(1) is 1 where a token chose an expert. Take the rows of the mask from it and "
        "from the softmax, then a mean over tokens of each.",
        "choices_TE = F.one_hot(topk_ids_TK, E).sum(1).float(); probs_TE = logits_TE.softmax(-1); index both with "
        "mask_T unless it is None; E * (choices_TE.mean(0) * probs_TE.mean(0)).sum().",
    ),
    mistakes=words.AUX_LOSS,
    oracle=Oracle("transformers' load_balancing_loss_func", theirs.aux_loss, fits=theirs.chooses_alike),
)

Z_LOSS = Exercise(
    id="03.z_loss",
    title="The z-loss: hold the logits down",
    difficulty=1,
    minutes=5,
    points=1,
    reference=right.z_loss,
    cases=right.z_cases,
    hints=(
        "One number for each token, from all of its logits; then a square; then a mean.",
        "torch.logsumexp does not overflow. Square it token by token, before the mean.",
        "z_T = logits_TE.logsumexp(-1) ** 2; the mean of z_T, or of z_T[mask_T].",
    ),
    mistakes=words.Z_LOSS,
    oracle=Oracle("the z-loss of transformers' Switch model", theirs.z_loss),
)

UPDATE_BIAS = Exercise(
    id="03.update_bias",
    title="Balance without a loss: one step of the bias",
    difficulty=1,
    minutes=5,
    points=1,
    reference=right.update_bias,
    cases=right.bias_cases,
    hints=(
        "Who has fewer tokens than the mean goes up, who has more goes down, all by the same step.",
        "torch.sign gives −1, 0 or 1. The mean of whole numbers need not be one: widen the counts first.",
        "counts_E = tokens_per_expert_E.float(); bias_E + rate * torch.sign(counts_E.mean() - counts_E).",
    ),
    mistakes=words.UPDATE_BIAS,
)

KEEP = Exercise(
    id="03.keep",
    title="A full expert: who gets a place",
    difficulty=3,
    minutes=20,
    points=3,
    reference=right.keep,
    cases=right.keep_cases,
    hints=(
        "Put all pairs of token and expert into one queue, in the order in which they are seated. A pair is kept if "
        "few enough before it in the queue want the same expert.",
        "topk_ids_TK.T.flatten() has all first choices, then all second ones: the queue by position. By score, the "
        "same pairs are sorted by their weights. A running sum over F.one_hot of the queue counts who asked for "
        "what so far.",
        "queue_N = topk_ids_TK.T.flatten()[order_N]; place_N = F.one_hot(queue_N).cumsum(0).gather(1, queue_N[:, None])"
        "[:, 0]; kept_N[order_N] = place_N <= capacity; kept_N.view(K, T).T. By score, order_N is "
        "topk_scores_TK.T.flatten().argsort(descending=True, stable=True).",
    ),
    mistakes=_03_places.KEEP,
    oracle=Oracle("transformers' Switch router", theirs.keep, fits=theirs.one_expert_by_position),
)

EXPERT_CHOICE = Exercise(
    id="03.expert_choice",
    title="The experts choose their tokens",
    difficulty=1,
    minutes=5,
    points=1,
    reference=right.expert_choice,
    cases=right.expert_choice_cases,
    hints=(
        "The same matrix of scores, read by columns instead of rows.",
        "Transpose it, then topk along the last dimension: one row an expert.",
        "scores_EC, tokens_EC = scores_TE.T.topk(capacity, dim=-1); return tokens first.",
    ),
    mistakes=_03_places.EXPERT_CHOICE,
)

MEND = Exercise(
    id="03.mend",
    title="A step with none of the six faults",
    difficulty=3,
    minutes=30,
    points=5,
    reference=_03_mend.mend,
    cases=_03_mend.mend_cases,
    hints=(
        "Go through the patients one by one: B and E are about the weights, F about what the choice and the weights "
        "are read from, C about who is dropped, A and D about what is added to the loss.",
        "Choose by scores + bias, gather the weights from the scores alone, divide by their sum only if k > 1, "
        "multiply by keep(…, 'score'). The balance loss reads the softmax and the ids of real tokens, and is added, "
        "in the graph.",
        "logits_TE = logits_TE.detach().requires_grad_(True); …; y_TD = (weights_TK[..., None] * "
        "outputs_TED[torch.arange(T)[:, None], ids_TK]).sum(1); loss = ((y_TD - target_TD)[mask_T] ** 2).mean() + "
        "alpha * aux_loss(logits_TE, ids_TK, mask_T); torch.autograd.grad(loss, logits_TE)[0].",
    ),
    mistakes=_03_mend.MISTAKES,
)

LAB = Lab(
    number="03",
    name="balance",
    title="Balance: keeping experts alive",
    minutes=100,
    hardware="any CPU; a GPU makes the trainings longer and the differences clearer",
    claims=(2,),
    exercises=(AUX_LOSS, Z_LOSS, UPDATE_BIAS, KEEP, EXPERT_CHOICE, MEND),
    questions=QUESTIONS,
)
