"""Lab 07: the mistakes in Muon's iteration and in the multi-token loss that their checks know, and words for each."""

from __future__ import annotations

from labkit.course.judge import Failure, Mistake
from labkit.course.labs import _07_more_mistakes as more


def _batch_broken(failure: Failure) -> bool:
    return failure.case.args[0].ndim > 2 and failure.outcome.error_type in ("RuntimeError", "IndexError")


def _gram_on_the_wrong_side(failure: Failure) -> bool:
    return failure.case.args[0].ndim == 2 and "shapes cannot be multiplied" in failure.outcome.error


def _classes_not_second(failure: Failure) -> bool:
    return "Expected target size" in failure.outcome.error


NEWTON_SCHULZ = (
    Mistake(
        "one_norm_for_all",
        "One norm was taken over all matrices together. Every expert's matrix is divided by its *own* Frobenius norm, "
        "or an expert with a small gradient stays small.",
        like=more.schulz_whole_norm,
    ),
    Mistake(
        "norm_of_rows",
        "Each row was divided by its own norm. The matrix has one norm, over both of its dimensions.",
        like=more.schulz_rows,
    ),
    Mistake(
        "norm_of_columns",
        "Each column was divided by its own norm. The matrix has one norm, over both of its dimensions.",
        like=more.schulz_columns,
    ),
    Mistake(
        "largest_entry",
        "The matrix was divided by its largest entry. Its singular values can still be larger than 1, where the "
        "polynomial runs away; the Frobenius norm bounds them.",
        like=more.schulz_largest,
    ),
    Mistake(
        "spectral_norm",
        "The matrix was divided by its largest singular value. That is the tightest bound and a dear one; Muon divides "
        "by the Frobenius norm, which costs nothing.",
        like=more.schulz_spectral,
    ),
    Mistake(
        "not_divided",
        "The matrix went in as it is. For singular values well above 1 the polynomial runs away; the Frobenius norm "
        "bounds them by 1.",
        like=more.schulz_not_divided,
    ),
    Mistake(
        "normalised_every_step",
        "The matrix was divided by its norm before *every* step; its singular values could then never all come near 1. "
        "Once, before the first.",
        like=more.schulz_renormalised,
    ),
    Mistake(
        "not_turned_back",
        "A tall matrix was transposed for the work, and came back lying on its side.",
        like=more.schulz_not_back,
    ),
    Mistake(
        "flattened_into_one",
        "The experts were put on top of each other and treated as one tall matrix. Then they are made orthogonal to "
        "*each other*, which nobody asked for. Leading dimensions are a batch.",
        like=more.schulz_last_two_gone,
    ),
    Mistake(
        "nan_for_zero",
        "An expert that got no token has a gradient of zeros, and 0 / 0 is NaN. Bound the norm from below.",
        like=more.schulz_nan,
    ),
    Mistake(
        "cubic",
        "These are the classical coefficients, 1.5 and -0.5. They converge exactly and slowly; Muon's quintic "
        "(3.4445, -4.7750, 2.0315) is less exact and much faster at the start.",
        like=more.schulz_cubic,
    ),
    Mistake(
        "coefficients_swapped",
        "The second and third coefficient changed places: -4.7750 belongs to the third power, 2.0315 to the fifth.",
        like=more.schulz_swapped,
    ),
    Mistake("steps_ignored", "`steps` is not read: it is always five.", like=more.schulz_five),
    Mistake(
        "entry_by_entry",
        "The powers were taken entry by entry. They are products of matrices, X·Xᵀ·X, which act on singular values.",
        like=more.schulz_elementwise,
    ),
    Mistake(
        "exact",
        "This is the exact answer, U·Vᵀ by a singular value decomposition, and too good: Muon's five steps leave the "
        "singular values between about 0.7 and 1.2, at a fraction of the cost. Iterate.",
        like=more.schulz_exact,
    ),
    Mistake(
        "in_bfloat16",
        "The result came in bfloat16. Muon may run so on a GPU; this function keeps the format that came in.",
        like=more.schulz_bfloat16,
    ),
    Mistake(
        "rounded",
        "The products ran in bfloat16 and were widened afterwards: right to two digits. Keep the input's format.",
        like=more.schulz_rounded,
    ),
    Mistake(
        "scaled",
        "The result was scaled by 0.2·√max(rows, columns). That is Moonlight's learning rate, and the optimiser's "
        "business.",
        like=more.schulz_scaled,
    ),
    Mistake(
        "norm_squared",
        "Each matrix was divided by the *square* of its Frobenius norm: the root of the sum of squares is missing.",
        like=more.schulz_norm_squared,
    ),
    Mistake(
        "norm_given_back",
        "The result was multiplied by the norm again. Its size is to be forgotten; directions stay.",
        like=more.schulz_norm_given_back,
    ),
    Mistake(
        "gram_of_the_start",
        "X·Xᵀ was computed once, before the loop. It belongs to the X of each step.",
        like=more.schulz_gram_once,
    ),
    Mistake(
        "gram_squared_entry_by_entry",
        "The square of X·Xᵀ was taken entry by entry (`**`). It is a product of matrices: gram @ gram.",
        like=more.schulz_gram_star,
    ),
    Mistake(
        "no_fifth_power",
        "The last term has X·Xᵀ once, so the polynomial stops at the third power. The fifth needs it twice.",
        like=more.schulz_no_fifth,
    ),
    Mistake(
        "sign_of_b",
        "b is negative: -4.7750. With a plus all three terms push upwards and nothing stays bounded.",
        like=more.schulz_sign,
    ),
    Mistake("one_step_too_many", "The polynomial ran steps + 1 times.", like=more.schulz_one_more),
    Mistake("one_step_too_few", "The polynomial ran steps - 1 times.", like=more.schulz_one_less),
    Mistake(
        "batch_broken",
        "Right for a single matrix, and with leading dimensions shapes do not fit. Transpose the last two dimensions "
        "only (`.mT`, not `.T` or `transpose(0, 1)`), count rows and columns from the end, and keep the norm's "
        "dimensions (`keepdim=True`).",
        when=_batch_broken,
    ),
    Mistake(
        "gram_on_the_wrong_side",
        "Shapes do not fit. X·Xᵀ is [rows, rows] and stands to the left of X; Xᵀ·X is [columns, columns] and stands to "
        "its right.",
        when=_gram_on_the_wrong_side,
    ),
)

MTP_LOSS = (
    Mistake(
        "shifted_by_k",
        "The first module is held against the next token, which the main head predicts already. Position i of module "
        "k predicts token i + k + 1.",
        like=more.mtp_shift_k,
    ),
    Mistake(
        "shifted_too_far",
        "Targets are one token too far ahead: position i of module k predicts token i + k + 1, with k counted from 1.",
        like=more.mtp_shift_too_far,
    ),
    Mistake(
        "all_two_ahead",
        "Every module is held against the token two ahead. The second looks three ahead, the third four.",
        like=more.mtp_all_two_ahead,
    ),
    Mistake(
        "own_number_of_targets",
        "Each depth was divided by its own number of targets. Equation 24 divides by T at every depth, the targets of "
        "the main head: a deeper module has fewer and weighs less.",
        like=more.mtp_own_mean,
    ),
    Mistake(
        "mean_over_nothing",
        "Each depth was divided by its own number of targets, and where a depth has none the mean over nothing is NaN. "
        "Sum, and divide by the number of targets that the main head has.",
        like=more.mtp_own_mean_nan,
    ),
    Mistake(
        "padding_counted",
        "The sum was divided by all targets of the main head, those that are -100 among them.",
        like=more.mtp_positions,
    ),
    Mistake(
        "all_positions",
        "The sum was divided by all positions. The main head predicts nothing for the first token and nothing for "
        "padding; count `labels[:, 1:]` that are not -100.",
        like=more.mtp_all_positions,
    ),
    Mistake(
        "first_token_counted",
        "The first token of each sequence was counted. Nothing predicts it: count `labels[:, 1:]` that are not -100.",
        like=more.mtp_real_labels,
    ),
    Mistake(
        "depths_added",
        "The depths were added up and not averaged: equation 25 has λ / D before the sum.",
        like=more.mtp_depths_added,
    ),
    Mistake("unweighted", "`weight` (λ) is missing: the loss is as large as if it were 1.", like=more.mtp_unweighted),
    Mistake(
        "weight_to_the_depth",
        "Depth k was weighted with λ to the power k. All depths have the same weight, λ / D.",
        like=more.mtp_weight_to_the_depth,
    ),
    Mistake("not_divided", "The sum was not divided by the number of targets.", like=more.mtp_summed),
    Mistake("first_depth_only", "Only the first module is in the loss; average over all D.", like=more.mtp_first_only),
    Mistake(
        "padding_learned",
        "Positions whose label is -100 were learned as a token. They are to be left out.",
        like=more.mtp_padding_learned,
    ),
    Mistake(
        "logits_too_long",
        "Logits and targets have different lengths: module k has S - k positions, and the last of them looks beyond "
        "the labels. Cut the logits to the length of `labels[:, k + 1:]`.",
        like=more.mtp_last_left,
    ),
    Mistake(
        "cut_at_the_front",
        "Logits were cut at the front. Position i of module k predicts token i + k + 1, so the first target belongs to "
        "position 0, and it is the *last* position that has none.",
        like=more.mtp_cut_front,
    ),
    Mistake(
        "wraps_round",
        "The labels were rolled, so the last positions are held against the first tokens of their own sequence. "
        "Beyond the end there is no target.",
        like=more.mtp_rolled,
    ),
    Mistake(
        "targets_of_the_first_depth",
        "The sum was divided by the targets of module 1. T is the number that the *main* head has: `labels[:, 1:]`.",
        like=more.mtp_targets_of_depth_one,
    ),
    Mistake(
        "sequence_by_sequence",
        "The mean was taken for every sequence and then over sequences, so a token in a short one weighs more. Divide "
        "once, by all real targets of the main head.",
        like=more.mtp_by_sequence,
    ),
    Mistake(
        "batch_forgotten",
        "The sum over the batch was divided by the targets of one sequence, S - 1. Count the real targets of all.",
        like=more.mtp_batch_forgotten,
    ),
    Mistake(
        "averaged_twice",
        "The depths were averaged and then divided by D once more. λ / D stands before the *sum* over depths.",
        like=more.mtp_averaged_twice,
    ),
    Mistake(
        "last_depth_only",
        "Only the last module is in the loss: it is overwritten in the loop instead of added up.",
        like=more.mtp_last_only,
    ),
    Mistake(
        "main_head_counted",
        "The sum was divided by D + 1, the main head among the depths. It has its own loss; here there are D.",
        like=more.mtp_main_counted,
    ),
    Mistake(
        "sign",
        "The sign is wrong. `cross_entropy` has the minus of equation 24 in it already.",
        like=more.mtp_sign,
    ),
    Mistake(
        "classes_in_the_wrong_place",
        "`cross_entropy` takes dimension 1 for the classes, and logits [B, S, V] have positions there. Flatten to "
        "[B·S, V] and [B·S], or move V to dimension 1.",
        when=_classes_not_second,
    ),
)
