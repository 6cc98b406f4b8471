"""Lab 06: the mistakes in a block and a placement that its checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs import _06_mistakes as wrong

BLOCK = (
    Mistake(
        "post_norm",
        "The norm comes after the sum, as in the first transformer of 2017. Then no path leads from the last layer "
        "back to the embedding without a norm in it, and deep stacks need a careful warm-up. Here: norm, part, add.",
        like=wrong.block_post_norm,
    ),
    Mistake(
        "norm_of_the_output",
        "Each part's output is normalised instead of its input. (OLMo 2 does that.) The models of this lab normalise "
        "what goes *in*.",
        like=wrong.block_norm_of_the_output,
    ),
    Mistake(
        "residual_after_norm",
        "The residual is the normed x: `x = norm(x)` has overwritten the stream that everything should be added to. "
        "The norm belongs to the argument alone: attention(norm(x)).",
        like=wrong.block_residual_after_norm,
    ),
    Mistake(
        "first_residual_normed",
        "In the first half attention is added to the normed x. The norm belongs to the argument alone: x + "
        "attention(norm_attention(x)).",
        like=wrong.block_first_residual_normed,
    ),
    Mistake(
        "second_residual_normed",
        "In the second half the feed-forward layer is added to the normed stream. The norm belongs to the argument "
        "alone: x + ffn(norm_ffn(x)).",
        like=wrong.block_second_residual_normed,
    ),
    Mistake(
        "first_output_normed",
        "In the first half attention's output is normalised instead of its input. The norm belongs inside: "
        "attention(norm_attention(x)).",
        like=wrong.block_first_output_normed,
    ),
    Mistake(
        "ffn_reads_attention_alone",
        "The feed-forward layer reads what attention has made. It should read the norm of the whole stream, x with "
        "that added.",
        like=wrong.block_ffn_reads_attention,
    ),
    Mistake(
        "parallel",
        "Attention and feed-forward both read the old x (GPT-J's parallel block). Here the feed-forward layer reads "
        "what attention has already added.",
        like=wrong.block_parallel,
    ),
    Mistake("ffn_first", "The feed-forward layer came before attention.", like=wrong.block_ffn_first),
    Mistake(
        "no_residual",
        "Nothing is added to the stream: every part replaces it. The gradient is then multiplied in every layer, and "
        "after dozens of them it is gone or enormous.",
        like=wrong.block_no_residual,
    ),
    Mistake(
        "attention_replaces",
        "Attention's output replaces the stream; it has to be added to it.",
        like=wrong.block_first_residual_lost,
    ),
    Mistake(
        "ffn_replaces",
        "The feed-forward layer's output replaces the stream; it has to be added to it.",
        like=wrong.block_second_residual_lost,
    ),
    Mistake(
        "stream_lost",
        "The two outputs are added to each other and x itself is not: the stream that came in ends here.",
        like=wrong.block_stream_lost,
    ),
    Mistake(
        "norm_at_the_end",
        "There is one norm too many: the sum is normalised on its way out. A pre-norm block returns the sum.",
        like=wrong.block_norm_at_the_end,
    ),
    Mistake("ffn_missing", "The second half is missing: the feed-forward layer.", like=wrong.block_without_ffn),
    Mistake("attention_missing", "The first half is missing: attention.", like=wrong.block_without_attention),
    Mistake(
        "old_residual",
        "The second sum starts from the x that came into the block, so what attention added is lost again.",
        like=wrong.block_old_residual,
    ),
    Mistake(
        "norms_swapped",
        "The two norms have changed places. Each has a scale of its own, learned for what follows it.",
        like=wrong.block_norms_swapped,
    ),
    Mistake(
        "other_norm_twice",
        "`norm_ffn` was used twice, `norm_attention` not at all.",
        like=wrong.block_other_norm_twice,
    ),
    Mistake("one_norm", "`norm_attention` was used twice, `norm_ffn` not at all.", like=wrong.block_one_norm),
    Mistake(
        "second_norm_missing",
        "The feed-forward layer reads the stream without a norm, and the stream grows with every layer.",
        like=wrong.block_second_norm_lost,
    ),
    Mistake(
        "first_norm_missing",
        "Attention reads the stream without a norm, and the stream grows with every layer.",
        like=wrong.block_first_norm_lost,
    ),
    Mistake("no_norm", "Neither norm was used.", like=wrong.block_no_norm),
    Mistake(
        "detached_residual",
        "The values are right, the gradient is not: x is detached where it is added, so the free path back through the "
        "layers, which is what a residual is for, is cut.",
        like=wrong.block_detached,
    ),
    Mistake(
        "residual_twice",
        "x was added once too often: the second sum already starts from a stream that holds it.",
        like=wrong.block_residual_twice,
    ),
)

PLACEMENT = (
    Mistake(
        "every_from_zero",
        "Layer 0 counts as a multiple. The rule is (i + 1) divisible by `every`: of every pair, the *second* is "
        "sparse.",
        like=wrong.place_from_zero,
    ),
    Mistake(
        "counted_after_the_dense",
        "The n-th layer is counted from the end of the dense ones. It is counted from the start of the model, "
        "whatever `num_dense` is.",
        like=wrong.place_after_dense,
    ),
    Mistake(
        "one_dense_too_many",
        "Layer `num_dense` is dense in yours. Layers are numbered from 0, so the first `num_dense` are those below it.",
        like=wrong.place_one_late,
    ),
    Mistake(
        "one_dense_too_few",
        "Layer `num_dense` − 1 is sparse in yours. Layers are numbered from 0, so the first `num_dense` end with it.",
        like=wrong.place_one_early,
    ),
    Mistake(
        "only_counted",
        "The first value is how many layers are sparse; their numbers are asked for, as a list.",
        when=wrong.only_counted,
    ),
    Mistake(
        "flags",
        "The first value says True or False for every layer; the numbers of the sparse layers are asked for.",
        when=wrong.flags,
    ),
    Mistake(
        "no_list",
        "The first value is not a list. `list(…)` makes one of a range; of a set, `sorted(…)`.",
        when=wrong.no_list,
    ),
    Mistake("numbers_from_one", "The counts are right; layers are numbered from 0.", like=wrong.place_numbers_from_one),
    Mistake("inverted", "Sparse and dense layers have changed places.", like=wrong.place_inverted),
    Mistake("every_ignored", "`every` is not read.", like=wrong.place_every_ignored),
    Mistake("dense_ignored", "`num_dense` is not read.", like=wrong.place_dense_ignored),
    Mistake(
        "either_is_enough",
        "A layer is sparse in yours if one of the two rules says so. Both must.",
        like=wrong.place_either,
    ),
    Mistake("router_forgotten", "A sparse layer has a router too: E rows of width D.", like=wrong.place_no_router),
    Mistake(
        "two_matrices",
        "SwiGLU has three matrices of D × F: gate, up and down. Two were counted.",
        like=wrong.place_two_matrices,
    ),
    Mistake(
        "dense_everywhere",
        "Each sparse layer got a dense one besides. The experts stand in its place.",
        like=wrong.place_dense_everywhere,
    ),
    Mistake("dense_uncounted", "The dense layers are missing from both counts.", like=wrong.place_dense_uncounted),
    Mistake(
        "shared_missing",
        "The shared experts are missing from both counts, or were taken out of the E and the `top_k`. They come on top "
        "of both.",
        like=wrong.place_no_shared,
    ),
    Mistake(
        "shared_not_active",
        "The shared experts count as idle. Every token passes them, over and above its `top_k`.",
        like=wrong.place_shared_among_chosen,
    ),
    Mistake(
        "part_of_the_router",
        "Only the chosen experts' rows of the router were counted as active. To choose, a token must be compared with "
        "all E of them.",
        like=wrong.place_chosen_rows_of_router,
    ),
    Mistake(
        "share_of_everything",
        "Active is total · K/E in yours. Only the routed experts are used in that share; router, shared experts and "
        "dense layers work for every token.",
        like=wrong.place_share_of_total,
    ),
    Mistake("all_active", "All E experts count as active; a token visits `top_k`.", like=wrong.place_all_active),
    Mistake(
        "dense_not_active",
        "The dense layers count as idle. Every token passes them.",
        like=wrong.place_active_without_dense,
    ),
    Mistake(
        "swapped",
        "Total and active have changed places: (sparse, total, active).",
        like=wrong.place_swapped,
    ),
    Mistake(
        "router_not_active",
        "The routers count as idle. Every token is compared with all E rows.",
        like=wrong.place_router_idle,
    ),
    Mistake(
        "only_routed_active",
        "Only the chosen experts count as active. Routers, shared experts and dense layers work for every token.",
        like=wrong.place_only_routed_active,
    ),
    Mistake(
        "only_experts_active",
        "Only the experts count as active. The routers and the dense layers work for every token too.",
        like=wrong.place_only_experts_active,
    ),
    Mistake("shared_once", "One shared expert was counted, however many there are.", like=wrong.place_shared_once),
    Mistake(
        "dense_as_wide_as_an_expert",
        "The dense layers were counted with `d_expert`. Their width is `d_dense`.",
        like=wrong.place_dense_narrow,
    ),
    Mistake(
        "router_in_dense_layers",
        "The dense layers got a router. There is nothing to choose in them.",
        like=wrong.place_router_everywhere,
    ),
    Mistake(
        "router_row_for_shared",
        "The router got a row for each shared expert. Nobody chooses those; it has one row for each of the E routed.",
        like=wrong.place_router_rows_for_shared,
    ),
    Mistake(
        "one_layer",
        "These are the parameters of one sparse layer. All layers are asked for, the dense ones too.",
        like=wrong.place_one_layer,
    ),
)
