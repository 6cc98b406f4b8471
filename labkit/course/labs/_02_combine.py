"""Lab 02's exercise on the way back: each token's outputs, weighted and added up."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from labkit.course.attempt import Case
from labkit.course.exercise import Exercise
from labkit.course.judge import Mistake
from labkit.course.labs import _02_mistakes as wrong
from labkit.course.labs._02_dispatch import choices, normal


def combine(y_ND: Tensor, order_N: Tensor, topk_scores_TK: Tensor) -> Tensor:
    T, K = topk_scores_TK.shape
    weighted_ND = y_ND.float() * topk_scores_TK.flatten()[order_N, None]
    out_TD = y_ND.new_zeros(T, y_ND.shape[1], dtype=torch.float32)
    return out_TD.index_add(0, order_N // K, weighted_ND).to(y_ND.dtype)


def _combine_cases(seed: int) -> list[Case]:
    def case(at: int, T: int, E: int, K: int, label: str = "") -> Case:
        order_N = choices(seed + at, T, E, K).flatten().argsort(stable=True)
        scores_TK = normal(seed + at + 1, T, K).sigmoid()
        return Case((normal(seed + at, T * K, 3), order_N, scores_TK), label=label)

    ones = torch.ones(9, 2, dtype=torch.bfloat16)
    big_and_small = torch.tensor([[256.0, 1.0]] + [[1.0, 1.0]] * 8).bfloat16()
    return [
        case(10, 1, 3, 2, label="one token, scores that do not sum to one"),
        case(20, 3, 4, 2),
        case(30, 5, 4, 1, label="K = 1, and a score below one"),
        case(40, 3, 4, 4, label="K = E"),
        case(50, 16, 64, 8, label="64 experts, 8 active"),
        Case((big_and_small, torch.arange(9), torch.ones(1, 9)), label="bfloat16: 256 and eight ones"),
        Case((ones, torch.arange(9), torch.full((1, 9), 1 + 2**-8)), label="bfloat16: nine scores just above one"),
        replace(case(60, 3, 4, 2, label="gradients flow back"), needs_grad=True),
    ]


COMBINE = Exercise(
    id="02.combine",
    title="Bring the outputs back and add them up",
    difficulty=2,
    minutes=15,
    points=3,
    reference=combine,
    cases=_combine_cases,
    hints=(
        "Row n is the answer to pair order_N[n]. Two things are needed from that pair: its score, and its token.",
        "Scores: flatten [T, K] and index it with order_N. Then add each row to its token; a token occurs K times, "
        "so this must be an operation that adds repeated indices (index_add), in float32.",
        "weighted = y_ND.float() * topk_scores_TK.flatten()[order_N, None]; float32 zeros [T, D] (on y_ND's device) "
        ".index_add(0, order_N // K, weighted), back in y_ND's dtype.",
    ),
    mistakes=(
        Mistake(
            "duplicates_lost",
            "Each token kept one of its K outputs. `out[token] += y` reads, adds and writes once for each entry, and "
            "where a token is named twice, the last write wins. Nothing warns. Use an operation that accumulates.",
            like=wrong.combine_overwrites,
        ),
        Mistake(
            "scores_not_sorted",
            "Every row was multiplied by a score, but by another pair's. The rows are sorted by expert and the "
            "scores are still in token order: send them through the same permutation.",
            like=wrong.combine_unsorted_scores,
        ),
        Mistake(
            "scores_by_inverse",
            "The scores went through the inverse of the permutation. Row n answers pair order_N[n]; so which score "
            "belongs to row n?",
            like=wrong.combine_inverse_scores,
        ),
        Mistake(
            "nothing_kept",
            "All zeros. `index_add` returns its result and leaves the tensor that it was called on as it was; with a "
            "trailing underscore, or assigned to a name, the sum is kept.",
            like=wrong.combine_nothing_kept,
        ),
        Mistake(
            "softmaxed",
            "The scores went through a softmax once more. The router has done all that is to be done to them; here "
            "they are multiplied and nothing else.",
            like=wrong.combine_softmaxed,
        ),
        Mistake(
            "unweighted",
            "The outputs were added without their scores. Then the router gets no gradient and never learns.",
            like=wrong.combine_unweighted,
        ),
        Mistake(
            "averaged",
            "The sum was divided by K. The scores already weigh the outputs; a second average makes the layer K "
            "times too quiet.",
            like=wrong.combine_mean,
        ),
        Mistake(
            "renormalised",
            "The scores were made to sum to one here. That is the router's decision, and OLMoE's router decides "
            "against it. Take the scores as they come.",
            like=wrong.combine_renormalised,
        ),
        Mistake(
            "permuted_twice",
            "The rows were permuted with `order_N` once more. Indexing with a permutation applies it; going back "
            "needs its inverse.",
            like=wrong.combine_permuted_twice,
        ),
        Mistake(
            "still_sorted",
            "The rows were taken as if they stood in token order. They are sorted by expert; only with one token "
            "does it not matter.",
            like=wrong.combine_not_undone,
        ),
        Mistake(
            "modulo_tokens",
            "Rows went to token n % T. Pair n of the flattened [T, K] belongs to token n // K.",
            like=wrong.combine_modulo,
        ),
        Mistake(
            "sums_in_bfloat16",
            "In bfloat16, 256 + 1 is 256: eight small outputs vanish one by one beside a large one. Add in float32 "
            "and round once, at the end.",
            like=wrong.combine_narrow,
        ),
        Mistake(
            "rounds_the_products",
            "The products y · score were rounded to bfloat16 before they were added. A score a little above one is "
            "one in bfloat16, so K small errors of the same sign add up. Go to float32 before multiplying, not after.",
            like=wrong.combine_rounded_products,
        ),
        Mistake(
            "stays_in_float32",
            "The sum is right and came back in float32 where the outputs were bfloat16. The next layer would run in "
            "another precision, or crash.",
            like=wrong.combine_stays_float32,
        ),
    ),
)
