"""Lab 10: the mistakes in online softmax and in rounding that their checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Failure, Mistake
from labkit.course.labs import _10_mistakes as wrong
from labkit.course.labs._10_mistakes import Absorb


def not_a_number(failure: Failure) -> bool:
    """Whether NaN came where none belongs."""
    parts = failure.got if isinstance(failure.got, tuple) else (failure.got,)
    return any(bool(part.isnan().any()) for part in parts)


def bits_as_number(failure: Failure) -> bool:
    """Whether bits came back as if they were a number: 1.0 is 16256, or a thousand million."""
    return bool((failure.got.float().abs() > 1000 * failure.expected.float().abs()).all())


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
        "neither_shrunk",
        "Old sums are relative to the old maximum. When the block raises it, multiply both by exp(old − new).",
        like=Absorb("neither_shrunk"),
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
        "global_max",
        "That is one maximum for all queries. Each has its own: the largest of its row, `amax(dim=-1)`.",
        like=Absorb("global_max"),
    ),
    Mistake(
        "of_the_block",
        "The new powers are relative to the block's own maximum, and the old sums to the higher of the two. Subtract "
        "the same number on both sides.",
        like=Absorb("of_the_block"),
    ),
    Mistake(
        "of_the_old",
        "The new powers are relative to the old maximum. Where the block raises it, everything is relative to the new "
        "one: exp(score − new).",
        like=Absorb("of_the_old"),
    ),
    Mistake(
        "new_shrunk_too",
        "The new powers were multiplied by exp(old − new) as well. They are relative to the new maximum already: only "
        "the old sums shrink.",
        like=Absorb("new_shrunk_too"),
    ),
    Mistake(
        "softmax_of_the_block",
        "A softmax of the block divides by the block's own sum. A share can be told only when all keys are known: take "
        "exp(score − new).",
        like=Absorb("softmax"),
    ),
    Mistake(
        "no_exponential",
        "The old sums were multiplied by old − new itself. They are sums of powers: the factor is exp(old − new).",
        like=Absorb("no_exponential"),
    ),
    Mistake(
        "no_maximum",
        "Nothing is subtracted before the exponential. It is right for small scores, and infinite for scores of "
        "hundreds.",
        like=Absorb("no_maximum"),
    ),
    Mistake(
        "large_for_infinite",
        "A large negative number stands for −∞. A query that has seen nothing then counts masked keys, with "
        "exp(0) = 1 each.",
        like=Absorb("large_for_infinite"),
    ),
    Mistake(
        "returns_finite",
        "0 came back for −∞, as if a key with the score 0 had been seen. Use the stand-in only inside exp.",
        like=Absorb("returns_finite"),
    ),
    Mistake(
        "total_all",
        "All queries' powers were added into one sum: `sum()` without an axis. Each query has its own: `sum(-1)`.",
        like=Absorb("total_all"),
    ),
    Mistake(
        "scores_for_powers",
        "The values were weighted with the scores themselves. Their weights are the powers: powers @ values.",
        like=Absorb("scores"),
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

STOCHASTIC_ROUND = (
    Mistake(
        "to_nearest",
        "That is rounding to nearest: the noise has no part in it, and a small update is lost every time.",
        like=wrong.round_to_nearest,
    ),
    Mistake(
        "cut_off",
        "Every number moves towards zero: the noise was not used, or cannot carry (`|`, `^`). Add it to the bits "
        "before clearing.",
        like=wrong.round_cut_off,
    ),
    Mistake(
        "rounded_twice",
        "The noise was added, and the conversion to bfloat16 then rounded to nearest on top of it: half a step too "
        "much, on average. Clear the lower 16 bits before the conversion, so that it has nothing to round.",
        like=wrong.round_twice,
    ),
    Mistake(
        "subtracted",
        "The noise was subtracted: the larger it is, the further *down* the number goes. Added to the bits, it carries "
        "over into the upper half as often as the lower half is full.",
        like=wrong.round_subtracts,
    ),
    Mistake(
        "added_to_the_number",
        "The noise was added to the number, not to its bits. The distance between two bfloat16 grows with the number; "
        "the lower 16 bits are a share of that distance, whatever it is.",
        like=wrong.round_adds_numbers,
    ),
    Mistake(
        "relative_noise",
        "A noise in proportion to the number is near, and not it: the distance of neighbours doubles at every power of "
        "two and is the same in between. `x.view(torch.int32)` gives the bits.",
        like=wrong.round_relative,
    ),
    Mistake(
        "cut_before",
        "The lower bits were cleared before the noise came: then it cannot carry over as often as they ask.",
        like=wrong.round_after_cut,
    ),
    Mistake(
        "half_the_noise",
        "Only half of the noise was added, so that numbers rarely go up. All 16 bits of it belong to the lower half.",
        like=wrong.round_half_the_noise,
    ),
    Mistake(
        "strictly_more",
        "One noise in 65536 is wrong: L + noise = 65536 goes up, too: >=, not >.",
        like=wrong.round_strictly_more,
    ),
    Mistake(
        "at_65535",
        "One noise in 65536 is wrong: the sum must reach 65536. With 65535, even a number that bfloat16 has can go up.",
        like=wrong.round_at_65535,
    ),
    Mistake(
        "other_end",
        "Right on average, for other noises than asked for: up exactly if L + noise is 65536 or more, not if noise is "
        "below L.",
        like=wrong.round_other_end,
    ),
    Mistake(
        "towards_plus",
        "Below zero the noise was subtracted. The bits hold a sign and a size: adding to them goes away from zero on "
        "both sides, as it should.",
        like=wrong.round_towards_plus,
    ),
    Mistake(
        "centered",
        "Half of the range was subtracted from the noise. What is cleared afterwards cuts off, so the noise must be 0 "
        "or more.",
        like=wrong.round_centered,
    ),
    Mistake(
        "bits_as_number",
        "The bits were converted as if they were a number. `.view(torch.float32)` reads them as the float they are.",
        like=wrong.round_bits_as_number,
        when=bits_as_number,
    ),
    Mistake(
        "still_float32",
        "The values are those of bfloat16 and the format is still float32: four bytes each.",
        like=wrong.round_stays_wide,
    ),
    Mistake(
        "value_not_bits",
        "`.to(torch.int32)` converts the *number*. Its bits are `x.view(torch.int32)`.",
        like=wrong.round_of_integers,
    ),
)
