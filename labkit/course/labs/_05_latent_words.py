"""Lab 05: the mistakes in latent attention that its checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs import _05_latent_mistakes as wrong

MLA = (
    Mistake(
        "norm_missing",
        "The latent was not normalised. It goes through an RMSNorm with the scale norm_R before anything is made of "
        "it, and before it is cached.",
        like=wrong.mla_norm_missing,
    ),
    Mistake("norm_without_scale", "The norm's scale, norm_R, is missing.", like=wrong.mla_norm_without_scale),
    Mistake(
        "layer_norm",
        "A mean was subtracted: that is LayerNorm. RMSNorm divides by the root of the mean square and nothing else.",
        like=wrong.mla_layer_norm,
    ),
    Mistake(
        "norm_over_all",
        "The rotary key took part in the norm. Cut it off first: the norm is over the R values of the latent.",
        like=wrong.mla_norm_over_all,
    ),
    Mistake(
        "raw_latent_cached",
        "The outputs are right, but the latent is returned as it was before the norm. What reads the cache later would "
        "have to normalise it again, every step.",
        like=wrong.mla_raw_latent_cached,
    ),
    Mistake(
        "raw_key_cached",
        "The outputs are right, but the rotary key is returned as it was before it turned. Its position is known now; "
        "cache it turned.",
        like=wrong.mla_raw_key_cached,
    ),
    Mistake(
        "key_not_turned",
        "The query's rotary part turned and the key's did not: scores then depend on where a query stands, not on how "
        "far away a key is.",
        like=wrong.mla_key_not_turned,
    ),
    Mistake("query_not_turned", "The key turned and the query's last r dimensions did not.",
            like=wrong.mla_query_not_turned),
    Mistake("nothing_turned", "Nothing turned: this attention does not know positions.", like=wrong.mla_nothing_turned),
    Mistake(
        "by_halves",
        "The rotary dimensions turned by halves. DeepSeek's pairs are neighbours: rope(…, interleaved=True).",
        like=wrong.mla_by_halves,
    ),
    Mistake(
        "from_zero",
        "Positions were counted from zero; `positions_BS` says where each row begins. (The outputs are the same, since "
        "only distances count, but the cached keys are not.)",
        like=wrong.mla_from_zero,
    ),
    Mistake("not_causal", "Tokens look ahead: is_causal=True is missing.", like=wrong.mla_not_causal),
    Mistake(
        "scale_of_nope",
        "Scores were scaled with n^(−1/2). A query is n + r wide, so it is (n + r)^(−1/2).",
        like=wrong.mla_scale_of_nope,
    ),
    Mistake("unscaled", "Scores were not scaled: (n + r)^(−1/2) is missing.", like=wrong.mla_unscaled),
    Mistake(
        "value_first",
        "kv_up was cut with the values in front. In each head the n rows of the key come first, then the v rows of the "
        "value.",
        like=wrong.mla_value_first,
    ),
    Mistake(
        "rope_first",
        "The query was cut with the rotary part in front; it is the last r dimensions.",
        like=wrong.mla_rope_first,
    ),
    Mistake(
        "rope_left_out",
        "The scores lack their rotary part: queries and keys are n + r wide, the rotary key being the same for all "
        "heads.",
        like=wrong.mla_rope_left_out,
    ),
    Mistake("heads_last", "The outputs are [B, S, H, v]; asked for was [B, H, S, v].", like=wrong.mla_heads_last),
    Mistake(
        "key_with_a_head",
        "The rotary key kept a dimension for heads; it is shared by all of them, [B, S, r].",
        like=wrong.mla_key_with_a_head,
    ),
    Mistake(
        "kv_cached",
        "Keys and values of all heads were returned for the cache. Then nothing is saved: return what they were made "
        "from, the latent and the rotary key.",
        like=wrong.mla_kv_cached,
    ),
)  # fmt: skip

ABSORB = (
    Mistake(
        "scale_of_the_latent",
        "Scores were scaled with (R + r)^(−1/2), which is what torch's attention does on its own when it sees the "
        "folded query. Folding changes no score, so the scale stays that of the query that came in: (n + r)^(−1/2).",
        like=wrong.absorb_scale_of_the_latent,
    ),
    Mistake(
        "scale_of_the_rank",
        "Scores were scaled with R^(−1/2). Folding changes no score: the scale stays (n + r)^(−1/2).",
        like=wrong.absorb_scale_of_the_rank,
    ),
    Mistake(
        "scale_of_nope",
        "Scores were scaled with n^(−1/2). The query that came in is n + r wide.",
        like=wrong.absorb_scale_of_nope,
    ),
    Mistake("unscaled", "Scores were not scaled: (n + r)^(−1/2) is missing.", like=wrong.absorb_unscaled),
    Mistake(
        "rope_left_out",
        "The rotary part of the scores is missing, query_BHr · rotary_BKr: without it this layer knows no positions.",
        like=wrong.absorb_rope_left_out,
    ),
    Mistake("mask_ignored", "`seen_BK` is not read, so padding is attended.", like=wrong.absorb_mask_ignored),
    Mistake(
        "mask_of_zeros",
        "Masked scores became 0. exp(0) is 1, so padding still gets its share, and more than a key with a negative "
        "score. Which number has no share?",
        like=wrong.absorb_mask_of_zeros,
    ),
    Mistake(
        "masked_afterwards",
        "Shares were zeroed after the softmax, so the rest no longer sums to one. Mask the scores before it.",
        like=wrong.absorb_masked_afterwards,
    ),
    Mistake(
        "mask_upside_down",
        "The mask is upside down: `masked_fill` fills where its mask is true, and `seen_BK` is true where one may "
        "look.",
        like=wrong.absorb_mask_upside_down,
    ),
    Mistake(
        "value_first",
        "kv_up was cut with the values in front. In each head the n rows of the key come first.",
        like=wrong.absorb_value_first,
    ),
    Mistake(
        "over_heads",
        "The softmax runs over the heads. It has to run over the positions, the last dimension.",
        like=wrong.absorb_over_heads,
    ),
    Mistake(
        "value_not_folded",
        "What was read is still a latent, R wide. The value's matrix of each head makes its output of it, v wide.",
        like=wrong.absorb_value_not_folded,
    ),
    Mistake("first_head", "All heads used the first head's matrix.", like=wrong.absorb_first_head),
    Mistake(
        "transposed",
        "Where n = R, the key's matrix was applied the wrong way round. q · (W c) = (Wᵀ q) · c: contract the query "
        "with the matrix's *n* dimension.",
        like=wrong.absorb_transposed,
    ),
    Mistake(
        "query_scaled",
        "The output is right; the folded query that was returned has the scale in it. Asked for is the plain W_UKᵀ q.",
        like=wrong.absorb_query_scaled,
    ),
    Mistake(
        "rotary_beside",
        "The output is right; the folded query that was returned has the rotary part attached. Return the R values "
        "that meet the latent.",
        like=wrong.absorb_rotary_beside,
    ),
)
