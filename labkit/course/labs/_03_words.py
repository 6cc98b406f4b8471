"""Lab 03: the mistakes that the checks of its losses and its bias know, and the words for each.

Those of `keep` and `expert_choice` are in `_03_places`, those of `mend` in `_03_mend`.
"""

from __future__ import annotations

from labkit.course.judge import Failure, Mistake
from labkit.course.labs import _03_mistakes as wrong


def _overflows(failure: Failure) -> bool:
    unmasked = len(failure.case.args) == 1
    return bool(unmasked and failure.expected.isfinite().all() and not failure.got.isfinite().all())


AUX_LOSS = (
    Mistake(
        "padding_counts",
        "Padding votes. All padding looks alike, so it crowds onto few experts, and the loss then pushes real text "
        "away from them. Take both means over the tokens of the mask.",
        like=wrong.aux_padding,
    ),
    Mistake(
        "padding_in_the_choices",
        "P is a mean over real tokens, but f still counts where padding went.",
        like=wrong.aux_padding_in_choices,
    ),
    Mistake(
        "padding_in_the_probabilities",
        "f counts real tokens, but P is still a mean over padding too.",
        like=wrong.aux_padding_in_probabilities,
    ),
    Mistake(
        "divides_by_all_tokens",
        "Padding was taken out of the sums, but they are divided by all T tokens: the more padding, the weaker the "
        "loss. Divide by the number of real ones.",
        like=wrong.aux_divides_by_all,
    ),
    Mistake(
        "choices_over_all_tokens",
        "P is a mean over real tokens, but the count in f is divided by all T: the more padding, the weaker the loss.",
        like=wrong.aux_choices_over_all,
    ),
    Mistake(
        "mask_inverted",
        "The mask is the wrong way round: only padding was counted. True stands for a real token.",
        like=wrong.aux_inverted,
    ),
    Mistake(
        "padding_is_zero",
        "The logits of padding were set to zero. A softmax makes equal probabilities of them, so padding still votes, "
        "for everyone. Leave the rows out, after the softmax or before.",
        like=wrong.aux_padding_zeroed,
    ),
    Mistake(
        "padding_is_minus_infinity",
        "The logits of padding were set to −inf. A softmax over a row of −inf is NaN; that trick hides some experts of "
        "a token, not a whole token. Leave its row out.",
        like=wrong.aux_minus_infinity,
    ),
    Mistake(
        "no_factor",
        "The factor E is missing, or a mean over the experts stands where the sum should (it divides by E again). With "
        "it, an even load gives K whatever E is.",
        like=wrong.aux_no_factor,
    ),
    Mistake(
        "share_of_choices",
        "f was divided by T·K, so it sums to one. Here f is the share of tokens that chose an expert and sums to K, as "
        "transformers counts; yours is K times smaller.",
        like=wrong.aux_share_of_choices,
    ),
    Mistake(
        "choices_squared",
        "Both factors count choices. A count has no slope, so no gradient would reach the router: one of the two "
        "has to be the mean probability.",
        like=wrong.aux_choices_squared,
    ),
    Mistake(
        "probabilities_squared",
        "Both factors are mean probabilities. Those can be even while the choices are not: f counts `topk_ids_TK`.",
        like=wrong.aux_probabilities_squared,
    ),
    Mistake(
        "only_chosen_probabilities",
        "P sums the probability of an expert only where it was chosen. It is the mean over all real tokens, whatever "
        "they chose.",
        like=wrong.aux_chosen_probabilities,
    ),
    Mistake(
        "renormalised_probabilities",
        "P is made of the weights: the probabilities of the K chosen experts, divided by their sum. It is the mean of "
        "the softmax over all E.",
        like=wrong.aux_renormalised,
    ),
    Mistake(
        "token_by_token",
        "f and P were multiplied token by token and then averaged. Average each over the tokens first: a mean of "
        "products is not the product of the means, and one token's choice says nothing about the load.",
        like=wrong.aux_token_by_token,
    ),
    Mistake(
        "sum_over_tokens",
        "One of the two is a sum over tokens where a mean should be, so the loss grows with the batch.",
        like=wrong.aux_summed,
    ),
    Mistake(
        "experts_left_out",
        "The counting does not know how many experts there are: where nobody chose the last ones, f is too short. "
        "F.one_hot takes E as its second argument, bincount as `minlength`.",
        like=wrong.aux_experts_left_out,
    ),
    Mistake(
        "first_choice_only",
        "Only each token's first choice is counted. GShard does that; here all K choices count.",
        like=wrong.aux_first_choices,
    ),
    Mistake(
        "chooses_again",
        "The choice was made again from the logits. A router with a bias chooses otherwise; count `topk_ids_TK`, what "
        "really happened.",
        like=wrong.aux_chooses_again,
    ),
    Mistake(
        "softmax_over_tokens",
        "The softmax ran down the tokens. Each token's probabilities are over the experts.",
        like=wrong.aux_over_tokens,
    ),
    Mistake(
        "raw_logits",
        "P is a mean of logits. They are no probabilities: they can be negative, and a constant added to all of them "
        "would change the loss but no choice.",
        like=wrong.aux_raw_logits,
    ),
)

Z_LOSS = (
    Mistake("padding_counts", "Padding is in the mean: the mask is not read.", like=wrong.z_padding),
    Mistake(
        "divides_by_all_tokens",
        "Padding adds nothing to the sum, but the mean still divides by all T tokens. Divide by the number of real "
        "ones.",
        like=wrong.z_divides_by_all,
    ),
    Mistake(
        "mask_inverted",
        "The mask is the wrong way round: only padding was counted. True stands for a real token.",
        like=wrong.z_inverted,
    ),
    Mistake(
        "padding_is_zero",
        "The logits of padding were set to zero, and log Σ exp of E zeros is ln E, not 0: padding is still in the "
        "mean. Leave its rows out.",
        like=wrong.z_padding_zeroed,
    ),
    Mistake(
        "padding_is_minus_infinity",
        "The logits of padding were set to −inf, and so is then their log Σ exp. Leave the rows out.",
        like=wrong.z_minus_infinity,
    ),
    Mistake(
        "overflows",
        "Right for small logits, infinite for big ones: float32's exponential overflows above 88, and those are the "
        "logits that this loss is there for. torch has a function for log Σ exp.",
        like=wrong.z_overflows,
        when=_overflows,
    ),
    Mistake(
        "not_squared",
        "The square is missing. Without it the loss would push log Σ exp below zero and on, without end.",
        like=wrong.z_not_squared,
    ),
    Mistake(
        "squared_after_the_mean",
        "The mean was squared, so tokens with high and with low logits cancel. Square each token's own, then average.",
        like=wrong.z_squared_mean,
    ),
    Mistake(
        "no_log",
        "The log is missing: that is the square of the softmax's denominator itself, which overflows long before the "
        "logits do.",
        like=wrong.z_no_log,
    ),
    Mistake(
        "maximum_lost",
        "The largest logit was subtracted, as one does for a stable softmax, and never added again. A softmax does not "
        "notice; here the height of the logits is the very thing that counts.",
        like=wrong.z_maximum_lost,
    ),
    Mistake(
        "squared_logits",
        "That is the sum of the squared logits. The z-loss squares one number a token, log Σ exp, the softmax's "
        "denominator.",
        like=wrong.z_squared_logits,
    ),
    Mistake(
        "mean_of_squared_logits",
        "That is the mean of the squared logits, weight decay's cousin. The z-loss squares one number a token, log Σ "
        "exp, the softmax's denominator.",
        like=wrong.z_mean_squared_logits,
    ),
    Mistake("over_tokens", "log Σ exp ran down the tokens. It is over the experts.", like=wrong.z_over_tokens),
    Mistake(
        "of_the_scores",
        "log Σ exp of the scores: a softmax came before it. Scores always sum to one, so nothing would hold the logits "
        "down.",
        like=wrong.z_of_scores,
    ),
    Mistake("summed", "The tokens were added up; the loss is their mean.", like=wrong.z_summed),
)

UPDATE_BIAS = (
    Mistake(
        "backwards",
        "The bias works for the busy experts: whoever has much gets more, and the router collapses faster than without "
        "it. Raise the bias of experts *below* the mean.",
        like=wrong.bias_backwards,
    ),
    Mistake(
        "proportional",
        "The step grows with the error, so it depends on the size of the batch: hundreds of tokens too many would move "
        "a bias by hundreds of rates, where a score is at most one. Take the sign.",
        like=wrong.bias_proportional,
    ),
    Mistake(
        "relative_error",
        "The step is the relative error. That does not depend on the batch, but here only the sign counts: every "
        "step has the size of the rate.",
        like=wrong.bias_relative,
    ),
    Mistake(
        "error_of_the_shares",
        "The step is the difference of two shares. That does not depend on the batch, but here only the sign counts: "
        "every step has the size of the rate.",
        like=wrong.bias_shares,
    ),
    Mistake("no_rate", "Every step has size 1: `rate` is not read.", like=wrong.bias_no_rate),
    Mistake(
        "never_rests",
        "An expert exactly at the mean was pushed down. The sign of zero is zero: it stays.",
        like=wrong.bias_no_rest,
    ),
    Mistake(
        "never_rests_upwards",
        "An expert exactly at the mean was pushed up. The sign of zero is zero: it stays.",
        like=wrong.bias_no_rest_upwards,
    ),
    Mistake(
        "rounded_mean",
        "The mean was rounded to a whole number, so an expert just below it counts as even. Divide with /, in float32.",
        like=wrong.bias_whole_mean,
    ),
    Mistake(
        "median",
        "Compared with the median, half of the experts are always too busy. The target is the mean, the even share.",
        like=wrong.bias_median,
    ),
    Mistake(
        "only_up",
        "Starving experts are raised, busy ones are never lowered. Balance may still come, but all biases drift up "
        "without end.",
        like=wrong.bias_only_up,
    ),
    Mistake(
        "only_down",
        "Busy experts are lowered, starving ones are never raised: all biases drift down without end.",
        like=wrong.bias_only_down,
    ),
    Mistake(
        "forgets",
        "The step alone came back, without the bias that it is added to: nothing adds up over training.",
        like=wrong.bias_step_alone,
    ),
    Mistake(
        "in_place",
        "The caller's own bias was changed. Return a new tensor; who wants to keep the old one can.",
        like=wrong.bias_in_place,
    ),
)
