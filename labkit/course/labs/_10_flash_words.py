"""Lab 10: the mistakes in the flash kernel that its check knows, and the words for each."""

from __future__ import annotations

import torch

from labkit.course.judge import Failure, Mistake
from labkit.course.labs import _10_flash_mistakes as wrong
from labkit.course.labs._10_more_words import not_a_number
from labkit.course.labs._kernel_mistakes import NO_KERNEL, With, beyond, far


def formats_differ(failure: Failure) -> bool:
    """Whether a product was asked for whose operands have two formats."""
    return "must be same dtype" in failure.outcome.error


def attends(failure: Failure, first: int) -> bool:
    """Whether every query saw all keys from this one on, and no other."""
    q, k, v, _, _, _, scale = failure.case.args
    expected = (q @ k[first:].T * scale).softmax(-1) @ v[first:]
    return torch.allclose(failure.got, expected.float(), 2e-3, 2e-3)


def sees_all(failure: Failure) -> bool:
    """Whether a causal query saw every key, however far the loop goes."""
    return failure.case.kwargs["constants"]["CAUSAL"] and attends(failure, 0)


def last_tile_only(failure: Failure) -> bool:
    """Whether the last tile of keys was all that counted, however far a causal loop goes."""
    K, block = len(failure.case.args[1]), failure.case.kwargs["constants"]["BLOCK_K"]
    return block < K and attends(failure, (K - 1) // block * block)


def only_other_tiles(failure: Failure) -> bool:
    """Whether all was right as long as D, BLOCK_S and BLOCK_K were equal."""
    constants = failure.case.kwargs["constants"]
    return len({constants[name] for name in ("D", "BLOCK_S", "BLOCK_K")}) > 1


def falls_to_nan(failure: Failure) -> bool:
    """Whether all was right until later keys scored far lower, and NaN came: however far a causal loop goes."""
    return "that fall" in failure.case.label and not_a_number(failure)


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
        "neither_shrunk",
        "Right while the first tile holds the highest score. `total` and `out` are relative to the old maximum: when a "
        "later tile raises it, multiply both by exp(old − new).",
        like=With(wrong.flash, WRONG="neither_shrunk"),
    ),
    Mistake(
        "no_maximum",
        "Nothing is subtracted before the exponential. It is right for small scores; for hundreds exp is infinite, for "
        "minus hundreds 0.",
        like=With(wrong.flash, WRONG="no_maximum"),
    ),
    Mistake(
        "block_maximum",
        "The maximum is the new tile's alone. Where the old one was higher, it has to stay, or exp(old − new) grows "
        "without limit: tl.maximum(top, …).",
        like=With(wrong.flash, WRONG="block_maximum"),
        when=falls_to_nan,
    ),
    Mistake(
        "top_begins_at_zero",
        "`top` begins at 0. With 0, scores far below zero vanish: start at −∞.",
        like=With(wrong.flash, WRONG="top_begins_at_zero"),
    ),
    Mistake(
        "masked_after_the_maximum",
        "The maximum was taken before the mask. A key that the query may not see can score so much higher that all "
        "powers of the others are 0: mask first.",
        like=With(wrong.flash, WRONG="masked_after_the_maximum"),
    ),
    Mistake(
        "maximum_forgotten",
        "Only the last tile of keys counts: `top` still is −∞ in every tile, so what was summed before is multiplied "
        "by exp(−∞) = 0. End the loop with top = higher.",
        like=With(wrong.flash, WRONG="maximum_forgotten"),
        when=last_tile_only,
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
        "not_causal",
        "With CAUSAL, query s must not see keys after s.",
        like=With(wrong.flash, WRONG="not_causal"),
        when=sees_all,
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
        "divided_by_scale",
        "The scores were divided by `scale`. They are multiplied by it: it is 1/√d already.",
        like=With(wrong.flash, WRONG="divided_by_scale"),
    ),
    Mistake(
        "powers_of_two",
        "`tl.exp2` gives powers of two. Use `tl.exp`, or multiply the scores by log2(e) = 1.442695 as well.",
        like=With(wrong.flash, WRONG="powers_of_two"),
    ),
    Mistake(
        "not_transposed",
        "q was multiplied by k itself. Every query meets every key along D: tl.dot(q, tl.trans(k)).",
        like=With(wrong.flash, WRONG="not_transposed"),
    ),
    Mistake(
        "columns_shrunk",
        "`out` was multiplied by `shrink` along its columns. There is one factor for each query, a row of `out`: "
        "shrink[:, None].",
        like=With(wrong.flash, WRONG="columns_shrunk"),
    ),
    Mistake(
        "sums_of_columns",
        "The powers were summed over the queries of the tile. Each query sums over its keys, along its row: axis=1.",
        like=With(wrong.flash, WRONG="sums_of_columns"),
    ),
    Mistake(
        "first_tile_only",
        "Only the first tile of keys counts. Each turn takes keys `first + tl.arange(0, BLOCK_K)`, and `first` is the "
        "number of a key, not of a tile.",
        like=With(wrong.flash, WRONG="first_tile_only"),
    ),
    Mistake(
        "loop_to_S",
        "The loop ends at S, the number of queries. It goes over the K keys.",
        like=With(wrong.flash, WRONG="loop_to_S"),
    ),
    Mistake(
        "keys_by_S",
        "Keys were masked with `key < S`. S counts the queries; there are K keys.",
        like=With(wrong.flash, WRONG="keys_by_S"),
    ),
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
        "Right in float32. `tl.dot` takes two operands of one format: leave q and k as they were loaded; in 16 bits "
        "the powers are still float32 and v is not, so `powers.to(v.dtype)` in the product, but not in the sum.",
        like=With(wrong.flash, WRONG="powers_stay_wide"),
        when=formats_differ,
    ),
    Mistake(
        "other_tile",
        "Right only where D, BLOCK_S and BLOCK_K are equal. Rows are D apart, queries come by BLOCK_S, keys by "
        "BLOCK_K; causally, the last key is that of the last query.",
        when=only_other_tiles,
    ),
    Mistake(
        "reads_beyond",
        "Your kernel reads beyond the end of a tensor: the loads of k and v need the mask `(key < K)[:, None]`, that "
        "of q `(row < S)[:, None]`, all with other=0.0.",
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
        "−∞ − (−∞) was computed: a row needs one visible key in the first tile that it walks over; or exp became "
        "infinite: only differences that are 0 or less go into it, score − new and old − new.",
        when=not_a_number,
    ),
)
