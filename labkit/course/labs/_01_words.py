"""Lab 01: the mistakes that its checks know, and the words for each."""

from __future__ import annotations

import torch

from labkit.course.judge import Failure, Mistake
from labkit.course.labs import _01_mistakes as wrong


def _not_finite(failure: Failure) -> bool:
    return bool(failure.expected.isfinite().all() and not failure.got.isfinite().all())


def _epsilon_shows(failure: Failure) -> bool:
    """Whether one small number, added to every token's sum, explains what came."""
    topk_scores, *flag = failure.case.args
    lit_T = topk_scores.sum(-1) > 0
    if not all(flag[:1]) or failure.got.shape != failure.expected.shape:
        return False
    ratio_T = (failure.got.sum(-1) / failure.expected.sum(-1))[lit_T]
    epsilon_T = topk_scores.sum(-1)[lit_T] * (1 / ratio_T - 1)
    even = torch.isclose(failure.got, failure.expected * (failure.got.sum(-1) / failure.expected.sum(-1))[..., None])
    return bool(even[lit_T].all() and epsilon_T.min() > 0 and epsilon_T.max() < min(0.1, 2 * epsilon_T.min().item()))


SCORES = (
    Mistake(
        "sums_over_tokens",
        "Each column sums to one instead of each row: tokens compete for an expert, where experts should compete "
        "for a token. With dim=0 the answer also depends on who else is in the batch. Look at the dimension.",
        like=wrong.scores_over_tokens,
    ),
    Mistake(
        "softplus_overflows",
        "The softplus is right for small logits, infinite for big ones: float32's exponential overflows above 88, "
        "and the logarithm comes too late. Far to the right ln(1 + e^h) is h itself; torch has a function that "
        "knows.",
        like=wrong.scores_softplus_overflow,
        when=lambda failure: failure.case.args[1:] == ("sqrtsoftplus",) and _not_finite(failure),
    ),
    Mistake(
        "overflows",
        "Right for small logits, NaN or infinity for big ones: float32's exponential "
        "overflows above 88. Softmax does not change when a constant is taken from a row; sigmoid and softplus can "
        "be written without a big exponential. torch has a function for each.",
        like=wrong.scores_overflow,
        when=_not_finite,
    ),
    Mistake(
        "softmax_overflows",
        "The softmax is right for small logits, NaN for big ones: float32's exponential overflows above 88. "
        "Softmax does not change when a constant is taken from a row; use that, or a function that does it for "
        "you.",
        like=wrong.scores_softmax_overflow,
    ),
    Mistake(
        "common_maximum",
        "One maximum was taken from all tokens. A token whose logits lie far below it is left with exponentials "
        "that are all zero, and 0/0 is NaN. Each token needs a maximum of its own.",
        like=wrong.scores_common_maximum,
    ),
    Mistake(
        "second_dimension",
        "Right for [T, E], where dim=1 is the experts. In a batch of sequences it is the sequence, and tokens "
        "compete with their neighbours. Count the dimension from the end.",
        like=wrong.scores_second_dimension,
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
)

TOP_K = (
    Mistake(
        "values_first",
        "Right numbers, wrong order: torch.topk gives (values, indices), the exercise asks for (ids, scores). "
        "Scores used as indices crash at best.",
        like=wrong.top_k_values_first,
    ),
    Mistake(
        "worst_first",
        "The right experts, worst first. Everything later that reads column 0 as the favourite reads the runner-up.",
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
        "second_dimension",
        "Right for [T, E], where dim=1 is the experts. In a batch of sequences it is the sequence: each expert "
        "picked among neighbouring tokens. Count the dimension from the end.",
        like=wrong.top_k_second_dimension,
    ),
    Mistake(
        "slices_second_dimension",
        "Right for [T, E], but `[:, :k]` cuts the second dimension, and in a batch of sequences that is the "
        "sequence: all experts came back, for the first tokens only. `[..., :k]` cuts the last one.",
        like=wrong.top_k_slices_second,
    ),
    Mistake(
        "flattened",
        "Right for [T, E], but a batch of sequences lost its leading dimensions. They come back unchanged; only "
        "the last dimension goes from E to K.",
        like=wrong.top_k_flattened,
    ),
)

RENORMALISE = (
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
        "sums_over_tokens",
        "The sum ran down the tokens, so an expert's column sums to one. Each token's own K scores must: they are "
        "the last dimension.",
        like=wrong.renormalise_over_tokens,
    ),
    Mistake(
        "second_dimension",
        "Right for [T, K], where dim=1 is the K scores. In a batch of sequences it is the sequence. Count the "
        "dimension from the end.",
        like=wrong.renormalise_second_dimension,
    ),
    Mistake(
        "euclidean",
        "The squares of the weights sum to one, not the weights: that is the Euclidean norm, which "
        "`F.normalize` takes by default. Divide by the plain sum.",
        like=wrong.renormalise_euclidean,
    ),
    Mistake(
        "divided_by_the_largest",
        "The best expert always gets weight one, so the weights sum to more. Divide by the sum of the K scores.",
        like=wrong.renormalise_by_maximum,
    ),
    Mistake(
        "scale_cancels",
        "With norm_topk=True the scale has no effect: it is missing in that branch, or applied before the division, "
        "which takes it out.",
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
        "flag_inverted",
        "`norm_topk` works backwards: True left the scores as they were, and False divided.",
        like=wrong.renormalise_flag_inverted,
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
        "Your guard against 0/0 is not small beside the scores it protects, so small scores no longer sum to one. "
        "The code that transformers has for DeepSeek-V3 uses 1e-20.",
        when=_epsilon_shows,
    ),
)

SELECT_WITH_BIAS = (
    Mistake(
        "scores_first",
        "Right numbers, wrong order: the exercise asks for (ids, scores), as in `top_k`.",
        like=wrong.select_scores_first,
    ),
    Mistake(
        "worst_first",
        "The right experts and weights, worst first. Column 0 is the expert whose biased score is highest.",
        like=wrong.select_worst_first,
    ),
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
)

K_ONE_GRADIENT = (
    Mistake(
        "always_zero",
        "The gradient is zero in both settings. With norm_topk=True it must be: a number divided by itself is 1 "
        "whatever the logits say. But without renormalisation the weight is the score, and the router can learn. "
        "Something cut the graph (detach, no_grad, item), or you took a softmax over the one chosen logit.",
        like=wrong.k_one_always_zero,
    ),
    Mistake(
        "flag_inverted",
        "`norm_topk` works backwards: the gradient vanishes without renormalisation and flows with it. Which of "
        "the two divides a number by itself?",
        like=wrong.k_one_flag_inverted,
    ),
    Mistake(
        "wrong_sign",
        "The size is right, the sign is not. The error is prediction minus target, and a positive gradient means "
        "that the loss grows with the logit.",
        like=wrong.k_one_wrong_sign,
    ),
    Mistake(
        "half",
        "Everything is half as large as it should be: the derivative of a square has a factor 2.",
        like=wrong.k_one_no_two,
    ),
    Mistake(
        "own_logit_only",
        "The chosen expert's column is right, the others are zero. Softmax couples the logits: raising another "
        "expert's logit lowers the chosen score, so every logit gets a gradient.",
        like=wrong.k_one_own_logit_only,
    ),
    Mistake(
        "never_renormalises",
        "A gradient flows even with norm_topk=True. Divide the chosen score by the sum of the K chosen ones; "
        "here that is itself.",
        like=wrong.k_one_never_renormalises,
    ),
    Mistake(
        "summed_loss",
        "The direction is right, the size is that of a summed error; the loss here is the mean over tokens and width.",
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
)
