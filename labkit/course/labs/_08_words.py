"""Lab 08: the mistakes in a bound, a sum and a softmax that their checks know, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs import _08_mistakes as wrong
from labkit.course.labs._kernel_mistakes import NO_KERNEL, With, beyond, far, unfilled

FAR = Mistake(
    "far_away",
    "Your kernel was stopped just before it would have touched memory far away from its tensors; without the guards of "
    "this check the whole Python process would be gone. Is an offset multiplied twice, or are bytes counted where "
    "elements are meant? Pointers in Triton move by elements.",
    when=far,
)

MATMUL_BOUND = (
    Mistake(
        "one_flop",
        "M·K·N counts a multiplication and its addition as one. By convention they are two FLOPs.",
        like=wrong.bound_one_flop,
    ),
    Mistake(
        "no_output",
        "The result, M by N, has to be written as well: it is part of what is moved.",
        like=wrong.bound_no_output,
    ),
    Mistake("elements", "These are numbers, not bytes: each takes `itemsize` of them.", like=wrong.bound_elements),
    Mistake(
        "weights_only",
        "Only the K by N matrix was counted. The other operand is read and the result is written, too.",
        like=wrong.bound_weights_only,
    ),
    Mistake(
        "every_use",
        "Every *use* of a number was counted as a read from memory. The bound assumes the best: each operand comes in "
        "once and stays on the chip for as long as it is needed.",
        like=wrong.bound_every_use,
    ),
    Mistake(
        "added_up",
        "The two times were added. A GPU loads the next tile while it computes on this one; at best they overlap "
        "completely, and the slower of the two decides.",
        like=wrong.bound_sum,
    ),
    Mistake(
        "the_faster",
        "That is the smaller of the two times. Both have to happen, so nothing is done before the *slower* one.",
        like=wrong.bound_min,
    ),
    Mistake("upside_down", "Intensity is FLOPs per byte; this is bytes per FLOP.", like=wrong.bound_upside_down),
    Mistake(
        "swapped",
        "The numbers are right and the word is the wrong one: what takes longer is what binds.",
        like=wrong.bound_swapped,
    ),
    Mistake(
        "strict",
        'Where both take equally long the answer should be "compute": at the ridge the peak is reached.',
        like=wrong.bound_strict,
    ),
)

ADD_KERNEL = (
    Mistake(
        "no_mask",
        "The last block reaches beyond the end of the tensors, and your kernel reads and writes there. On a machine "
        "this mostly passes unnoticed, until that memory belongs to somebody. Give both loads and the store the mask "
        "`at < n`.",
        when=beyond("reads", "writes"),
    ),
    Mistake(
        "reads_beyond",
        "What your kernel stores is right, but it *reads* beyond the end. That is harmless until the tensor ends where "
        "a page of memory does; then the GPU stops with an illegal address. The loads need the mask, too.",
        when=beyond("reads"),
    ),
    Mistake(
        "writes_beyond",
        "The loads are masked and the store is not: the last block writes into memory that is somebody else's.",
        when=beyond("writes"),
    ),
    Mistake(
        "one_too_many",
        "One element too many: the last one of n has the number n - 1, so the mask is `at < n`.",
        like=With(wrong.add, WRONG="one_too_many"),
    ),
    Mistake(
        "always_the_first_block",
        "Every program works on the first block: the offsets do not contain the program id, so the rest of the result "
        "is never written (the check fills it with NaN beforehand).",
        like=With(wrong.add, WRONG="always_the_first_block"),
    ),
    Mistake(
        "one_apart",
        "Program p begins at element p instead of element p · BLOCK: the blocks overlap, and most of the result is "
        "never written.",
        like=With(wrong.add, WRONG="one_apart"),
    ),
    Mistake(
        "bytes",
        "Only every fourth element is written. Pointers in Triton move by elements, not by bytes: leave the 4 out.",
        like=With(wrong.add, WRONG="bytes"),
    ),
    Mistake(
        "whole_blocks_only",
        "A block that is not full is left out altogether. Its program has to run and mask the lanes beyond the end.",
        like=With(wrong.add, WRONG="whole_blocks_only"),
    ),
    Mistake(
        "one_argument",
        "This is x alone: y is loaded from the wrong pointer or never added.",
        like=With(wrong.add, WRONG="one_argument"),
    ),
    FAR,
    NO_KERNEL,
    Mistake(
        "not_all_written",
        "Part of the result was never written: it still has the NaN that the check put there. Which elements does "
        "program 0 write, which program 1?",
        when=unfilled,
    ),
)

SOFTMAX_KERNEL = (
    Mistake(
        "no_maximum",
        "Right for small values, and NaN or zero for large ones: exp(1000) is infinite in float32. Subtract the row's "
        "maximum first; the result is the same, and the largest exponent becomes exp(0).",
        like=With(wrong.softmax, WRONG="no_maximum"),
    ),
    Mistake(
        "padding_counts",
        "Right where the row fills the block, too small elsewhere: the lanes beyond the end were loaded as 0, and "
        'exp(0 - max) went into the sum. Load them as minus infinity: `other=float("-inf")`.',
        like=With(wrong.softmax, WRONG="padding_counts"),
    ),
    Mistake(
        "maximum_of_padding",
        "Right unless all values are far below zero: there the maximum is the 0 of an empty lane, every exponential "
        "underflows, and 0/0 is NaN. Load empty lanes as minus infinity, so that they take part in nothing.",
        like=With(wrong.softmax, WRONG="maximum_of_padding"),
    ),
    Mistake(
        "rows_of_width",
        "Row r begins at r · stride, not at r · width. Rows may lie further apart than they are wide: a slice of a "
        "larger tensor does.",
        like=With(wrong.softmax, WRONG="rows_of_width"),
    ),
    Mistake(
        "rows_of_block",
        "Row r begins at r · stride, not at r · BLOCK: the block is the next power of two, and nothing in memory knows "
        "of it.",
        like=With(wrong.softmax, WRONG="rows_of_block"),
    ),
    Mistake(
        "one_stride_for_both",
        "The result has a stride of its own, `out_stride`, and yours are written as far apart as x's.",
        like=With(wrong.softmax, WRONG="one_stride_for_both"),
    ),
    Mistake(
        "not_divided",
        "These are the exponentials; they have not been divided by their sum.",
        like=With(wrong.softmax, WRONG="not_divided"),
    ),
    Mistake(
        "logarithm",
        "This is the logarithm of the softmax.",
        like=With(wrong.softmax, WRONG="logarithm"),
    ),
    Mistake(
        "no_mask",
        "Your kernel reads and writes beyond the end of a row: between rows lies what is not yours, or the next row. "
        "Both the load and the store need the mask `at < width`.",
        like=With(wrong.softmax, WRONG="no_mask"),
        when=beyond("reads", "writes"),
    ),
    Mistake(
        "reads_beyond",
        "Your kernel reads beyond the end of a row. The load needs the mask, and a value for the lanes without an "
        "element.",
        when=beyond("reads"),
    ),
    Mistake(
        "writes_beyond",
        "The load is masked and the store is not: each row writes into what lies after it.",
        when=beyond("writes"),
    ),
    FAR,
    NO_KERNEL,
)
