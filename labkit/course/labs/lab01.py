"""Lab 01: from a linear layer to a decision. Its exercises and the words that help.

What they are tested on lies in `_01_cases`, the mistakes that their checks know in `_01_words` and `_01_mistakes`.
"""

from __future__ import annotations

import torch

from labkit.course.exercise import Exercise, Oracle
from labkit.course.labs import Lab
from labkit.course.labs import _01_cases as right
from labkit.course.labs import _01_oracles as theirs
from labkit.course.labs import _01_words as words
from labkit.course.labs._01_recap import QUESTIONS

# ------------------------------------------------------------------------------------------------------------ scores

SCORES = Exercise(
    id="01.scores",
    title="Logits to scores, three families",
    difficulty=1,
    minutes=10,
    points=2,
    reference=right.scores,
    cases=right.scores_cases,
    hints=(
        "What must sum to one, and over which dimension? Only one of the three families makes experts compete.",
        "Widen to float32 before any exponential. torch has softmax, sigmoid and softplus in forms that do not "
        "overflow; the third family is the square root of softplus.",
        "logits = logits.float(), then one branch per name: softmax(dim=-1); sigmoid(); F.softplus(logits).sqrt(); and "
        "a final `raise ValueError(...)` for any other name.",
    ),
    mistakes=words.SCORES,
    oracle=Oracle(
        "transformers' OLMoE, DeepSeek-V3 and DeepSeek-V4 scores",
        theirs.all_scores,
        fits=lambda case: theirs.knows(*case.args[1:] or ("softmax",)),
    ),
)

# ------------------------------------------------------------------------------------------------------------- top_k

TOP_K = Exercise(
    id="01.top_k",
    title="Each token's K experts, best first",
    difficulty=1,
    minutes=5,
    points=1,
    reference=right.top_k,
    cases=right.top_k_cases,
    hints=(
        "torch has this. Read what it returns, and in which order, before you unpack it.",
        "torch.topk works along the last dimension by default, for any number of leading dimensions, sorted.",
        "values, indices = scores.topk(k, dim=-1); the exercise asks for the indices first.",
    ),
    mistakes=words.TOP_K,
    oracle=Oracle("transformers' OLMoE router", theirs.top_k, fits=lambda case: case.args[0].dtype == torch.float32),
)

# ------------------------------------------------------------------------------------------------------- renormalise

RENORMALISE = Exercise(
    id="01.renormalise",
    title="Weights that sum to one, if asked",
    difficulty=2,
    minutes=10,
    points=2,
    reference=right.renormalise,
    cases=right.renormalise_cases,
    hints=(
        "Divide each token's K scores by their own sum. What if that sum is zero?",
        "keepdim=True makes the division line up for any leading shape. The scale is applied last, and in both "
        "settings.",
        "if norm_topk: topk_scores = topk_scores / (topk_scores.sum(-1, keepdim=True) + 1e-20); then multiply by "
        "route_scale.",
    ),
    mistakes=words.RENORMALISE,
    oracle=Oracle(
        "transformers' DeepSeek-V3 router",
        theirs.renormalise,
        fits=lambda case: "zero" not in case.label and "K = 1" not in case.label,
    ),
)

# -------------------------------------------------------------------------------------------------- select_with_bias

SELECT_WITH_BIAS = Exercise(
    id="01.select_with_bias",
    title="A bias that moves the choice, never the weight",
    difficulty=2,
    minutes=10,
    points=2,
    reference=right.select_with_bias,
    cases=right.select_cases,
    hints=(
        "Two different numbers play two different roles here: one ranks experts, the other weighs their outputs.",
        "Rank by scores + bias_E, and keep only the indices. Then look the weights up somewhere else.",
        "ids = (scores + bias_E).topk(k, dim=-1).indices; the second result is scores.gather(-1, ids).",
    ),
    mistakes=words.SELECT_WITH_BIAS,
    oracle=Oracle("transformers' DeepSeek-V3 router", theirs.select_with_bias),
)

# ---------------------------------------------------------------------------------------------------- k_one_gradient

K_ONE_GRADIENT = Exercise(
    id="01.k_one_gradient",
    title="The K = 1 trap: what reaches the router",
    difficulty=3,
    minutes=15,
    points=3,
    reference=right.k_one_gradient,
    cases=right.k_one_cases,
    hints=(
        "Write the forward pass for K = 1 first: one weight for each token times that expert's output, then the mean "
        "squared error. Then ask autograd for the gradient of the loss with respect to the logits.",
        "The logits must ask for a gradient (`.detach().requires_grad_(True)`), and the weight must stay in the graph: "
        "no .detach(), no .item(), no no_grad between logits and loss.",
        "p, ids = logits_TE.softmax(-1).topk(1); weight = p / p.sum(-1, keepdim=True) if norm_topk else p; loss = "
        "((weight * outputs_TED[arange(T), ids[:, 0]] - target_TD) ** 2).mean(); torch.autograd.grad(loss, "
        "logits_TE)[0].",
    ),
    mistakes=words.K_ONE_GRADIENT,
    oracle=Oracle("the gradient through transformers' Qwen3-MoE router", theirs.k_one_gradient),
)

LAB = Lab(
    number="01",
    name="router",
    title="The router: from a linear layer to a decision",
    minutes=75,
    hardware="any CPU; a GPU makes the timing experiment real",
    claims=(),
    exercises=(SCORES, TOP_K, RENORMALISE, SELECT_WITH_BIAS, K_ONE_GRADIENT),
    questions=QUESTIONS,
)
