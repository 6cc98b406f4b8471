"""Lab 05: the mistakes in rotating, counting and masking that its checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs import _05_mistakes as wrong

ROPE = (
    Mistake(
        "always_halves",
        "`interleaved` is not read: dimension i always turns with i + d/2. With interleaved=True neighbours turn "
        "together, 0 with 1, 2 with 3.",
        like=wrong.rope_always_halves,
    ),
    Mistake(
        "always_neighbours",
        "`interleaved` is not read: neighbours always turn together. With interleaved=False dimension i turns with "
        "i + d/2.",
        like=wrong.rope_always_neighbours,
    ),
    Mistake("swapped", "The two ways to pair have changed places: False is by halves.", like=wrong.rope_swapped),
    Mistake(
        "left_in_halves",
        "Neighbours turned together, and then the result was left with all first members before all second ones. "
        "Scores do not notice if queries and keys are both so (transformers does it). Here pairs stay where they were.",
        like=wrong.rope_left_in_halves,
    ),
    Mistake(
        "backwards",
        "Everything turns the other way round. Scores between queries and keys would be the same, but a checkpoint "
        "read by others would not: the first of a pair becomes first·cos − second·sin.",
        like=wrong.rope_backwards,
    ),
    Mistake(
        "no_rotation",
        "Both members of a pair have a minus, so lengths change: that is a reflection somewhere and no rotation. "
        "One minus: (a cos − b sin, b cos + a sin).",
        like=wrong.rope_no_rotation,
    ),
    Mistake(
        "half_exponent",
        "Frequencies fall only half as fast: pair i has theta^(−2i/d), and the last pair's exponent is nearly −1, "
        "not −1/2.",
        like=wrong.rope_half_exponent,
    ),
    Mistake(
        "growing",
        "The minus in the exponent is missing, so later pairs turn faster instead of slower.",
        like=wrong.rope_growing,
    ),
    Mistake("slow_first", "The slow pairs come first. Pair 0 turns by one radian a step.", like=wrong.rope_slow_first),
    Mistake(
        "one_angle",
        "Every pair turns by the same angle. Each has its own: theta^(−2i/d) radians a step for pair i.",
        like=wrong.rope_one_angle,
    ),
    Mistake("theta_fixed", "`theta` is not read; it is always 10,000.", like=wrong.rope_theta_fixed),
    Mistake(
        "from_zero",
        "Positions were counted from zero. They come as an argument, since a sequence may go on from a cache or begin "
        "after padding.",
        like=wrong.rope_from_zero,
    ),
    Mistake(
        "first_row",
        "Every row took the positions of the first. With padding each row has its own.",
        like=wrong.rope_first_row,
    ),
    Mistake(
        "from_one",
        "All positions are one too high. Scores do not see it, a cache that was filled by others does.",
        like=wrong.rope_from_one,
    ),
    Mistake(
        "along_heads",
        "The positions run along the heads. x is [B, H, S, d] and positions are [B, S]: a dimension of 1 is missing "
        "after B.",
        like=wrong.rope_along_heads,
    ),
    Mistake(
        "crossed_tables",
        "Tables as wide as x were laid out for the other kind of pairs, so the two members of a pair turn by "
        "different angles. By halves the angles stand one after another and then again (cat), by neighbours each "
        "stands twice (repeat_interleave).",
        like=wrong.rope_crossed_tables,
    ),
)

CACHE_BYTES = (
    Mistake(
        "query_heads",
        "Query heads were counted. Queries are never cached: groups of them share one key and one value head.",
        like=wrong.cache_query_heads,
    ),
    Mistake("keys_only", "Only keys were counted, and values are cached too.", like=wrong.cache_keys_only),
    Mistake(
        "latent_twice",
        "The latent and the rotary key were both counted twice. One latent makes keys *and* values: there is no pair "
        "in MLA's cache.",
        like=wrong.cache_latent_twice,
    ),
    Mistake(
        "latent_for_each",
        "The latent was counted twice, once for keys and once for values. Both are made from the same one.",
        like=wrong.cache_latent_only_twice,
    ),
    Mistake(
        "rope_forgotten",
        "The rotary key is missing. It depends on the position, so it cannot be made from the latent by a matrix and "
        "has to be kept beside it.",
        like=wrong.cache_rope_forgotten,
    ),
    Mistake(
        "rope_each_head",
        "The rotary key was counted once for each head; all heads share one.",
        like=wrong.cache_rope_each_head,
    ),
    Mistake(
        "latent_each_head",
        "The latent was counted once for each head; all heads share one.",
        like=wrong.cache_latent_each_head,
    ),
    Mistake(
        "mla_expanded",
        "These are MLA's keys and values after they were expanded. What is cached is what they are made from.",
        like=wrong.cache_mla_expanded,
    ),
    Mistake(
        "mqa_grouped",
        "`mqa` took num_kv_heads. Multi-query attention has a single key and value head.",
        like=wrong.cache_mqa_grouped,
    ),
    Mistake(
        "window_ignored",
        "Layers with a window were counted like the others; they keep at most `window` positions.",
        like=wrong.cache_window_ignored,
    ),
    Mistake(
        "window_always_full",
        "A layer with a window was given a full window even where there are fewer positions. Which of the two is "
        "smaller?",
        like=wrong.cache_window_always_full,
    ),
    Mistake(
        "window_everywhere",
        "Every layer got the window. Only `window_layers` of them have one.",
        like=wrong.cache_window_everywhere,
    ),
    Mistake(
        "window_layers_dropped",
        "Layers with a window were left out; they keep the last `window` positions.",
        like=wrong.cache_window_layers_dropped,
    ),
    Mistake("two_bytes", "`bytes_per_value` is not read; it is always 2.", like=wrong.cache_two_bytes),
    Mistake(
        "values_counted",
        "These are values, not bytes: `bytes_per_value` is missing.",
        like=wrong.cache_values_counted,
    ),
    Mistake("one_layer", "This is one layer; every layer has a cache of its own.", like=wrong.cache_one_layer),
    Mistake("one_position", "`positions` is not read: this is one position.", like=wrong.cache_one_position),
)

MASK = (
    Mistake(
        "upside_down",
        "True and false have changed places. For torch's attention True means: may look. (Its MultiheadAttention and "
        "`masked_fill` want the opposite, which is how this happens.)",
        like=wrong.mask_upside_down,
    ),
    Mistake(
        "empty_rows",
        "A padding query sees nothing at all. The softmax of a row of minus infinities is 0/0: NaN, which the next "
        "layer spreads over the whole row of the batch. Let every query see at least itself.",
        like=wrong.mask_empty_rows,
    ),
    Mistake(
        "from_the_corner",
        "The triangle starts in the upper left corner, so the first query sees only the first key. The queries are "
        "the *last* of the keys: with K − S keys in the cache, query i stands at position K − S + i.",
        like=wrong.mask_from_the_corner,
    ),
    Mistake(
        "eye_in_the_corner",
        "What lets a query see itself starts in the upper left corner. With a cache, query i is key K − S + i.",
        like=wrong.mask_eye_in_the_corner,
    ),
    Mistake(
        "rows_padded",
        "Padding was taken from the queries (rows), so real queries still read padding keys. It is keys that must not "
        "be read: columns.",
        like=wrong.mask_rows_padded,
    ),
    Mistake(
        "not_itself",
        "A query does not see its own position. The first token would see nothing: use ≤, not <.",
        like=wrong.mask_not_itself,
    ),
    Mistake("not_causal", "Queries look ahead: key ≤ query is missing.", like=wrong.mask_not_causal),
    Mistake(
        "window_wide",
        "The window is one too wide. A query sees `window` positions and is one of them itself.",
        like=wrong.mask_window_wide,
    ),
    Mistake(
        "window_narrow",
        "The window is one too narrow: a query sees itself and window − 1 positions before it.",
        like=wrong.mask_window_narrow,
    ),
    Mistake("window_ignored", "`window` is not read.", like=wrong.mask_window_ignored),
    Mistake(
        "window_of_nothing",
        "window = 0 was taken at its word, and queries see only themselves. Here 0 means no limit.",
        like=wrong.mask_window_of_nothing,
    ),
    Mistake("padding_ignored", "`real_BK` is not read: padding is looked at.", like=wrong.mask_padding_ignored),
    Mistake(
        "open_rows",
        "Rows that saw nothing were opened for everything. That avoids NaN too (transformers has done it), but lets a "
        "query look ahead and at padding. Here it sees itself alone.",
        like=wrong.mask_open_rows,
    ),
    Mistake(
        "padding_sees_padding",
        "Padding queries see the padding before them. No row is empty, but here such a query should see itself and "
        "real keys before it, nothing else.",
        like=wrong.mask_padding_sees_padding,
    ),
    Mistake(
        "additive",
        "This is the additive form, 0 and minus infinity. Both say the same; asked for was the boolean one, True where "
        "a query may look.",
        like=wrong.mask_additive,
    ),
    Mistake(
        "without_heads",
        "The dimension for the heads is missing, [B, S, K]. Without it, torch would take the batch for the heads: "
        "[B, 1, S, K].",
        like=wrong.mask_without_heads,
    ),
    Mistake("transposed", "Rows and columns have changed places: queries are rows.", like=wrong.mask_transposed),
)
