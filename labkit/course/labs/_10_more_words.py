"""Lab 10: the mistakes in online softmax and in the flash kernel that their checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Failure, Mistake
from labkit.course.labs import _10_mistakes as wrong
from labkit.course.labs._10_mistakes import Absorb
from labkit.course.labs._kernel_mistakes import NO_KERNEL, With, beyond, far


def formats_differ(failure: Failure) -> bool:
    """Whether a product was asked for whose operands have two formats."""
    return "must be same dtype" in failure.outcome.error


def not_a_number(failure: Failure) -> bool:
    """Whether NaN came where none belongs."""
    parts = failure.got if isinstance(failure.got, tuple) else (failure.got,)
    return any(bool(part.isnan().any()) for part in parts)


ABSORB = (
    Mistake(
        "out_not_shrunk",
        "The sum shrinks when the maximum grows, and the weighted values do not. Both are sums of the same powers.",
        like=Absorb("out_kept"),
    ),
    Mistake(
        "total_not_shrunk",
        "The weighted values shrink when the maximum grows, and the sum of the powers does not. Both have to.",
        like=Absorb("total_kept"),
    ),
    Mistake(
        "upside_down",
        "The old sums were multiplied by exp(new − old). They were powers relative to the *old* maximum; relative to "
        "the new one they are exp(old − new) times as large, which is never above 1.",
        like=Absorb("upside_down"),
    ),
    Mistake(
        "block_maximum",
        "The maximum is the new block's alone. Where the old one was higher, it has to stay, or the old sums grow "
        "without limit.",
        like=Absorb("block_maximum"),
    ),
    Mistake(
        "no_maximum",
        "Nothing is subtracted before the exponential. It is right for small scores, and infinite for scores of "
        "hundreds.",
        like=Absorb("no_maximum"),
    ),
    Mistake(
        "maximum_not_kept",
        "The sums are right, and the maximum that came back is the old one: the next block would subtract the wrong "
        "number.",
        like=Absorb("top_kept"),
    ),
    Mistake(
        "divided_in_every_block",
        "The block's values were divided by the block's own sum. A share can be told only when all keys are known: "
        "divide once, at the end.",
        like=Absorb("divided"),
    ),
    Mistake(
        "already_divided",
        "The weighted values came back divided by the sum. The next block has to be added to them; divide at the end, "
        "outside of this function.",
        like=Absorb("finished"),
    ),
    Mistake(
        "mean_of_values",
        "The mean of the values was added, whatever their scores. Each value counts with its power: powers @ values.",
        like=Absorb("mean"),
    ),
    Mistake(
        "nothing_minus_nothing",
        "A query that has seen no key yet has a maximum of −∞, and −∞ − (−∞) is NaN. Subtract something finite there, "
        "0 for instance: its powers are exp(−∞) = 0 all the same.",
        like=Absorb("nan"),
        when=not_a_number,
    ),
)

FLASH_KERNEL = (
    Mistake(
        "out_not_shrunk",
        "Right while the first tile holds the highest score. When a later tile raises the maximum, `out` must shrink "
        "by exp(old − new) as `total` does.",
        like=With(wrong.flash, WRONG="out_not_shrunk"),
    ),
    Mistake(
        "total_not_shrunk",
        "Right while the first tile holds the highest score. When a later tile raises the maximum, `total` must shrink "
        "by exp(old − new) as `out` does.",
        like=With(wrong.flash, WRONG="total_not_shrunk"),
    ),
    Mistake(
        "maximum_forgotten",
        "Only the last tile of keys counts: `top` still is −∞ in every tile, so what was summed before is multiplied "
        "by exp(−∞) = 0. End the loop with top = higher.",
        like=With(wrong.flash, WRONG="maximum_forgotten"),
    ),
    Mistake(
        "padding_counts",
        "Keys beyond the last take part: they are loaded as zeros, so their score is 0, and exp(0 − max) goes into the "
        "sum. Scores of lanes without a key must be minus infinity.",
        like=With(wrong.flash, WRONG="padding_counts"),
    ),
    Mistake(
        "masked_with_zero",
        "What a query may not see got the score 0. That is a score like any other; minus infinity is none.",
        like=With(wrong.flash, WRONG="masked_with_zero"),
    ),
    Mistake(
        "not_causal", "With CAUSAL, query s must not see keys after s.", like=With(wrong.flash, WRONG="not_causal")
    ),
    Mistake(
        "not_itself",
        "A query sees its own key, too: key <= row, not <.",
        like=With(wrong.flash, WRONG="not_itself"),
    ),
    Mistake(
        "the_future",
        "Turned around: each query sees the keys after it.",
        like=With(wrong.flash, WRONG="the_future"),
    ),
    Mistake(
        "rows_of_the_tile",
        "Right in the first tile of queries. Compare keys with the query's number in the whole sequence, `row`, not "
        "with its place in the tile.",
        like=With(wrong.flash, WRONG="rows_of_the_tile"),
    ),
    Mistake("not_scaled", "The scores were not multiplied by `scale`.", like=With(wrong.flash, WRONG="not_scaled")),
    Mistake(
        "not_divided",
        "`out` was stored as it is. At the end it has to be divided by the sum of the powers.",
        like=With(wrong.flash, WRONG="not_divided"),
    ),
    Mistake(
        "divided_in_every_tile",
        "Each tile was divided by its own sum. A share can be told only when all keys are known: divide after the "
        "loop.",
        like=With(wrong.flash, WRONG="divided_in_every_tile"),
    ),
    Mistake(
        "whole_tiles_only",
        "A tile of keys that is not full is left out. The loop goes to K, in steps of BLOCK_K, and masks the rest.",
        like=With(wrong.flash, WRONG="whole_tiles_only"),
    ),
    Mistake(
        "always_the_first_tile",
        "Every program works on the first tile of queries, and the rest of the result is never written.",
        like=With(wrong.flash, WRONG="always_the_first_tile"),
    ),
    Mistake(
        "powers_stay_wide",
        "Right in float32. In 16 bits the powers are still float32 and v is not, and `tl.dot` takes two operands of "
        "one format: `powers.to(v.dtype)` in the product, but not in the sum.",
        like=With(wrong.flash, WRONG="powers_stay_wide"),
        when=formats_differ,
    ),
    Mistake(
        "reads_beyond",
        "Your kernel reads beyond the end of a tensor: the loads of k and v need the mask `(key < K)[:, None]`, with "
        "other=0.0.",
        when=beyond("reads"),
    ),
    Mistake(
        "writes_beyond",
        "Your kernel writes beyond the end of the result: the store needs the mask `(row < S)[:, None]`.",
        when=beyond("writes"),
    ),
    Mistake(
        "reads_and_writes_beyond",
        "Your kernel reads and writes beyond the end of its tensors: loads and store need their masks.",
        when=beyond("reads", "writes"),
    ),
    Mistake(
        "far_away",
        "Your kernel was stopped just before it would have touched memory far away from its tensors. Row r of a "
        "[rows, D] tensor begins at r · D; pointers move by elements, not by bytes.",
        when=far,
    ),
    NO_KERNEL,
    Mistake(
        "not_a_number",
        "There is NaN in the result. Either part of it was never written (the check puts NaN there beforehand), or "
        "−∞ − (−∞) was computed: a row needs one visible key in the first tile that it walks over.",
        when=not_a_number,
    ),
)
