"""Lab 06: the mistakes in a cached step that its check knows, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs import _06_step_mistakes as wrong

CACHED_STEP = (
    Mistake(
        "position_counts_padding",
        "The new token's position is the length of the cache, padding included. A row with three pads would stand "
        "three places too far along. Count the real tokens of each row.",
        like=wrong.step_position_of_the_cache,
    ),
    Mistake(
        "position_zero",
        "The new token stands at position 0, or is not rotated at all, which is the same. That is what happens if a "
        "model is called with one token and never told how many came before.",
        like=wrong.step_position_zero,
    ),
    Mistake(
        "one_behind",
        "The new token got the position of the last cached one. Positions count from 0, so after n tokens it is n.",
        like=wrong.step_one_behind,
    ),
    Mistake(
        "one_ahead",
        "The new token stands one place too far. Positions count from 0, so after n tokens it is n.",
        like=wrong.step_one_ahead,
    ),
    Mistake(
        "position_of_the_first_row",
        "All rows got the position of the first. Each has its own number of real tokens: sum over dim 1, row by row.",
        like=wrong.step_position_of_the_first_row,
    ),
    Mistake(
        "position_of_all_rows",
        "The real tokens of all rows were counted together. `real_BS.sum()` runs over the batch too; sum over dim 1.",
        like=wrong.step_position_of_all_rows,
    ),
    Mistake(
        "position_without_its_dimension",
        "The positions have the shape [B]; `rotate` wants [B, S], here [B, 1]. Torch broadcasts the B positions along "
        "the heads, or fails where the sizes do not fit. `sum(dim=1, keepdim=True)`.",
        like=wrong.step_position_without_its_dimension,
    ),
    Mistake(
        "last_entry_of_nothing",
        "The position was read from the last entry of a running sum, and an empty cache has no last entry. Sum over "
        "dim 1; the sum of nothing is 0.",
        like=wrong.step_position_of_the_last_entry,
        when=wrong.no_last_entry,
    ),
    Mistake(
        "query_counts_padding",
        "The key is right, and the query stands at the length of the cache, padding included. Both belong to one token "
        "and have one position.",
        like=wrong.step_query_counts_padding,
    ),
    Mistake(
        "key_counts_padding",
        "The query is right, and the key stands at the length of the cache, padding included. Both belong to one token "
        "and have one position.",
        like=wrong.step_key_counts_padding,
    ),
    Mistake("query_not_rotated", "The new query is not rotated.", like=wrong.step_query_not_rotated),
    Mistake(
        "key_not_rotated",
        "The new key went into the cache without its rotation. All others there have theirs.",
        like=wrong.step_key_not_rotated,
    ),
    Mistake(
        "rotated_again",
        "The keys in the cache were rotated once more. They were stored with their rotation; each step would turn "
        "them further.",
        like=wrong.step_cache_rotated_again,
    ),
    Mistake(
        "value_rotated",
        "The value was rotated. Positions belong in the comparison of query and key; what is read stays as it is.",
        like=wrong.step_value_rotated,
    ),
    Mistake(
        "padding_seen",
        "The padding is seen. Whatever lies there gets its share of the softmax, and a request's answer depends on "
        "how far it was padded.",
        like=wrong.step_padding_seen,
    ),
    Mistake(
        "new_token_unseen",
        "The new token does not see itself. Causal means: everything up to and including itself.",
        like=wrong.step_new_token_unseen,
    ),
    Mistake(
        "causal_of_one",
        "Only the first slot of the cache is seen. `is_causal=True` lays its triangle from the top left, so the first "
        "query sees the first key; ours is the newest, and what it must not see is the padding alone.",
        like=wrong.step_causal_of_one,
    ),
    Mistake("sees_only_itself", "The cache is masked; only the new token is seen.", like=wrong.step_only_itself),
    Mistake(
        "mask_inverted",
        "The mask is upside down: padding is seen and tokens are not. Attention wants to know where *not* to look; "
        "`real_BS` says where to.",
        like=wrong.step_mask_inverted,
    ),
    Mistake(
        "mask_too_short",
        "The mask has S entries and there are S + 1 keys now. The new token needs its own.",
        like=wrong.step_mask_without_the_new,
    ),
    Mistake(
        "mask_in_front",
        "The new token's True stands at the front of the mask, so all others are one slot off. Its key is the last.",
        like=wrong.step_mask_in_front,
    ),
    Mistake(
        "mask_added",
        "The mask was added to the logits as ones and zeros, which hides nothing. Hidden logits become minus infinity: "
        "`masked_fill(~seen, float('-inf'))`.",
        like=wrong.step_mask_added,
    ),
    Mistake(
        "mask_multiplied",
        "The logits were multiplied by the mask. A hidden logit is 0 then, and e⁰ = 1 has its share; it must be minus "
        "infinity.",
        like=wrong.step_mask_multiplied,
    ),
    Mistake(
        "mask_after_softmax",
        "The weights were masked behind the softmax, so they no longer sum to one. Mask the logits before it.",
        like=wrong.step_mask_after_softmax,
    ),
    Mistake(
        "softmax_over_queries",
        "The softmax runs over the queries, of which there is one. It belongs to the keys: dim −1.",
        like=wrong.step_softmax_over_queries,
    ),
    Mistake("not_scaled", "The logits are not divided by √d.", like=wrong.step_not_scaled),
    Mistake("divided_by_d", "The logits are divided by d; it should be √d.", like=wrong.step_scaled_by_the_width),
    Mistake(
        "multiplied_by_root_d",
        "The logits are multiplied by √d; they should be divided by it.",
        like=wrong.step_multiplied_by_root,
    ),
    Mistake(
        "scaled_by_all_heads",
        "The logits are divided by the root of the model's width, H·d. A head's own width d counts.",
        like=wrong.step_scaled_by_all_heads,
    ),
    Mistake(
        "heads_not_repeated",
        "H query heads meet G key heads. Each key head serves H/G query heads that stand side by side: repeat keys and "
        "values with `repeat_interleave(H // G, dim=1)` for the products.",
        like=wrong.step_heads_not_repeated,
    ),
    Mistake(
        "heads_tiled",
        "Key heads were repeated as 0, 1, 0, 1, …; query heads that share a key stand side by side, so it is 0, 0, …, "
        "1, 1, …: `repeat_interleave`, not `repeat`.",
        like=wrong.step_heads_tiled,
    ),
    Mistake(
        "repeated_in_the_cache",
        "The output is right, and the cache came back with a copy of each key for every query head. Sharing keys was "
        "meant to save that memory; repeat them for the product only.",
        like=wrong.step_repeated_in_the_cache,
    ),
    Mistake(
        "plain_key_stored",
        "The output is right, and the cache holds the new key without its rotation: the next step would compare it as "
        "if it stood at position 0.",
        like=wrong.step_stores_the_plain_key,
    ),
    Mistake(
        "only_the_new_returned",
        "The output is right, and only the new key and value came back. The cache with them at its end is asked for.",
        like=wrong.step_only_the_new,
    ),
    Mistake("values_first", "Keys and values came back in the wrong order: keys first.", like=wrong.step_values_first),
    Mistake(
        "prepended",
        "The new key and value were put in front. The output does not mind, but mask and cache are in order of time: "
        "append.",
        like=wrong.step_prepended,
    ),
    Mistake(
        "cache_not_grown",
        "The output is right, and the cache comes back as it was: the next token would never see this one.",
        like=wrong.step_cache_not_grown,
    ),
    Mistake(
        "last_overwritten",
        "The new key and value took the place of the last cached ones. They come after them.",
        like=wrong.step_last_overwritten,
    ),
)
