"""Lab 08: the mistakes in the K best and in the whole router that their checks know, and the words for each."""

from __future__ import annotations

import torch

from labkit.course.judge import Failure, Mistake
from labkit.course.labs import _08_mistakes as wrong
from labkit.course.labs._08_words import FAR
from labkit.course.labs._kernel_mistakes import NO_KERNEL, With, beyond, unfilled


def _overflowed(failure: Failure) -> bool:
    weights = failure.got[1]
    return failure.case.args[0].max() > 100 and not bool(weights.isfinite().all())


def _too_small(failure: Failure) -> bool:
    """Whether the right experts have too small scores, where lanes of the block are empty."""
    logits_TE, constants = failure.case.args[0], failure.case.kwargs["constants"]
    (ids, weights), (right_ids, right_weights) = failure.got, failure.expected
    empty = constants["BLOCK"] > logits_TE.shape[1] and not constants["NORM"]
    return empty and torch.equal(ids, right_ids) and bool((weights < right_weights).all())


TOP_K_KERNEL = (
    Mistake(
        "ties_to_the_last",
        "Right but for ties, which go to the higher number. Equal values go to the lower one: the *smallest* place "
        "among those that hold the maximum.",
        like=With(wrong.top_k, WRONG="ties_to_the_last"),
    ),
    Mistake(
        "one_knocks_out_all",
        "When one is taken, all that equal it disappear with it: you knock out by value. Knock out by place, "
        "`at == first`, so that its equals can come next.",
        like=With(wrong.top_k, WRONG="one_knocks_out_all"),
    ),
    Mistake(
        "padding_wins",
        "Where nothing is above zero an empty lane wins, and you get a number beyond the width. Lanes beyond the end "
        "must lose against everything: minus infinity.",
        like=With(wrong.top_k, WRONG="padding_wins"),
    ),
    Mistake(
        "zero_is_not_out",
        "A value that was taken becomes 0, and 0 beats everything below it: the same one is chosen again. Minus "
        "infinity is below all.",
        like=With(wrong.top_k, WRONG="zero_is_not_out"),
    ),
    Mistake(
        "the_same_again",
        "Every round finds the same maximum: what has been taken has to leave before the next.",
        like=With(wrong.top_k, WRONG="the_same_again"),
    ),
    Mistake(
        "rows_of_width",
        "Row r begins at r · stride, not at r · width: these rows lie apart.",
        like=With(wrong.top_k, WRONG="rows_of_width"),
    ),
    Mistake(
        "answers_overwritten",
        "All rows write their answer to the same place, so one of them remains. Row r's K answers begin at r · K.",
        like=With(wrong.top_k, WRONG="answers_overwritten"),
    ),
    Mistake(
        "worst_first",
        "The right ones, in the wrong order: the best comes first.",
        like=With(wrong.top_k, WRONG="worst_first"),
    ),
    Mistake(
        "smallest_first",
        "These are the K smallest.",
        like=With(wrong.top_k, WRONG="smallest_first"),
    ),
    Mistake(
        "reads_beyond",
        "Your kernel reads beyond the end of a row: the load needs the mask `at < width`, and a value for lanes "
        "without an element that loses against everything.",
        when=beyond("reads"),
    ),
    Mistake(
        "writes_beyond",
        "Your kernel writes outside its outputs. Row r, round k has the place r · K + k, in both of them.",
        when=beyond("writes"),
    ),
    FAR,
    NO_KERNEL,
    Mistake(
        "not_all_written",
        "Part of an output was never written: it still has the poison that the check put there. There are K ids and K "
        "values a row.",
        when=unfilled,
    ),
)

ROUTER_KERNEL = (
    Mistake(
        "not_renormalised",
        "Scores as they come out of the softmax, also where NORM is true: there the K weights of a token have to sum "
        "to one.",
        like=With(wrong.router, WRONG="not_renormalised"),
    ),
    Mistake(
        "always_renormalised",
        "The weights sum to one also where NORM is false. OLMoE, for one, keeps the scores as they are: they say how "
        "sure the router is. (A softmax over the K chosen logits does the same as renormalising.)",
        like=With(wrong.router, WRONG="always_renormalised"),
    ),
    Mistake(
        "divided_by_the_best",
        "The best expert's weight is always 1: the division is by the largest score, not by the sum of the K.",
        like=With(wrong.router, WRONG="divided_by_the_best"),
    ),
    Mistake(
        "softmax_not_divided",
        "Right where NORM is true, since the denominator cancels, and too large where it is false: the exponentials "
        "were never divided by their sum over all experts.",
        like=With(wrong.router, WRONG="softmax_not_divided"),
    ),
    Mistake(
        "no_maximum",
        "NaN for logits of 500: exp overflows in float32. Subtract the token's maximum first.",
        like=With(wrong.router, WRONG="no_maximum"),
        when=_overflowed,
    ),
    Mistake(
        "padding_counts",
        "Lanes beyond the last expert were loaded as 0 and went into the softmax's sum. Load them as minus infinity.",
        like=With(wrong.router, WRONG="padding_counts"),
        when=_too_small,
    ),
    Mistake(
        "logits_for_weights",
        "The right experts, with their *logits* as weights: store their scores.",
        like=With(wrong.router, WRONG="logits_for_weights"),
    ),
    Mistake(
        "ties_to_the_last",
        "Right but for ties: equal scores go to the lower expert number.",
        like=With(wrong.router, WRONG="ties_to_the_last"),
    ),
    Mistake(
        "the_same_again",
        "Every round chooses the same expert: mark what has been taken.",
        like=With(wrong.router, WRONG="the_same_again"),
    ),
    Mistake(
        "rows_of_width",
        "Token t's logits begin at t · stride, not at t · E.",
        like=With(wrong.router, WRONG="rows_of_width"),
    ),
    Mistake(
        "reads_beyond",
        "Your kernel reads beyond the last expert's logit: the load needs the mask `e < E`, and minus infinity for the "
        "lanes without an expert.",
        when=beyond("reads"),
    ),
    Mistake(
        "writes_beyond",
        "Your kernel writes outside its outputs. Token t's answer k has the place t · K + k, and lanes that were not "
        "chosen write nothing.",
        when=beyond("writes"),
    ),
    FAR,
    NO_KERNEL,
    Mistake(
        "not_all_written",
        "Part of an output was never written: it still has the poison that the check put there.",
        when=unfilled,
    ),
)
