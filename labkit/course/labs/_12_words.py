"""Lab 12: the mistakes in tensors that its checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs._12_mistakes import LeftPad, PagedAttention


def known(kind: type, words: dict[str, str]) -> tuple[Mistake, ...]:
    """A mistake for each name that the class knows."""
    return tuple(Mistake(name, says, like=kind(name)) for name, says in words.items())


_LEFT_PAD = known(
    LeftPad,
    {
        "right": "The padding stands on the right. The next token is read off the last column, and there it would "
        "follow padding.",
        "both_sides": "Padding stands on both sides. All of it belongs on the left, so that every prompt ends in the "
        "last column.",
        "mask_from_ids": "The mask was made from the ids: whatever equals the padding token counts as padding. A "
        "prompt may hold that token itself (many models pad with the end token). Make the mask from the lengths.",
        "mask_inverted": "The mask is the wrong way round: 1 where a token is real, 0 at padding.",
        "mask_all": "The mask is 1 everywhere, so padding is looked at as if somebody had written it.",
        "columns": "The positions count columns, padding included. A prompt's first token is at position 0 wherever it "
        "stands: count the mask.",
        "columns_masked": "The positions count columns, and only padding was set to 0. A prompt's first token is at "
        "position 0, too: count the mask.",
        "from_one": "The positions count from 1. The first token of a text has position 0: cumsum − 1.",
        "below_zero": "Padding has position −1. It is seen by nobody, but a table of positions has no row −1: clamp "
        "to 0.",
        "along_batch": "The mask was counted along the batch, from row to row. Positions run along a row: dim 1.",
        "backwards": "The positions count from the end of the prompt. They rise from its start.",
        "zero_for_pad": "0 was written for padding, whatever `pad` was given.",
        "cut_to_shortest": "The prompts were cut to the shortest one. Pad to the longest; nothing a user wrote is "
        "dropped.",
        "one_too_wide": "There is a column that no prompt needs. The longest prompt has no padding at all.",
        "reversed": "The prompts came out back to front. If they were flipped to pad them, flip them back.",
        "empty_accepted": "An empty prompt came through as nothing but padding, and its answer would follow padding. "
        "Raise ValueError.",
    },
)
_AGAIN = [
    Mistake(mistake.name, mistake.says, like=LeftPad(f"{mistake.name}, zero at padding")) for mistake in _LEFT_PAD[:2]
]
LEFT_PAD = (*_LEFT_PAD, *_AGAIN)

_PAGED_ATTENTION = known(
    PagedAttention,
    {
        "no_table": "The table has no effect: rows 0, 1, 2, … of the pool were read. They belong to whoever got these "
        "blocks.",
        "others_table": "Every sequence was read through the first one's table. That is the answer to somebody "
        "else's question.",
        "first_block": "All positions were read from the first block on, as if the blocks lay side by side. Each "
        "position has its own: tables[:, position // size].",
        "block_for_row": "A block's number was taken for a row. Block b begins at row b · size.",
        "block_plus_offset": "The block's number and the offset were added. Block b begins at row b · size: multiply "
        "first.",
        "first_rows": "Every position read the first row of its block. Add the offset, position % size.",
        "sorted_blocks": "The blocks were taken in the order of their numbers. A table is in the order of positions.",
        "everything": "Nothing is masked: a query looks at rows past its sequence's length, which belong to nobody or "
        "to others.",
        "begun_blocks": "A sequence's last block was seen whole. Past its length nobody has written, or somebody else "
        "has: compare positions, not blocks, with the length.",
        "full_blocks": "Only blocks that are full were seen. The last one is begun, and the newest tokens stand in it.",
        "zero_is_nobody": "Block 0 was taken for no block. It is a block like the others; how far a table counts, the "
        "length says.",
        "longest": "Every sequence was given the longest one's length. Each has its own: lengths[:, None].",
        "one_too_many": "One position too many is seen. A sequence of length n has positions 0 to n − 1: `<`.",
        "itself_left_out": "The newest position is missing. Its key is in the cache already, and a token sees itself.",
        "nan": "NaN came out: a weight of 0 times a value that is NaN is NaN. Rows that nobody has written may hold "
        "anything, so mask the *values* (and keys), not only the logits.",
        "zero_mask": "Masked logits were set to 0, and exp(0) is 1. Strike out with −∞.",
        "over_heads": "The softmax went over the heads. It goes over positions.",
        "over_batch": "The softmax went over the batch, so that sequences shared their weights. It goes over a "
        "sequence's own positions.",
        "over_groups": "The softmax went over the groups of heads. It goes over positions.",
        "no_softmax": "The softmax is missing: logits were taken for weights.",
        "mean": "Every position has the same weight. Queries and keys have no effect.",
        "heads_in_turn": "Query heads took the key heads in turn, 0 1 0 1. With grouped queries, neighbours share: "
        "0 0 1 1. `repeat_interleave`, not `repeat`.",
        "heads_shuffled": "The results are right, and in the places of other heads: groups and heads of a group were "
        "exchanged when they were put together.",
        "no_scale": "The logits were not scaled.",
        "root_scale": "The logits were scaled by 1/√d. The model says its own scale; use the argument.",
        "scale_twice": "The logits were scaled twice.",
        "divided": "The logits were divided by the scale. It is a factor.",
        "swapped": "Keys and values were exchanged.",
    },
)
_OVER = {
    "over_heads": ("of all", "minus infinity"),
    "over_batch": ("minus infinity",),
    "over_groups": ("minus infinity",),
}
PAGED_ATTENTION = (
    *_PAGED_ATTENTION,
    *(
        Mistake(mistake.name, mistake.says, like=PagedAttention(f"{mistake.name}, {how}"))
        for mistake in _PAGED_ATTENTION
        for how in _OVER.get(mistake.name, ())
    ),
)
