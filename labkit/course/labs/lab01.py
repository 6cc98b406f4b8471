"""Lab 01: from a linear layer to a decision. Its exercises and the words that help.

What they are tested on lies in `_01_cases`, the mistaken implementations in `_01_mistakes`.
"""

from __future__ import annotations

import torch

from labkit.course.exercise import Exercise, Oracle
from labkit.course.judge import Failure, Mistake
from labkit.course.labs import Lab
from labkit.course.labs import _01_cases as right
from labkit.course.labs import _01_mistakes as wrong
from labkit.course.labs import _01_oracles as theirs
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
    mistakes=(
        Mistake(
            "sums_over_tokens",
            "Each column sums to one instead of each row: tokens compete for an expert, where experts should compete "
            "for a token. With dim=0 the answer also depends on who else is in the batch. Look at the dimension.",
            like=wrong.scores_over_tokens,
        ),
        Mistake(
            "overflows",
            "Right for small logits, NaN or infinity for big ones: float32's exponential overflows above 88. Softmax "
            "does not change when a constant is taken from a row; use that, or a function that does it for you.",
            like=wrong.scores_overflow,
        ),
        Mistake(
            "stays_in_bfloat16",
            "bfloat16 logits gave bfloat16 scores. Eight bits of precision cannot tell close experts apart; routers "
            "decide in float32 whatever the model computes in.",
            like=wrong.scores_stay,
            when=lambda failure: failure.got.dtype == torch.bfloat16,
        ),
        Mistake(
            "widens_too_late",
            "The result is float32, but it was computed in bfloat16 first: the lost digits do not come back. Widen the "
            "logits, not the scores.",
            like=wrong.scores_widen_late,
        ),
        Mistake(
            "normalised_sigmoid",
            "The sigmoids were divided by their sum. A sigmoid score stands alone: it does not know the other experts. "
            "Normalising comes after the choice, over the chosen K only.",
            like=wrong.scores_sigmoid_normalised,
        ),
        Mistake(
            "no_root",
            "The third family is the square root of softplus; yours grows like softplus itself, so a large logit "
            "counts in full instead of by its root.",
            like=wrong.scores_no_root,
        ),
        Mistake(
            "one_family",
            "Whatever name is asked for, softmax comes back. `score_fn` has to be read.",
            like=wrong.scores_softmax_only,
        ),
    ),
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
    mistakes=(
        Mistake(
            "values_first",
            "Right numbers, wrong order: torch.topk gives (values, indices), the exercise asks for (ids, scores). "
            "Scores used as indices crash at best.",
            like=wrong.top_k_values_first,
        ),
        Mistake(
            "worst_first",
            "The right experts, worst first. Everything later that reads column 0 as the favourite reads the "
            "runner-up.",
            like=wrong.top_k_worst_first,
        ),
        Mistake(
            "smallest",
            "These are the K lowest scores: the experts that the token likes least.",
            like=wrong.top_k_smallest,
        ),
        Mistake(
            "by_number",
            "The right experts in the order of their numbers. Best first, please: column 0 is the favourite.",
            like=wrong.top_k_by_number,
        ),
        Mistake(
            "over_tokens",
            "The choice ran down the columns: each expert picked its K tokens. That is expert choice (Zhou et al. "
            "2022), a different router; here each token picks its experts.",
            like=wrong.top_k_over_tokens,
        ),
        Mistake(
            "flattened",
            "Right for [T, E], but a batch of sequences lost its leading dimensions. They come back unchanged; only "
            "the last dimension goes from E to K.",
            like=wrong.top_k_flattened,
        ),
    ),
    oracle=Oracle("transformers' OLMoE router", theirs.top_k, fits=lambda case: case.args[0].dtype == torch.float32),
)

# ------------------------------------------------------------------------------------------------------- renormalise


def _epsilon_shows(failure: Failure) -> bool:
    small = failure.case.label == "tiny scores" and failure.got.shape == failure.expected.shape
    return small and bool((failure.got.sum(-1) < 0.9999).all())


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
    mistakes=(
        Mistake(
            "softmax_again",
            "A softmax over scores that are probabilities already sums to one as well, but it flattens them: 0.9 and "
            "0.1 become 0.69 and 0.31. Divide by the sum; that keeps the ratios.",
            like=wrong.renormalise_softmax,
        ),
        Mistake(
            "one_sum_for_all",
            "All tokens were divided by one common sum, so a token's weights depend on its neighbours. Sum over the K "
            "scores of each token.",
            like=wrong.renormalise_global,
        ),
        Mistake(
            "scale_cancels",
            "The scale was applied before the division, and the division takes it out again. Scale last.",
            like=wrong.renormalise_scale_first,
        ),
        Mistake(
            "scale_forgotten",
            "`route_scale` never reaches the result.",
            like=wrong.renormalise_no_scale,
        ),
        Mistake(
            "scale_only_when_normalised",
            "With norm_topk=False the scale is lost. DeepSeek-V2 does not renormalise and still scales.",
            like=wrong.renormalise_scale_inside,
        ),
        Mistake(
            "always_divides",
            "norm_topk=False still divided. Then the weights must stay what the score function gave: OLMoE and "
            "DeepSeek-V2 were trained so.",
            like=wrong.renormalise_always,
        ),
        Mistake(
            "zero_over_zero",
            "A token whose K scores have all underflowed gives 0/0 = NaN, and one NaN spreads through the whole model. "
            "Something very small belongs in the denominator.",
            like=wrong.renormalise_no_epsilon,
        ),
        Mistake(
            "epsilon_too_big",
            "Your guard against 0/0 is larger than the scores it protects, so tiny scores no longer sum to one. "
            "DeepSeek-V3 uses 1e-20, far below anything that float32 scores can reach in practice.",
            when=_epsilon_shows,
        ),
    ),
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
    mistakes=(
        Mistake(
            "biased_weights",
            "The choice is right, but the returned scores still hold the bias. Now the balancing knob changes what the "
            "model computes: every step of the balancer shifts the outputs (DeepSeek-V3, section 2.1.2: the bias is "
            "used for routing only). Where else could you read the chosen scores?",
            like=wrong.select_biased_weights,
        ),
        Mistake(
            "bias_in_place",
            "The bias was added into the caller's own tensor. The weights are biased, and so is everyone who still "
            "holds the scores: a second call would add it twice. Make a new tensor.",
            like=wrong.select_in_place,
        ),
        Mistake("bias_ignored", "`bias_E` does not move the choice at all.", like=wrong.select_ignores),
        Mistake(
            "bias_subtracted",
            "The bias works backwards: a positive one should make an expert more likely. DeepSeek-V3 raises it for "
            "experts that get too few tokens.",
            like=wrong.select_subtracts,
        ),
        Mistake(
            "bias_multiplies",
            "The bias multiplies the scores; it is added. A zero bias must change nothing, yours wipes the scores out.",
            like=wrong.select_multiplies,
        ),
        Mistake(
            "sorted_by_score",
            "The right experts and weights, but in the order of the unbiased scores. Column 0 is the expert that won "
            "the choice, and the choice was made with the bias.",
            like=wrong.select_sorts_by_score,
        ),
    ),
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
    mistakes=(
        Mistake(
            "always_zero",
            "The gradient is zero in both settings. With norm_topk=True it must be: a number divided by itself is 1 "
            "whatever the logits say. But without renormalisation the weight is the score, and the router can learn. "
            "Something cut the graph (detach, no_grad, item), or you took a softmax over the one chosen logit.",
            like=wrong.k_one_always_zero,
        ),
        Mistake(
            "never_renormalises",
            "A gradient flows even with norm_topk=True. Divide the chosen score by the sum of the K chosen ones; "
            "here that is itself.",
            like=wrong.k_one_never_renormalises,
        ),
        Mistake(
            "summed_loss",
            "The direction is right, the size is that of a summed error; the loss here is the mean over tokens and "
            "width.",
            like=wrong.k_one_sum,
        ),
        Mistake(
            "gradient_of_scores",
            "This is the gradient with respect to the scores. The router's linear layer makes logits, so the softmax "
            "lies in between: raising one logit lowers all the other scores.",
            like=wrong.k_one_scores,
        ),
        Mistake(
            "dense_mixture",
            "All experts' outputs were mixed. With K = 1 only the best expert's output exists; the others were never "
            "computed, which is the whole point of sparsity.",
            like=wrong.k_one_dense,
        ),
    ),
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
