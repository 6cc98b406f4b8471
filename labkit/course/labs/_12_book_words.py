"""Lab 12: the mistakes in lists and counts that its checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs._12_book_mistakes import Bucket, Latencies, NextStep, Place
from labkit.course.labs._12_words import known

BUCKET = known(
    Bucket,
    {
        "unsorted": "The requests were taken in order of arrival. Alike ones find each other in order of length.",
        "longest_first": "The longest came first. Begin with the shortest.",
        "ties_reversed": "Of equal lengths the later one came first. `sorted` keeps the order of equals; let it.",
        "no_bound": "The allowed padding has no effect: only full batches were closed.",
        "no_size": "Batches hold more than `size` requests.",
        "one_too_many": "A batch takes one request too many: it is full when it holds `size`.",
        "one_too_few": "A batch was closed one request too early.",
        "neighbours": "Each request was compared with the one before it. Small steps add up: the row with the most "
        "padding is the batch's first.",
        "of_the_shortest": "Padding was measured in per cent of the shortest prompt. It is a share of the *row*, which "
        "is as wide as the longest.",
        "whole_batch": "The padding of the whole batch was bounded. Then one row may be nearly all padding, if its "
        "neighbours are not; the bound is for every row.",
        "strict": "Just as much padding as is allowed is allowed: ≤.",
        "rounded": "1 − 7/10 is a little more than 0.3 in floating point, and the batch was closed for it. Compare "
        "whole numbers: 100 · padding ≤ percent · width.",
        "share_kept": "`percent` was taken for the share of real tokens. It is the share of padding.",
        "tokens": "`percent` was taken for a number of tokens. It is a share of the row's width.",
        "in_order_inside": "Within a batch, requests stand in order of arrival. Here they stand by length, the "
        "shortest first.",
        "lengths_returned": "The lengths came back. Return the requests' numbers, so that one knows whom to answer.",
        "last_lost": "The last batch is missing: nobody closed it.",
    },
)

_NEXT_STEP = known(
    NextStep,
    {
        "waiting_first": "Those that wait were served before those that run. Whoever decodes comes first: one late "
        "token is seen by its reader, a late start is not new to anybody.",
        "decode_is_free": "Decoding tokens were not taken off the budget. They are computed in the same step.",
        "budget_each": "Those that start got a budget of their own. There is one for the whole step.",
        "prompts_whole": "A prompt was computed whole, past the budget. Cut it: the rest comes in the next step.",
        "only_whole_prompts": "A prompt longer than the rest of the budget was sent back. Start with as much as fits.",
        "begun_forgotten": "Prompts that have begun did not go on.",
        "all_tokens_again": "A prompt that has begun was computed from its start. tokens − computed are left.",
        "begun_take_blocks": "Prompts that had begun took blocks again. They got all of theirs when they started.",
        "empty_chunks": "A chunk of no tokens is in the list. Stop where the budget ends.",
        "always_a_block": "Every decoding sequence took a block. It needs one only when its last is full: computed == "
        "blocks · size.",
        "block_too_early": "A block was taken a token too early. This step writes position `computed`; it has no place "
        "only if computed == blocks · size.",
        "block_too_late": "A full last block was not noticed: position `computed` lies beyond it when computed == "
        "blocks · size.",
        "first_preempted": "The first one was sent back. The one that came last goes: so the first always gets on, and "
        "everybody comes to be first.",
        "itself_preempted": "The one that needed the block went itself, with others behind it. The last of all goes.",
        "largest_preempted": "The one with most blocks was sent back. The one that came last goes, whatever it holds.",
        "others_only": "The last one needed a block, found none, and stayed. It goes itself, and its blocks are free.",
        "waits_instead": "Where no block was free, the sequence only skipped the step. If all of them do, nobody ever "
        "moves again: send the last one back.",
        "one_block_back": "One block came back from the one that was preempted. All of its blocks are free.",
        "blocks_lost": "The blocks of the one that was preempted were not counted, so that everybody went. They are "
        "free now.",
        "preempted_reversed": "Those that were preempted are listed in the order in which they ran. List them in the "
        "order in which they went.",
        "admits_after_preempting": "New ones started in a step that had to preempt. The blocks they take are those "
        "that the one sent back is waiting for.",
        "overbooked": "One started without enough free blocks.",
        "overtakes": "A shorter request overtook one that did not fit. Under load the long one would wait for ever: "
        "stop at the first that does not fit.",
        "one_kept_back": "A request that needs just as many blocks as are free may start.",
        "one_admitted": "Only one request was started. Go on while blocks and budget last.",
        "rounded_down": "The blocks of a prompt were rounded down. A block that is begun is taken: round up.",
        "a_block_more": "A block too many was taken for a prompt that fills its blocks: tokens // size + 1 is no "
        "rounding up.",
        "blocks_of_the_chunk": "Blocks were taken for the first chunk alone. A prompt that started must not have to "
        "wait for blocks in its middle: take all it needs.",
    },
)
_FIRST = next(mistake for mistake in _NEXT_STEP if mistake.name == "first_preempted")
NEXT_STEP = (*_NEXT_STEP, Mistake(_FIRST.name, _FIRST.says, like=NextStep("first_preempted, chunk kept")))

PLACE = known(
    Place,
    {
        "position": "The position itself came back as the row. The table says where its block lies.",
        "no_offset": "The row is the first of its block. Add the offset, position % size.",
        "block": "The block came back in place of the row: block · size + offset.",
        "block_plus_offset": "The block's number and the offset were added. Block b begins at row b · size.",
        "whole_position": "The whole position was added to the block's first row. Only the offset within the block "
        "counts: position % size.",
        "never_copies": "A shared block was written into. The others that hold it would read this sequence's key as "
        "their own.",
        "always_copies": "A block was copied that nobody else holds. With one holder, it may write.",
        "two_may_share": "A block with two holders was written into. One holder may write, and no more.",
        "any_shared": "It was copied because *some* block of the table is shared. Only the one that is written into "
        "matters; sharing the others is the point.",
        "old_row": "The row is in the old block. After a copy the token belongs into the new one.",
        "table_kept": "The copy was made, and the table still leads to the old block.",
        "old_not_released": "The old block has kept its holder. One fewer holds it now, else it is never free again.",
        "old_freed": "The old block was set free, and others still hold it. It has one holder fewer.",
        "new_not_counted": "The new block has no holder. The next one who looks for a free block would take it, too.",
        "copy_reversed": "The copy is the wrong way round: (from, to).",
        "copy_not_said": "A block was exchanged, and nobody was told to copy what is in it.",
        "highest_free": "The last free block was taken. Take the lowest number, so that results can be compared.",
        "grows": "A block was invented. The memory is what it is: with no free block, raise ValueError.",
        "takes_anothers": "With no free block, one that others hold was taken. Raise ValueError: somebody has to go "
        "first, and who, the scheduler decides.",
    },
)

LATENCIES = known(
    Latencies,
    {
        "from_the_start": "The time to the first token was counted from the first arrival of all. Everybody's wait "
        "begins with their own.",
        "not_since_arrival": "The first token's time on the clock came back. A wait begins at the arrival.",
        "to_the_last": "That is the time to the *last* token: the whole answer.",
        "waiting_as_zero": "A request without a token was counted as a wait of 0. Nothing is known of it yet: leave it "
        "out.",
        "waiting_as_infinite": "A request without a token was counted as an endless wait. It has not ended: leave it "
        "out.",
        "between_any_two": "The gaps lie between tokens of different requests. A reader sees the tokens of one.",
        "mean_of_each": "Gaps were averaged within each request first. That hides the pause that a reader notices: "
        "put all gaps together.",
        "longest_of_each": "The longest gap of each request was taken. Put all gaps together.",
        "since_the_first": "Times were counted from the first token. A gap lies between a token and the one before it.",
        "first_among_gaps": "The wait for the first token stands among the gaps. It is counted apart.",
        "nothing_is_zero": "Where there was nothing to take a percentile of, 0 came back: the best of all latencies. "
        "Return None.",
        "mean": "A mean came back, where a percentile was asked for.",
        "interpolated": "The percentile lies between two measurements. Take one that occurred: the smallest that "
        "`percent` of all do not exceed.",
        "unsorted": "The values were not sorted.",
        "from_the_longest": "The values were sorted from the longest on.",
        "one_further": "That is one value further where percent · count is a multiple of 100. The rank is ⌈percent · "
        "count / 100⌉, counted from 1.",
        "rounded_down": "The rank was rounded down: fewer than `percent` of all values do not exceed that one. Round "
        "up.",
        "float_rank": "percent / 100 · count is a little too large in floating point, and rounding up made it one rank "
        "more (numpy's percentile does the same). Whole numbers: −(−percent · count // 100).",
    },
)
