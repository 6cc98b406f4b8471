"""Lab 06: the mistakes in reading a file and in sampling that its checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs import _06_file_mistakes as wrong
from labkit.course.labs._06_naming import unnamed

NAME_MAP = (
    Mistake(
        "up_first",
        "Up stands above gate in the fused tensors. SiLU goes over the first half here, so gate comes first.",
        like=wrong.names_up_first,
    ),
    Mistake(
        "interleaved",
        "Gate and up alternate row by row. (GPT-OSS stores them so.) Here all F rows of the gate come first.",
        like=wrong.names_interleaved,
    ),
    Mistake(
        "sorted_as_text",
        "The experts stand in the order 0, 1, 10, 11, 2, …: that of names sorted as text, in which a file may hold "
        "them too. The router's row 2 would call expert 10. Count with range(num_experts).",
        like=wrong.names_sorted,
    ),
    Mistake(
        "transposed",
        "The experts' matrices are transposed. Files and our tensors both keep [out, in], as `F.linear` wants it.",
        like=wrong.names_transposed,
    ),
    Mistake(
        "down_transposed",
        "`down` is transposed. It maps F to D, so as [out, in] it is [D, F]; where D = F no shape will tell.",
        like=wrong.names_down_transposed,
    ),
    Mistake("gate_twice", "The gate stands where up should be, so up is lost.", like=wrong.names_gate_is_up),
    Mistake(
        "concatenated",
        "The experts were concatenated along their rows. They need a dimension of their own: `torch.stack`.",
        like=wrong.names_not_stacked,
    ),
    Mistake(
        "first_expert_everywhere",
        "All experts are copies of the first. Does the name depend on e?",
        like=wrong.names_first_expert_everywhere,
    ),
    Mistake(
        "gate_up_apart",
        "Gate and up got a dimension of their own, [E, 2, F, D]. They are one matrix of 2F rows: `torch.cat`.",
        like=wrong.names_gate_up_apart,
    ),
    Mistake(
        "extra_dropped",
        "A tensor that has no place was dropped in silence. Perhaps it is harmless, perhaps the file is of another "
        "model: refuse, and say its name.",
        like=wrong.names_extra_dropped,
    ),
    Mistake(
        "missing_skipped",
        "A tensor was missing and nothing was said. The model would compute with whatever its memory held.",
        like=wrong.names_missing_skipped,
    ),
    Mistake(
        "ffn_left_out",
        "The renamed tensors are there, the feed-forward layers are not.",
        like=wrong.names_only_renamed,
    ),
    Mistake(
        "bare_key_error",
        "A missing tensor gave a bare KeyError. Raise a ValueError that says what is missing; whoever reads it has "
        "downloaded a file, not written a dictionary.",
        like=wrong.names_key_error,
    ),
    Mistake(
        "dense_read_as_sparse",
        "A dense layer was read as a sparse one: the first `num_dense` layers have no router and no experts, but one "
        "network each, `mlp.gate_proj`, `mlp.up_proj` and `mlp.down_proj`.",
        when=wrong.dense_read_as_sparse,
    ),
    Mistake(
        "sparse_read_as_dense",
        "A sparse layer was read as a dense one. Only layers below `num_dense` are dense, counted from 0.",
        when=wrong.sparse_read_as_dense,
    ),
    Mistake(
        "unnamed",
        "The file is refused, and the message does not say which tensor is at fault. In a file of thousands that is "
        "the only thing one wants to know: write its name, as the file has it.",
        when=unnamed,
    ),
)

SAMPLE = (
    Mistake(
        "multiplied",
        "The logits were multiplied by the temperature. Divided: a high temperature flattens, a low one sharpens.",
        like=wrong.sample_multiplied,
    ),
    Mistake(
        "temperature_last",
        "The temperature came after top-p. In transformers it comes first, so it decides how many tokens make up p.",
        like=wrong.sample_cold_after,
    ),
    Mistake(
        "temperature_last_and_multiplied",
        "The temperature came after the filters, and as a factor. It comes first, as a divisor.",
        like=wrong.sample_temperature_last_and_multiplied,
    ),
    Mistake("temperature_ignored", "`temperature` is not read.", like=wrong.sample_temperature_ignored),
    Mistake(
        "p_before_k",
        "Top-p came before top-k, or was measured on the whole softmax. In transformers top-k comes first, the tokens "
        "that it leaves sum to one again, and p is a share of those.",
        like=wrong.sample_p_before_k,
    ),
    Mistake(
        "crossing_lost",
        "The token with which the sum reaches p was thrown away. What stays is the smallest set that holds *at least* "
        "p, so that token belongs to it.",
        like=wrong.sample_crossing_lost,
    ),
    Mistake(
        "crossing_lost_and_empty",
        "The token that reaches p was thrown away; where the best token alone exceeds p, nothing is left and the "
        "softmax is NaN.",
        like=wrong.sample_crossing_lost_and_empty,
    ),
    Mistake(
        "nothing_left",
        "With p = 0 every token was thrown away and the softmax is NaN. The best one always stays.",
        like=wrong.sample_nothing_left,
    ),
    Mistake(
        "ties_cut",
        "Of tokens with equal logits at the k-th place some were kept and some not. Transformers keeps every token "
        "that is not below the k-th best.",
        like=wrong.sample_ties_cut,
    ),
    Mistake(
        "k_minus_one",
        "The k-th best token itself was removed: what is *below* the threshold goes, what equals it stays.",
        like=wrong.sample_strict_k,
    ),
    Mistake(
        "k_plus_one",
        "One token too many stays: the k-th best is at index k − 1.",
        like=wrong.sample_k_plus_one,
    ),
    Mistake(
        "k_beyond_the_vocabulary",
        "`topk` fails if k is larger than the vocabulary. Then there is no limit: min(top_k, V).",
        like=wrong.sample_k_beyond,
    ),
    Mistake(
        "zero_lets_none_through",
        "top_k = 0 means no limit; in yours it lets no token through, or fails. Filter only if top_k > 0.",
        when=wrong.zero_lets_none_through,
    ),
    Mistake(
        "k_or_p",
        "With top-k, top-p is not done any more. Both can be asked for; the second filters what the first has left.",
        like=wrong.sample_k_or_p,
    ),
    Mistake("k_ignored", "`top_k` is not read.", like=wrong.sample_k_ignored),
    Mistake("p_ignored", "`top_p` is not read.", like=wrong.sample_p_ignored),
    Mistake(
        "one_threshold",
        "All rows were cut at one threshold. Each row has its own k-th best.",
        like=wrong.sample_one_threshold,
    ),
    Mistake(
        "filled_with_zero",
        "Removed tokens got the logit 0, and e⁰ = 1: they come back through the softmax. Minus infinity never does.",
        like=wrong.sample_filled_with_zero,
    ),
    Mistake(
        "not_renormalised",
        "The right tokens are left and their probabilities do not sum to one.",
        like=wrong.sample_not_renormalised,
    ),
    Mistake("logits", "These are the filtered logits; a softmax is missing.", like=wrong.sample_logits),
    Mistake(
        "logarithms",
        "These are logarithms of the probabilities: softmax, not log_softmax.",
        like=wrong.sample_logarithms,
    ),
    Mistake(
        "softmax_over_rows",
        "The softmax runs over the batch. Each row is a distribution of its own: dim 1.",
        like=wrong.sample_softmax_over_rows,
    ),
    Mistake(
        "softmax_twice",
        "A softmax was taken of probabilities, so they came out far too flat. It comes once, at the end.",
        like=wrong.sample_softmax_twice,
    ),
    Mistake(
        "chances_as_logits",
        "The softmax came first, and its result was treated as logits, with a second softmax at the end. Temperature "
        "and filters work on the logits.",
        like=wrong.sample_filters_chances_as_logits,
    ),
    Mistake(
        "drawn",
        "These are whole numbers: tokens, it seems. Asked for are the probabilities that they would be drawn with.",
        when=wrong.drawn,
    ),
    Mistake(
        "mask_left_sorted",
        "The mask is in the order of the sorted tokens and was laid over the unsorted ones. Scatter it back to where "
        "the tokens stand: `out.scatter(1, order, out)`.",
        like=wrong.sample_mask_left_sorted,
    ),
    Mistake(
        "mask_gathered",
        "The mask was brought back with `gather`, which sorts once more. `scatter` undoes a sort: what stands at i "
        "goes to order[i].",
        like=wrong.sample_mask_gathered,
    ),
    Mistake(
        "rising_to_p",
        "Sorted from the worst upwards, tokens go as long as they hold 1 − p together. Yours go until they hold p.",
        like=wrong.sample_rising_to_p,
    ),
    Mistake(
        "not_unsorted",
        "The probabilities came back in sorted order, so they belong to other tokens. The mask must be scattered back "
        "to where the tokens stand.",
        like=wrong.sample_not_unsorted,
    ),
    Mistake(
        "relative_to_the_best",
        "Tokens below a share of the best were removed (that is min-p). Top-p adds up, from the best downwards.",
        like=wrong.sample_minimum_p,
    ),
)
