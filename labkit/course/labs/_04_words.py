"""Lab 04: the mistakes in the layer that its checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs import _04_mistakes as wrong
from labkit.course.labs import _04_signs as sign

SPLIT_EXPERTS = (
    Mistake(
        "all_reshaped",
        "Shapes are right, contents are not: a plain reshape to the target shape keeps the order in memory. In gate_up "
        "it separates gates from ups, in down it mixes D with F. Bring the m parts beside the experts first.",
        like=wrong.split_both_reshaped,
        when=sign.naive_reshapes,
    ),
    Mistake(
        "gate_up_in_one",
        "The gate's rows and up's rows were cut as one matrix, so the first parts hold only gate rows and the last "
        "only up rows: a part's gate no longer meets its own up. Cut gate and up apart, then put them together again.",
        like=wrong.split_gate_up_in_one,
        when=sign.part(1, wrong.split_gate_up_in_one),
    ),
    Mistake(
        "down_reshaped",
        "`down` has its F at the end, [E, D, F]. A reshape to [m·E, D, F/m] keeps the order in memory and so mixes "
        "rows of D with parts of F. Split the last dimension first, then move the parts to the front.",
        like=wrong.split_down_reshaped,
        when=sign.part(2, wrong.split_down_reshaped),
    ),
    Mistake(
        "not_scaled",
        "The parts are right and the layer's output comes out m times too small: each of the m twins gets a score that "
        "is one m-th of the whole expert's (the softmax, or the renormalisation, runs over m times as many). Where "
        "can a constant factor m be put so that it is exact?",
        like=wrong.split_unscaled,
        when=sign.only_unscaled,
    ),
    Mistake(
        "divided",
        "The factor goes the wrong way: the parts' scores have already become m times smaller, and `down` made them "
        "smaller once more. Multiply by m.",
        like=wrong.split_scaled_down,
    ),
    Mistake(
        "scaled_before_the_gate",
        "The factor m went into the gate. SiLU is not linear, so that changes the function (and in all of gate_up it "
        "would count twice, in gate and in up). `down` acts after everything that is not linear.",
        like=wrong.split_scaled_gate,
        when=sign.gate_times_m,
    ),
    Mistake(
        "scaled_up",
        "The layer's function is preserved: up is linear too, and the factor m is exact there. The exercise wants it "
        "in `down`, so that gate_up keeps the old rows.",
        like=wrong.split_scaled_up,
    ),
    Mistake(
        "router_tiled",
        "The router's rows come as 0, 1, …, 0, 1, … while the parts come as 0, 0, …, 1, 1, …: tokens for one expert "
        "reach parts of others. `repeat_interleave` repeats each row in place.",
        like=wrong.split_router_tiled,
        when=sign.router_alone_tiled,
    ),
    Mistake(
        "router_kept",
        "There are m·E experts now and still E router rows; each part needs a row of its own.",
        like=wrong.split_router_kept,
    ),
    Mistake(
        "router_scaled",
        "The router's rows were scaled with m. That changes how peaked the softmax is: not every score by the same "
        "factor. The rows stay as they are; the softmax divides by m on its own.",
        like=wrong.split_router_scaled,
        when=sign.router_times_m,
    ),
    Mistake(
        "part_major",
        "The parts come in another order: all first parts, then all second parts. (If router, gate_up and down all do "
        "so, the layer's function is preserved.) The exercise wants the m parts of one expert side by side, e·m + j.",
        like=wrong.split_part_major,
        when=sign.part(1, wrong.split_part_major),
    ),
    Mistake(
        "strided",
        "Part j took every m-th hidden unit. (If gate, up and down all do so, the layer's function is preserved.) The "
        "exercise wants neighbours: units j·F/m up to (j+1)·F/m.",
        like=wrong.split_strided,
        when=sign.part(1, wrong.split_strided),
    ),
    Mistake(
        "copies",
        "These are m copies of each whole expert, at m times the parameters and m times the FLOPs. Equal cost means "
        "that each part keeps F/m of the F hidden units.",
        like=wrong.split_copies,
    ),
    Mistake(
        "rows_alternating",
        "gate_up was read as gate, up, gate, up, … row by row. Here the F rows of the gate come first, then the F rows "
        "of up. (GPT-OSS stores them by turns; a checkpoint does not say which.)",
        like=wrong.split_rows_alternating,
        when=sign.part(1, wrong.split_rows_alternating),
    ),
    Mistake(
        "up_before_gate",
        "In each part up's rows stand before the gate's. SiLU would be applied to the wrong half: gate first, as in "
        "the whole expert.",
        like=wrong.split_up_before_gate,
        when=sign.part(1, wrong.split_up_before_gate),
    ),
)

SHARED_EXPERT = (
    Mistake(
        "weighted",
        "The shared experts' outputs were multiplied by the sum of the token's routing weights. They are no choice of "
        "the router and carry no weight of its: DeepSeekMoE adds them as they are (equation 9).",
        like=wrong.shared_weighted,
    ),
    Mistake(
        "weighted_by_the_best",
        "The shared experts' outputs were multiplied by the best expert's routing weight. They were not chosen, so no "
        "weight belongs to them; add them as they are.",
        like=wrong.shared_weighted_by_the_best,
    ),
    Mistake(
        "averaged",
        "The S shared outputs were averaged. They are added: with two shared experts yours counts half.",
        like=wrong.shared_averaged,
    ),
    Mistake(
        "halved",
        "Routed and shared part were averaged, (a + b) / 2. The layer is their plain sum.",
        like=wrong.shared_halved,
    ),
    Mistake(
        "first_only", "Only the first of the S shared experts was used; all of them are.", like=wrong.shared_first_only
    ),
    Mistake("shared_missing", "The shared experts are missing from the sum.", like=wrong.shared_forgotten),
    Mistake("routed_missing", "The routed experts are missing from the sum.", like=wrong.shared_routed_forgotten),
    Mistake(
        "in_a_row",
        "The shared experts read what the routed ones wrote. They stand side by side: both read the layer's input x.",
        like=wrong.shared_in_a_row,
    ),
    Mistake(
        "shared_before",
        "The routed experts read what the shared ones wrote. They stand side by side: both read the layer's input x.",
        like=wrong.shared_before,
    ),
    Mistake(
        "adds_the_input",
        "x itself was added. The residual connection is the transformer block's business; with it in here the input "
        "would be counted twice.",
        like=wrong.shared_residual,
    ),
    Mistake(
        "routed_unweighted",
        "The routed experts lost their weights. Only the shared ones are added unweighted.",
        like=wrong.shared_routed_unweighted,
    ),
    Mistake(
        "chained",
        "Each shared expert read what the one before it wrote. They stand side by side: all of them read x.",
        like=wrong.shared_chained,
    ),
    Mistake("last_only", "Only the last of the S shared experts is in the sum; all are.", like=wrong.shared_last_only),
    Mistake(
        "once_a_choice",
        "The shared experts were added K times, once for each choice of the token. Each is added once.",
        like=wrong.shared_once_a_choice,
    ),
    Mistake(
        "wide_in_one",
        "S shared experts can be computed as one wide one, but not by a reshape of gate_up: then gates and ups of "
        "different experts alternate. The wide one needs all gates first, then all ups.",
        like=wrong.shared_wide_in_one,
    ),
    Mistake(
        "renormalised",
        "The routing weights were divided by their sum. The router has decided about that already: take the scores as "
        "they come.",
        like=wrong.shared_routed_renormalised,
    ),
    Mistake(
        "multiplied",
        "The shared part is in the sum, but multiplied by something. Nothing stands before it: add it as it is "
        "(DeepSeekMoE, equation 9).",
        when=sign.multiple_of_shared,
    ),
)

GROUP_LIMITED_TOP_K = (
    Mistake(
        "zero_mask",
        "Groups that were not kept get a 0 (filled in, or by a product with a mask of zeros and ones). That is safe "
        "as long as every score is positive. Add a negative "
        "bias, and 0 is the *highest* value in the row: experts of a forbidden group win. Which number can never win?",
        like=wrong.groups_zero_mask,
    ),
    Mistake(
        "biased_weights",
        "The returned scores still hold the bias (lab 01 called it the leak). The bias is for choosing only: look "
        "the winners' scores up in `scores_TE`.",
        like=wrong.groups_biased_weights,
    ),
    Mistake(
        "groups_without_bias",
        "Experts were chosen with the bias, groups without it. DeepSeek-V3 adds the bias first and judges groups by "
        "the biased scores.",
        like=wrong.groups_unbiased_worth,
    ),
    Mistake(
        "bias_for_groups_only",
        "Groups were chosen with the bias, experts without it. The bias takes part in both choices.",
        like=wrong.groups_bias_for_groups_only,
    ),
    Mistake(
        "finite_mask",
        "Groups that were not kept got a fixed negative number. Biases have no lower bound: as soon as an allowed "
        "expert falls below that number, a forbidden one wins. Which number can never win?",
        like=wrong.groups_finite_mask,
    ),
    Mistake(
        "masked_before_bias",
        "The mask was put on the scores and the bias added afterwards, so an expert of a forbidden group still has its "
        "bias, and wins with it where that is large enough. First add the bias, then mask.",
        like=wrong.groups_masked_before_bias,
    ),
    Mistake(
        "inverted",
        "The mask is upside down: the best groups were shut out and the others kept. `masked_fill` fills where the "
        "mask is *true*.",
        like=wrong.groups_inverted,
    ),
    Mistake(
        "local_ids",
        "The ids count within the kept groups, put side by side. The layer needs the expert's number among all E: the "
        "group's number times E/G, plus its place in the group.",
        like=wrong.groups_local_ids,
    ),
    Mistake(
        "k_over_m",
        "A group was judged by its best K/M experts. That is the paper's rule, of which 'top2_sum' is the case K/M = 2 "
        "(DeepSeek-V3's own sizes): here it is two whatever k is.",
        like=wrong.groups_k_over_m,
    ),
    Mistake("bias_ignored", "`bias_E` moves nothing.", like=wrong.groups_bias_ignored),
    Mistake(
        "always_max",
        "`group_score` is not read: a group is always worth its best expert (DeepSeek-V2). With 'top2_sum' it is worth "
        "the sum of its two best (DeepSeek-V3).",
        like=wrong.groups_always_max,
    ),
    Mistake(
        "always_top2",
        "`group_score` is not read: a group is always worth its two best. With 'max' it is worth its best expert alone "
        "(DeepSeek-V2).",
        like=wrong.groups_always_top2,
    ),
    Mistake(
        "whole_sum",
        "A group was judged by the sum of all its experts. A group with one excellent and many poor experts would "
        "lose, though a token uses only a few of them: 'top2_sum' counts the two best.",
        like=wrong.groups_whole_sum,
    ),
    Mistake(
        "interleaved",
        "Groups were dealt out like cards: expert 0 to group 0, expert 1 to group 1, … A group is a block of "
        "neighbours, since these live on one device: the first E/G experts, then the next.",
        like=wrong.groups_interleaved,
    ),
    Mistake("no_limit", "There is no limit: this is the plain top-k over all experts.", like=wrong.groups_no_limit),
    Mistake(
        "equal_shares",
        "Each kept group gave the same number of experts. The limit is only on the groups: within the kept ones, the K "
        "best win wherever they are.",
        like=wrong.groups_equal_shares,
    ),
    Mistake(
        "sorted_by_score",
        "The right experts, in the order of their unbiased scores. The exercise wants the order in which they won: by "
        "biased score.",
        like=wrong.groups_sorted_by_score,
    ),
    Mistake(
        "scores_first",
        "Right numbers, wrong order: the exercise asks for (ids, scores).",
        like=wrong.groups_scores_first,
    ),
    Mistake(
        "renormalised",
        "The scores were divided by their sum. Whether they are renormalised is the layer's business, after this "
        "function; return them as they are in `scores_TE`.",
        like=wrong.groups_renormalised,
    ),
    Mistake(
        "other_order",
        "The right experts, in another order. The exercise wants them in the order in which they won: best first by "
        "biased score, as topk gives them.",
        like=wrong.groups_sorted_by_id,
        when=sign.other_order,
    ),
)
