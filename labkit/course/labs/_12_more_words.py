"""Lab 12: the words for the mistakes of `_12_more_mistakes`."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs import _12_more_mistakes as more
from labkit.course.labs._12_book_words import BUCKET as _BUCKET
from labkit.course.labs._12_book_words import LATENCIES as _LATENCIES
from labkit.course.labs._12_book_words import NEXT_STEP as _NEXT_STEP
from labkit.course.labs._12_book_words import PLACE as _PLACE
from labkit.course.labs._12_words import LEFT_PAD as _LEFT_PAD
from labkit.course.labs._12_words import known


def _also(mistakes: tuple[Mistake, ...], name: str, like: object) -> Mistake:
    """Another answer that has made a mistake that has its words already."""
    says = next(mistake.says for mistake in mistakes if mistake.name == name)
    return Mistake(name, says, like=like)


LEFT_PAD = (
    *_LEFT_PAD,
    *known(
        more.LeftPadAfterwards,
        {
            "positions_from_ids": "The positions were counted from the ids: where a prompt holds the padding token "
            "itself, the count stands still. Count the mask.",
            "one_at_padding": "Padding has position 1, as some versions of transformers write it. Nobody sees it; here "
            "it is 0.",
            "by_length": "The rows stand in order of length. Row i answers prompt i.",
        },
    ),
    _also(_LEFT_PAD, "below_zero", more.LeftPadAfterwards("before_zero")),
)

BUCKET = (
    *_BUCKET,
    *known(
        more.BucketOtherwise,
        {
            "before_joining": "Padding was measured against the batch as it is without the new request. That one makes "
            "it wider: the width is the new prompt's length.",
            "whole_percents": "The share was cut to whole per cents, and 30.5 % went through as 30 %. Compare whole "
            "numbers: 100 · padding ≤ percent · width.",
            "first_of_equals": "Of equal lengths the first request was taken again and again: `index` finds the first. "
            "Sort the numbers of the requests, not their lengths.",
        },
    ),
    *(_also(_BUCKET, "rounded", more.BucketOtherwise(way)) for way in ("hundredfold", "kept", "allowed")),
)

NEXT_STEP = (
    *_NEXT_STEP,
    *known(
        more.Step,
        {
            "block_not_taken": "A decoding sequence got its block, and the block still counts as free. Take it off.",
            "starts_take_nothing": "Those that started got their blocks, and these still count as free. Take them off.",
            "still_computes": "The last one was preempted for its own block, and computed its token all the same. Its "
            "cache is gone: nothing of it is in this step.",
            "sent_back_goes_on": "A prompt that was preempted went on in the same step. Its blocks are gone: go "
            "through those that still run.",
            "ends_with_the_last": "When the last one had to go itself, the whole step ended. Only the pass over those "
            "that decode is over; prompts that have begun go on.",
            "running_counted": "The budget was cut by all that run. Only those that decode have taken a token of it "
            "so far.",
            "in_order_of_running": "The chunks stand in the order in which sequences run. First all that decode, then "
            "prompts.",
            "decoding_preempted": "Only those that decode were sent back. The last of *all* that run goes, a prompt "
            "that has begun as well.",
            "prompts_preempted": "A prompt that has begun was sent back before those that decode behind it. The last "
            "of all that run goes, whatever it does.",
            "back_at_once": "One that was preempted came back in the same step. It waits, and nobody starts in a step "
            "that preempts.",
            "multiples": "A block was taken at every multiple of `block_size`. The next one may be held already: one "
            "is missing only if computed == blocks · size.",
            "begun_decodes": "A prompt of which something is computed was taken for one that decodes. Who decodes has "
            "one token left: tokens − computed == 1.",
        },
    ),
)

_FEWER = "decoding_preempted"
NEXT_STEP = (*NEXT_STEP, _also(NEXT_STEP, _FEWER, more.Step(f"{_FEWER}, as far as it came")))

_PLACE_MORE = known(
    more.PlaceOtherwise,
    {
        "last_block": "The last block of the table was taken. A table may reach further than the position (a prompt "
        "takes its blocks at once): table[position // size].",
        "copy_in_rows": "The copy is told in rows. It is a matter of blocks: (from, to), two numbers of blocks.",
        "added_on_copy": "The copy was added at the end of the table. It takes the place of the block that it was "
        "copied from.",
        "new_is_copied": "A copy was told for a block that is new. There is nothing to copy into it: None.",
    },
)
PLACE = (
    *_PLACE,
    *_PLACE_MORE,
    Mistake(
        "zero_is_none",
        "Block 0 was taken for no block: 0 is false in Python. Ask `is None`, or `0 in holders`.",
        like=more.PlaceOtherwise("zero_is_none"),
        when=more.zero_refused,
    ),
    Mistake(
        "refuses_early",
        "A full pool was refused where no block is needed. Look for a free block only when one is.",
        like=more.PlaceOtherwise("refuses_early"),
        when=more.refused_early,
    ),
)

_RANK = "The rank was taken for an index. Ranks count from 1, lists from 0: sorted(values)[rank − 1]."
LATENCIES = (
    *_LATENCIES,
    *known(
        more.LatenciesOtherwise,
        {
            "zeros_left_out": "Gaps of 0 were left out. Two tokens may come at once, and a gap of nothing is a gap.",
            "each_once": "Equal values were counted once. A percentile counts all of them: a list, no set.",
            "swapped_pair": "The two came back in the wrong order: first the wait for the first token, then the gap.",
            "percentile_of_each": "A percentile of each request's gaps was taken, and one of these. Put all gaps "
            "together: a request of many tokens has many.",
            "rank_from_0": _RANK,
        },
    ),
    Mistake("rank_from_0", _RANK, like=more.LatenciesOtherwise("rank_from_0, to the end"), when=more.beyond_the_list),
)
