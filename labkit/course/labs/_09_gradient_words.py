"""Lab 09: the mistakes in a gradient that its check knows, and the words for each."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs import _09_mistakes as wrong
from labkit.course.labs._09_words import FAR, rounded, three_sizes
from labkit.course.labs._kernel_mistakes import NO_KERNEL, With, beyond, unfilled

WEIGHT_GRADIENT = (
    Mistake(
        "blocks_mixed_up",
        "Right while all blocks are 16 wide. D comes in blocks of BLOCK_M, W in blocks of BLOCK_N, the rows in steps "
        "of BLOCK_K: look at each `arange`, at the loop's step, and at the shape of the sum.",
        when=three_sizes,
    ),
    Mistake(
        "empty_left_out",
        "An expert without rows was left out, and its gradient is whatever lay in memory. A sum over nothing is zero, "
        "and that has to be *written*: torch hands out memory as it is.",
        like=With(wrong.weight_gradient, WRONG="empty_left_out"),
    ),
    Mistake(
        "into_the_next_expert",
        "The last block of an expert's rows went on into the next expert's. Rows end at `offset[expert + 1]`; mask "
        "both loads with that, since one zero in a product is enough, but NaN times zero is NaN.",
        like=With(wrong.weight_gradient, WRONG="into_the_next_expert"),
    ),
    Mistake(
        "not_gathered",
        "Row r of x was taken where token `token[r]` was meant: x is in token order, y in expert order.",
        like=With(wrong.weight_gradient, WRONG="not_gathered"),
    ),
    Mistake(
        "y_gathered_too",
        "Both operands were gathered by token. Only x is in token order; row r of y is row r.",
        like=With(wrong.weight_gradient, WRONG="y_gathered_too"),
    ),
    Mistake(
        "always_the_first_rows",
        "Every expert added up the first rows of all. Its own begin at `offset[expert]`.",
        like=With(wrong.weight_gradient, WRONG="always_the_first_rows"),
    ),
    Mistake(
        "whole_blocks_only",
        "Rows that do not fill a block of BLOCK_K are left out. The last step has to run, with a mask.",
        like=With(wrong.weight_gradient, WRONG="whole_blocks_only"),
    ),
    Mistake(
        "first_block_only",
        "Only the first BLOCK_K rows of each expert are in the sum: loop over all of them.",
        like=With(wrong.weight_gradient, WRONG="first_block_only"),
    ),
    Mistake(
        "last_step_only",
        "Only the last block of rows is in the result: each step overwrites the sum. Give `tl.dot` the sum so far.",
        like=With(wrong.weight_gradient, WRONG="last_step_only"),
    ),
    Mistake(
        "mean",
        "This is the mean over the expert's rows. A gradient is the sum: an expert with more tokens learns more.",
        like=With(wrong.weight_gradient, WRONG="mean"),
    ),
    Mistake(
        "strides_ignored",
        "Right where the result is stored as [D, W], and transposed elsewhere. Element (d, w) lies d · d_stride + "
        "w · w_stride after the expert's first.",
        like=With(wrong.weight_gradient, WRONG="strides_ignored"),
    ),
    Mistake(
        "all_into_one",
        "All experts' gradients were written to the first one's place, so the others were never written. Expert e's "
        "begins at e · D · W.",
        like=With(wrong.weight_gradient, WRONG="all_into_one"),
    ),
    Mistake(
        "rounded_early",
        "Where x is float16 the sums were rounded to float16 before they were stored as float32. A gradient is a long "
        "sum: add up and store in float32.",
        like=With(wrong.weight_gradient, WRONG="rounded_early"),
        when=rounded,
    ),
    Mistake(
        "one_row_too_many",
        "One row too many: `offset[expert + 1]` is where the next expert begins, so the last row is the one before it.",
        like=With(wrong.weight_gradient, WRONG="one_row_too_many"),
    ),
    Mistake(
        "same_block_again",
        "Every step takes the first BLOCK_K rows again. Step on: row = start + tl.arange(0, BLOCK_K).",
        like=With(wrong.weight_gradient, WRONG="same_block_again"),
    ),
    Mistake(
        "from_the_first_row",
        "Each expert's sum begins at the first row of all, and so has the rows of all experts before it. Its own begin "
        "at `offset[expert]`.",
        like=With(wrong.weight_gradient, WRONG="from_the_first_row"),
    ),
    Mistake(
        "wrong_one_gathered",
        "The wrong one was gathered: x is in token order and is read at `token`, y is in expert order and is read at "
        "`row`.",
        like=With(wrong.weight_gradient, WRONG="wrong_one_gathered"),
    ),
    Mistake(
        "tokens_from_the_first_row",
        "y is read at the expert's own rows, and the tokens at those of the first expert. Both are counted from the "
        "first row of all: load from `token_ptr + row`.",
        like=With(wrong.weight_gradient, WRONG="tokens_from_the_first_row"),
    ),
    Mistake(
        "y_from_the_first_row",
        "x is read at the expert's own rows, and y at the first rows of all. Both are counted from the first row of "
        "all: row r of y begins at r · W.",
        like=With(wrong.weight_gradient, WRONG="y_from_the_first_row"),
    ),
    Mistake(
        "x_not_turned",
        "This is x · y, block by block: it runs only while the blocks are square. The sum goes over rows, which are "
        "x's *first* axis: `tl.trans(x)`, or load x as [D, rows].",
        like=With(wrong.weight_gradient, WRONG="x_not_turned"),
    ),
    Mistake(
        "y_turned",
        "This is x · yᵀ, which has rows on both sides. The sum goes over rows: turn x, and leave y as it is.",
        like=With(wrong.weight_gradient, WRONG="y_turned"),
    ),
    Mistake(
        "programs_swapped",
        "Program ids 1 and 2 were swapped: 1 counts the blocks of D, 2 those of W. Right while both are one block.",
        like=With(wrong.weight_gradient, WRONG="programs_swapped"),
    ),
    Mistake(
        "strides_swapped",
        "The two strides were swapped: element (d, w) lies d · d_stride + w · w_stride after the expert's first.",
        like=With(wrong.weight_gradient, WRONG="strides_swapped"),
    ),
    Mistake(
        "expert_by_stride",
        "Expert e's gradient was put at e · D · d_stride. It begins at e · D · W, however it is stored: the strides "
        "say how one expert's matrix lies.",
        like=With(wrong.weight_gradient, WRONG="expert_by_stride"),
    ),
    Mistake(
        "x_row_too_wide",
        "Rows of x lie D elements apart; you stepped by W. Right where both are the same.",
        like=With(wrong.weight_gradient, WRONG="x_row_too_wide"),
    ),
    Mistake(
        "no_mask",
        "Your kernel reads and writes outside its tensors: d ends at D, w at W, and rows at `offset[expert + 1]`.",
        when=beyond("reads", "writes"),
    ),
    Mistake(
        "reads_beyond",
        "Your kernel reads outside its tensors. The token's number, the row of x and the row of y each need the mask "
        "of the rows; x also d < D, y also w < W.",
        when=beyond("reads"),
    ),
    Mistake(
        "writes_beyond",
        "Your kernel writes outside its output: the store needs d < D and w < W in its mask.",
        when=beyond("writes"),
    ),
    FAR,
    NO_KERNEL,
    Mistake(
        "not_all_written",
        "Part of the result was never written, or NaN came in from beyond an edge: it holds the NaN that the check put "
        "there.",
        when=unfilled,
    ),
)
