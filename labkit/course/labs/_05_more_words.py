"""Lab 05: more mistakes that its checks know, and the words for each; `_05_more_mistakes` makes them."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs import _05_more_mistakes as wrong

ROPE = (
    Mistake(
        "coarse_positions",
        "Positions were rounded: bfloat16 has eight significant bits, so beyond 256 neighbours fall together. Angles "
        "are made in float32.",
        like=wrong.rope_coarse,
    ),
    Mistake(
        "start_only",
        "Only the first position of each row was read, and the others were counted on from it. In front of a padded "
        "row positions stand still: 0, 0, 0, 1, 2. Read all of them.",
        like=wrong.rope_start_only,
    ),
    Mistake(
        "without_heads",
        "Angles [B, S, d/2] met pairs [B, H, S, d/2] as they are. Shapes are lined up from the right, so the rows of "
        "the batch fell on the heads. Put a dimension of 1 after B: [B, 1, S, d/2].",
        like=wrong.rope_without_heads,
    ),
    Mistake(
        "double_exponent",
        "Frequencies fall twice as fast: torch.arange(0, d, 2) is 2i already, so a factor of 2 before it is one too "
        "many. Pair i has theta^(−2i/d).",
        like=wrong.rope_double_exponent,
    ),
    Mistake(
        "no_minus",
        "Neither member of a pair has a minus, so lengths change. One minus: (a cos − b sin, b cos + a sin).",
        like=wrong.rope_no_minus,
    ),
    Mistake(
        "turned_first",
        "The second member was made from the first one *after* that had turned. Both need the pair as it was: keep "
        "the old first member until the second is made.",
        like=wrong.rope_turned_first,
    ),
    Mistake(
        "cos_for_sin",
        "Cosine and sine have changed places: at position 0 nothing turns, so a is multiplied by cos 0 = 1.",
        like=wrong.rope_exchanged,
    ),
    Mistake(
        "woven",
        "By halves, the pairs turned rightly and were put back as neighbours (stack and flatten). There the first "
        "members stay in the first half: torch.cat.",
        like=wrong.rope_woven,
    ),
)

CACHE_BYTES = (
    Mistake(
        "mha_grouped",
        "`mha` took num_kv_heads. In multi-head attention each of the num_heads query heads has a key and a value head "
        "of its own.",
        like=wrong.cache_mha_grouped,
    ),
    Mistake(
        "gqa_single",
        "`gqa` was given a single key and value head, as in MQA; it has num_kv_heads of them.",
        like=wrong.cache_gqa_single,
    ),
    Mistake(
        "queries_per_group",
        "num_heads // num_kv_heads is how many queries share one key head. How many key heads are there?",
        like=wrong.cache_queries_per_group,
    ),
    Mistake(
        "with_queries",
        "Queries were counted beside keys and values. A query is used once, in its own step, and never kept.",
        like=wrong.cache_with_queries,
    ),
    Mistake(
        "no_width",
        "Heads were counted, not their values: each key and each value is `head_dim` wide.",
        like=wrong.cache_no_width,
    ),
    Mistake(
        "window_added",
        "Layers with a window were counted twice, once in full and once with their window. Take `window_layers` off "
        "the others.",
        like=wrong.cache_window_added,
    ),
    Mistake(
        "window_swapped",
        "The wrong layers got the window: `window_layers` of them have one, the other num_layers − window_layers keep "
        "everything.",
        like=wrong.cache_window_swapped,
    ),
    Mistake(
        "window_larger",
        "A layer with a window was given the larger of window and positions. It keeps at most `window`: the smaller.",
        like=wrong.cache_window_larger,
    ),
)

MASK = (
    Mistake(
        "one_ahead",
        "Every query sees one token ahead. With `tril`, the diagonal of the last S rows of a square is K − S; with "
        "positions, key ≤ query.",
        like=wrong.mask_one_ahead,
    ),
    Mistake(
        "other_triangle",
        "This is the other triangle: queries see what comes after them. (`triu` is for masks that say what is "
        "forbidden.)",
        like=wrong.mask_other_triangle,
    ),
    Mistake(
        "window_both_sides",
        "The window reaches to both sides, so with it queries look ahead. It goes back only, and the causal comparison "
        "stays.",
        like=wrong.mask_both_sides,
    ),
    Mistake(
        "itself_if_empty",
        "A query sees itself only where its row would be empty otherwise. That avoids NaN too; asked for is the "
        "simpler rule: every query sees its own position, also padding that has real keys before it.",
        like=wrong.mask_itself_if_empty,
    ),
    Mistake(
        "rows_and_columns",
        "Padding was taken off rows as well as columns, so padding queries lose the real keys before them. Only keys "
        "are forbidden for being padding.",
        like=wrong.mask_rows_and_columns,
    ),
    Mistake(
        "first_row",
        "Every sequence got the padding of the first one. real_BK has a row for each: [B, 1, K] against [S, K].",
        like=wrong.mask_first_row,
    ),
    Mistake(
        "left_only",
        "Only padding in front of the first real token was taken off. It may stand behind the text as well: read all "
        "of real_BK.",
        like=wrong.mask_left_only,
    ),
    Mistake(
        "by_length",
        "Real tokens were counted and taken to stand in front. With padding on the left they do not: read *where* "
        "real_BK is true.",
        like=wrong.mask_by_length,
    ),
    Mistake(
        "either",
        "A key was allowed for being real *or* for being in reach. It has to be both: &, not |.",
        like=wrong.mask_either,
    ),
    Mistake(
        "square",
        "There are more keys than queries here, and some table has another size. Queries are the last S positions: a "
        "table of all positions is [K, K], of which the last S rows are asked for; one of [S, S] lacks the keys in the "
        "cache, and so does torch.eye(S).",
        like=wrong.mask_square,
        when=wrong.a_table_of_another_size,
    ),
)

MLA = (
    Mistake(
        "heads_by_view",
        "[B, S, H·d] was read as [B, H, S, d]. The numbers fit, but a head then holds pieces of all heads: view it as "
        "[B, S, H, d] first, then transpose.",
        like=wrong.mla_heads_by_view,
    ),
    Mistake(
        "query_by_view",
        "The queries [B, S, H·d] were read as [B, H, S, d], which mixes heads and positions: view them as "
        "[B, S, H, d] first, then transpose.",
        like=wrong.mla_query_by_view,
    ),
    Mistake(
        "expanded_raw",
        "The cached latent is normed, but keys and values were made from the one before the norm. Both are made from "
        "what is cached.",
        like=wrong.mla_expanded_raw,
    ),
    Mistake(
        "unit_length",
        "The latent was brought to length 1. RMSNorm divides by the root of the *mean* square, so the length becomes "
        "the root of R before the scale.",
        like=wrong.mla_unit_length,
    ),
    Mistake(
        "rotary_rows_first",
        "kv_down was cut with the rotary key in front. Its R rows of the latent come first, the last r make the rotary "
        "key.",
        like=wrong.mla_rotary_rows_first,
    ),
    Mistake(
        "scale_of_the_rank",
        "Scores were scaled with R^(−1/2). They are products of queries and keys, n + r wide: (n + r)^(−1/2).",
        like=wrong.mla_scale_of_the_rank,
    ),
    Mistake(
        "scaled_apart",
        "The two parts of the score were scaled apart, with n^(−1/2) and r^(−1/2). Add them first: the sum is one "
        "product over n + r, scaled with (n + r)^(−1/2).",
        like=wrong.mla_scaled_apart,
    ),
    Mistake(
        "crossed",
        "Queries have their rotary part behind, keys in front, so the parts do not meet. Put them in the same order.",
        like=wrong.mla_crossed,
    ),
    Mistake(
        "mask_of_zeros",
        "Scores of later tokens became 0. exp(0) is 1, so the future still gets a share: fill with minus infinity "
        "before the softmax.",
        like=wrong.mla_mask_of_zeros,
    ),
    Mistake(
        "cache_exchanged",
        "The outputs are right, but latent and rotary key were returned in the other order: (y, latent, rotary).",
        like=wrong.mla_cache_exchanged,
    ),
    Mistake(
        "heads_joined",
        "The heads were joined already, [B, S, H·v]. That is the next step, for the output's matrix; asked for was "
        "[B, H, S, v].",
        like=wrong.mla_heads_joined,
    ),
)

ABSORB = (
    Mistake(
        "half_scaled",
        "Only the content part of the scores was scaled. * binds before +: put the sum of both parts in brackets.",
        like=wrong.absorb_half_scaled,
    ),
    Mistake(
        "other_half_scaled",
        "Only the rotary part of the scores was scaled. * binds before +: put the sum of both parts in brackets.",
        like=wrong.absorb_other_half_scaled,
    ),
    Mistake(
        "scaled_apart",
        "The two parts of the score were scaled apart, with n^(−1/2) and r^(−1/2). Add them first, then scale the sum "
        "with (n + r)^(−1/2).",
        like=wrong.absorb_scaled_apart,
    ),
    Mistake(
        "mask_without_heads",
        "seen_BK [B, K] met scores [B, H, K] as it is, and shapes are lined up from the right: its rows fall on the "
        "heads. Put a dimension of 1 between: seen_BK[:, None].",
        like=wrong.absorb_mask_without_heads,
    ),
    Mistake(
        "cache_zeroed",
        "Latents of padding were set to zero, so their scores are 0 and exp(0) is 1: they take a share of nothing, and "
        "the rest gets too little. Mask the scores.",
        like=wrong.absorb_cache_zeroed,
    ),
    Mistake(
        "exchanged",
        "The outputs are right, but what was read and the folded query were returned in the other order: (y, folded, "
        "read).",
        like=wrong.absorb_exchanged,
    ),
    Mistake(
        "read_with_rotary",
        "What was read has the rotary keys in it, R + r wide. They help to find a token and are no part of its value: "
        "read the latents alone.",
        like=wrong.absorb_read_with_rotary,
    ),
)
