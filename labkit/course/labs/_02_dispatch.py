"""Lab 02's exercises on the way to the experts: count the tokens of each, sort the tokens by expert."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.course.attempt import Case
from labkit.course.exercise import Exercise
from labkit.course.judge import Failure, Mistake
from labkit.course.labs import _02_mistakes as wrong


def normal(seed: int, *shape: int) -> Tensor:
    """Seeded normal values of this shape, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def choices(seed: int, T: int, E: int, K: int) -> Tensor:
    """K different experts for each of T tokens, in random order; int64 [T, K]."""
    return torch.rand(T, E, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)[:, :K]


# ------------------------------------------------------------------------------------------------- tokens_per_expert


def tokens_per_expert(topk_ids_TK: Tensor, num_experts: int) -> Tensor:
    counts_E = torch.bincount(topk_ids_TK.flatten(), minlength=num_experts)
    if len(counts_E) > num_experts:
        raise ValueError(f"expert {len(counts_E) - 1} was chosen, but there are only {num_experts}")
    return counts_E


def _counts_cases(seed: int) -> list[Case]:
    unused_last = choices(seed + 1, 4, 3, 2)
    return [
        Case((choices(seed, 2, 3, 3), 3), label="K = E: everyone gets every token"),
        Case((unused_last, 5), label="the last two experts are not chosen"),
        Case((unused_last + 2, 5), label="the first two experts are not chosen"),
        Case((choices(seed + 2, 7, 4, 1), 4), label="K = 1"),
        Case((choices(seed + 3, 7, 64, 8), 64), label="64 experts, 8 active"),
        Case((torch.zeros(0, 2, dtype=torch.int64), 4), label="no token at all"),
        Case((torch.tensor([[0, 1], [1, 3 + seed % 2]]), 3), label="an expert that does not exist: ValueError"),
    ]


TOKENS_PER_EXPERT = Exercise(
    id="02.tokens_per_expert",
    title="How many tokens each expert gets",
    difficulty=1,
    minutes=6,
    points=1,
    reference=tokens_per_expert,
    cases=_counts_cases,
    hints=(
        "A histogram of integers, with one entry for every expert, chosen or not. There is a torch function for it.",
        "torch.bincount wants one dimension, and its result ends at the largest id that it sees unless told how long "
        "it must be at least. At least: so an id that is too large makes it longer.",
        "counts_E = torch.bincount(topk_ids_TK.flatten(), minlength=num_experts); raise ValueError if len(counts_E) "
        "> num_experts.",
    ),
    mistakes=(
        Mistake(
            "grows",
            "An expert that does not exist made the result longer than E, without a word. `minlength` is a least "
            "length. Whoever uses it has to look whether more came back.",
            like=wrong.counts_grow,
        ),
        Mistake(
            "ends_at_the_largest_id",
            "The result has fewer entries than there are experts when the last ones are not chosen. On most batches "
            "it is right; on the first unlucky one, counts and weights no longer line up. Say how long it must be.",
            like=wrong.counts_short,
        ),
        Mistake(
            "skips_empty_experts",
            "Experts without a token have no entry, wherever they stand, so the third count may belong to the fifth "
            "expert. `unique` lists what occurs; here the zeros matter as much.",
            like=wrong.counts_skip_empty,
        ),
        Mistake(
            "first_choice_only",
            "Only each token's first choice was counted: the counts add up to T, and should add up to T·K.",
            like=wrong.counts_first_choice,
        ),
        Mistake(
            "counted_once",
            "Every chosen expert has a one. `counts[ids] += 1` reads, adds and writes once for each entry, and where "
            "an id stands twice the last write wins. You will meet this trap again in `combine`.",
            like=wrong.counts_once,
        ),
        Mistake(
            "shares",
            "These are shares that sum to one. The offsets of a grouped product need whole rows: return the counts.",
            like=wrong.counts_shares,
        ),
        Mistake(
            "hides_bad_ids",
            "An expert that does not exist was folded into the last one. Its tokens would go through the wrong "
            "network, and nothing would say so.",
            like=wrong.counts_clamped,
        ),
        Mistake(
            "drops_bad_ids",
            "Choices of an expert that does not exist were cut off: the counts no longer add up to T·K, and those "
            "tokens would get nothing. Refuse the input instead.",
            like=wrong.counts_dropped,
        ),
    ),
)

# -------------------------------------------------------------------------------------------------- dispatch_by_sort


def dispatch_by_sort(x_TD: Tensor, topk_ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    K = topk_ids_TK.shape[1]
    order_N = topk_ids_TK.flatten().argsort(stable=True)
    counts_E = torch.bincount(topk_ids_TK.flatten(), minlength=num_experts)
    return x_TD[order_N // K], order_N, counts_E.cumsum(0).to(torch.int32)


def _dispatch_cases(seed: int) -> list[Case]:
    def case(at: int, T: int, E: int, K: int, label: str = "", used: int | None = None) -> Case:
        return Case((normal(seed + at, T, 3), choices(seed + at, T, used or E, K), E), label=label)

    return [
        case(1, 2, 3, 2, label="two tokens"),
        case(2, 1, 3, 2, label="one token"),
        case(8, 4, 3, 2),
        case(3, 5, 4, 1, label="K = 1"),
        case(4, 3, 4, 4, label="K = E"),
        case(5, 7, 6, 2, label="the last two experts get nothing", used=4),
        case(6, 33, 8, 2),
        Case((normal(seed, 6, 3).bfloat16(), choices(seed, 6, 8, 3), 8), label="bfloat16"),
        Case((normal(seed, 4, 3), choices(seed + 7, 4, 5, 2), 5), label="gradients flow back", needs_grad=True),
    ]


def _row_out_of_range(failure: Failure) -> bool:
    """Indexing left the rows of x: what a pair's number does, being up to T·K − 1."""
    return failure.outcome.error_type in ("IndexError", "RuntimeError") and "out of" in failure.outcome.error


def _index_is_float(failure: Failure) -> bool:
    words = ("must be long", "Expected dtype int", "should be Long")
    return any(word in failure.outcome.error for word in words)


def _right_but_for_ties(failure: Failure) -> bool:
    """A permutation that sorts by expert, with the rows and offsets that belong to it, in another order than asked."""
    x_TD, topk_ids_TK, _ = failure.case.args
    rows, order_N, offsets_E = failure.got
    sorted_ids = topk_ids_TK.flatten()[order_N]
    return (
        order_N.sort().values.equal(torch.arange(topk_ids_TK.numel()))
        and bool((sorted_ids.diff() >= 0).all())
        and rows.equal(x_TD[order_N // topk_ids_TK.shape[1]])
        and offsets_E.equal(failure.expected[2])
        and not order_N.equal(failure.expected[1])
    )


DISPATCH_BY_SORT = Exercise(
    id="02.dispatch_by_sort",
    title="Sort tokens by expert",
    difficulty=3,
    minutes=20,
    points=3,
    reference=dispatch_by_sort,
    cases=_dispatch_cases,
    hints=(
        "Flatten the choices into N = T·K pairs and sort the pairs by expert. What you need from the sort is not the "
        "sorted ids but where each one came from.",
        "Pair n of the flattened [T, K] belongs to token n // K. `argsort(stable=True)` keeps the tokens of one "
        "expert in order. Each expert's slice ends where the counts so far add up to.",
        "order_N = topk_ids_TK.flatten().argsort(stable=True); x_ND = x_TD[order_N // K]; offsets_E = bincount(..., "
        "minlength=num_experts).cumsum(0).to(torch.int32)",
    ),
    mistakes=(
        Mistake(
            "pairs_taken_for_tokens",
            "`order_N` numbers pairs, 0 to T·K − 1, and was used as if it numbered tokens. With K = 1 the two are "
            "the same, so this passes the easiest test and fails the next. Which token does pair n belong to?",
            like=wrong.dispatch_pairs_as_tokens,
            when=_row_out_of_range,
        ),
        Mistake(
            "modulo_tokens",
            "The rows were taken from token n % T. That unfolds a [K, T] matrix; the choices are [T, K], and "
            "flattening keeps a token's K choices next to each other.",
            like=wrong.dispatch_modulo,
        ),
        Mistake(
            "slot_instead_of_token",
            "The rows were taken from n % K, which is the slot (first choice, second choice), not the token. "
            "Division has two results; you want the other one.",
            like=wrong.dispatch_modulo_k,
        ),
        Mistake(
            "sorted_by_slot_first",
            "The choices were transposed before flattening: inside one expert all first choices come before all "
            "second choices. The layer could still be made right, but `order_N` no longer means the position in [T, "
            "K].",
            like=wrong.dispatch_slot_major,
        ),
        Mistake(
            "returns_tokens_as_order",
            "The second result is the token of each row. It says where a row came from, but not for which of the "
            "token's K choices, so `combine` could not find the score. Return the position of the pair.",
            like=wrong.dispatch_token_index,
        ),
        Mistake(
            "ties_in_another_order",
            "The experts are in order, the tokens inside one expert are not. Results would still be right, but not "
            "reproducible to the last bit. A sort can be asked to keep ties as they came.",
            like=wrong.dispatch_ties_reversed,
            when=_right_but_for_ties,
        ),
        Mistake(
            "descending",
            "The last expert comes first. The weights of expert 0 stand first in memory, so its rows have to as well.",
            like=wrong.dispatch_descending,
        ),
        Mistake(
            "inverse_order",
            "The second result is the inverse permutation: where each pair went, instead of which pair came here. "
            "Both are useful and they are easily mixed up; position n must hold the pair that row n came from.",
            like=wrong.dispatch_inverse,
        ),
        Mistake(
            "rows_not_sorted",
            "Each token stands there K times, but still in the order of the pairs: `order_N` was computed and not "
            "applied to the rows. The offsets would cut this list in the wrong places.",
            like=wrong.dispatch_unsorted_rows,
        ),
        Mistake(
            "sorted_ids_as_order",
            "The second result holds the sorted expert ids. A sort gives values and where they came from; the values "
            "say which expert a row belongs to, and you need the places.",
            like=wrong.dispatch_sorted_ids,
        ),
        Mistake(
            "fractional_tokens",
            "`order_N / K` is a float, and a float cannot be an index: pair 3 of K = 2 is not token 1.5. Which "
            "division gives whole numbers?",
            like=wrong.dispatch_fractions,
            when=_index_is_float,
        ),
        Mistake(
            "offsets_lead_with_zero",
            "There is one offset too many: a 0 stands in front. That is how sparse matrices are stored (both ends of "
            "every slice); `grouped_mm` wants one end for each expert.",
            like=wrong.dispatch_leading_zero,
        ),
        Mistake(
            "offsets_are_last_rows",
            "Each offset is one too small: it names the last row of the slice. As in Python's own slices, the end is "
            "the first row that no longer belongs to it.",
            like=wrong.dispatch_last_rows,
        ),
        Mistake(
            "offsets_are_starts",
            "The offsets say where each slice begins. `grouped_mm` wants the ends; with starts, every expert "
            "multiplies the rows of the one before it.",
            like=wrong.dispatch_starts,
        ),
        Mistake(
            "counts_for_offsets",
            "These are the sizes of the slices. Offsets are positions: each slice ends where all sizes so far add up "
            "to.",
            like=wrong.dispatch_counts,
        ),
        Mistake(
            "offsets_lose_empty_experts",
            "There are fewer offsets than experts when the last ones are not chosen. It is the trap of the exercise "
            "before this one: bincount ends at the largest id that it sees.",
            like=wrong.dispatch_short,
        ),
        Mistake(
            "offsets_int64",
            "The values are right, in 64 bits. `grouped_mm` takes int32 offsets only.",
            like=wrong.dispatch_wide_offsets,
        ),
    ),
)
