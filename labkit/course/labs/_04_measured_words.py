"""Lab 04: the mistakes in measuring that its checks know, and the words for each."""

from __future__ import annotations

import torch

from labkit.course.judge import Failure, Mistake
from labkit.course.labs import _04_measured as wrong


def _logarithm_of_another_base(failure: Failure) -> bool:
    return any(torch.allclose(base**failure.got, failure.expected, atol=1e-4) for base in (2.0, 10.0))


LIFT = (
    Mistake(
        "unused_is_nan",
        "An expert that nobody chose gives 0/0 = NaN. It shows no preference, so its lift is 1.",
        like=wrong.lift_unused_is_nan,
    ),
    Mistake(
        "unused_is_zero",
        "An expert that nobody chose got lift 0, which reads as 'avoided by every domain'. It shows no preference: 1.",
        like=wrong.lift_unused_is_zero,
    ),
    Mistake(
        "over_uniform",
        "P(e | d) was compared with 1/E, an even load. A busy expert is then 'special' to every domain at once. "
        "Compare with how often *all* tokens choose it, P(e).",
        like=wrong.lift_over_uniform,
    ),
    Mistake(
        "share_only",
        "This is P(e | d) alone. It says how busy the expert is in the domain, not whether that is more than "
        "elsewhere. Divide by P(e).",
        like=wrong.lift_share_only,
    ),
    Mistake(
        "of_the_domain",
        "This is P(d | e), whose tokens the expert gets. A domain with many tokens is then everybody's speciality. "
        "Lift compares P(e | d) with P(e).",
        like=wrong.lift_of_the_domain,
    ),
    Mistake(
        "mean_of_domains",
        "P(e) was taken as the mean over domains, so a domain of ten tokens counts as much as one of ten thousand. "
        "Count over all choices.",
        like=wrong.lift_mean_of_domains,
    ),
    Mistake(
        "joint",
        "The numerator is P(d, e) times the number of domains, which is P(e | d) only if all domains are equally "
        "large. Divide each row by its own sum.",
        like=wrong.lift_joint,
    ),
    Mistake(
        "logarithm",
        "This is the logarithm of the lift; the exercise wants the ratio.",
        like=wrong.lift_logarithm,
        when=_logarithm_of_another_base,
    ),
    Mistake(
        "lost_choices",
        "`counts[domain, ids] += 1` adds once for each *different* pair of indices and forgets the rest. Where indices "
        "repeat, use index_add, `index_put(…, accumulate=True)` or bincount.",
        like=wrong.lift_lost_choices,
    ),
    Mistake(
        "tokens_above",
        "All lifts are K times too high: P(e | d) was counted over the domain's tokens and P(e) over choices. Each "
        "token makes K choices; count both over choices.",
        like=wrong.lift_tokens_above,
    ),
    Mistake(
        "tokens_below",
        "All lifts are K times too low: P(e | d) was counted over choices and P(e) over tokens. Each token makes K "
        "choices; count both over choices.",
        like=wrong.lift_tokens_below,
    ),
    Mistake(
        "normalised_by_expert",
        "The numerator is P(d | e): columns were divided by their sums. P(e | d) is a share of the *domain's* choices, "
        "so divide each row by its sum.",
        like=wrong.lift_of_the_domain_over_expert,
    ),
    Mistake(
        "over_domain",
        "P(e | d) was divided by P(d), the size of the domain. Divide by P(e): how often the expert is chosen by all.",
        like=wrong.lift_over_domain,
    ),
    Mistake(
        "against_the_rest",
        "The domain was compared with all *other* domains. Lift compares it with all tokens, its own included; "
        "otherwise an expert of one domain alone gets infinity, and one domain has nothing to be compared with.",
        like=wrong.lift_against_the_rest,
    ),
    Mistake(
        "empty_cell_is_one",
        "A lift of 0 became 1. A domain that never chooses an expert which others do choose avoids it: 0. Only an "
        "expert that *nobody* chose gets 1.",
        like=wrong.lift_empty_cell_is_one,
    ),
    Mistake("transposed", "Right numbers, but rows are domains and columns experts.", like=wrong.lift_transposed),
    Mistake(
        "favourite_only",
        "Only each token's first expert was counted. All K choices count.",
        like=wrong.lift_favourite_only,
    ),
)

ABLATION = (
    Mistake(
        "backwards_with_nan",
        "Two things at once. The sign is wrong: positive should mean that the loss is higher *without* the part. And "
        "where the last token of a sequence has no loss, one NaN makes a whole domain NaN.",
        like=wrong.ablation_backwards_with_nan,
    ),
    Mistake(
        "nan_spreads",
        "One NaN makes a whole domain NaN. The last token of a sequence has no next token and no loss; leave it out.",
        like=wrong.ablation_nan_spreads,
    ),
    Mistake(
        "nan_is_zero",
        "NaN was replaced by 0 and still counted in the mean, so every rise comes out too small. Leave those tokens "
        "out of the sum and of the count.",
        like=wrong.ablation_nan_is_zero,
    ),
    Mistake(
        "backwards",
        "The sign is wrong: a positive number should mean that the loss is higher *without* the expert.",
        like=wrong.ablation_backwards,
    ),
    Mistake("summed", "These are sums over a domain's tokens; the exercise wants means.", like=wrong.ablation_summed),
    Mistake(
        "over_all_tokens",
        "Each domain's sum was divided by the tokens of all domains. Divide by its own.",
        like=wrong.ablation_over_all_tokens,
    ),
    Mistake(
        "over_every_token",
        "Each domain's sum was divided by the number of all tokens, those of other domains and those without a loss "
        "included. Divide by its own tokens with a loss.",
        like=wrong.ablation_over_every_token,
    ),
    Mistake(
        "one_number",
        "All domains got the overall mean. What matters here is *where* the loss rises.",
        like=wrong.ablation_one_number,
    ),
    Mistake(
        "relative",
        "This is the rise relative to the loss. The exercise wants nats: domains with a low loss would look worst hit.",
        like=wrong.ablation_relative,
    ),
    Mistake(
        "absolute",
        "The absolute value was averaged. Tokens that are better off without the expert must count against the others: "
        "noise would look like harm.",
        like=wrong.ablation_absolute,
    ),
    Mistake(
        "relative_by_token",
        "Each token's rise was divided by its loss. The exercise wants nats: a token that was certain, with a loss "
        "near zero, would outweigh all others.",
        like=wrong.ablation_relative_by_token,
    ),
    Mistake(
        "harm_only",
        "Negative rises were cut off at 0. Tokens that are better off without the part must count against the others: "
        "noise would look like harm.",
        like=wrong.ablation_harm_only,
    ),
)
