"""Lab 09: the mistakes in a gathered product that its check knows, their words, and what other kernels share."""

from __future__ import annotations

import torch

from labkit.course.judge import Failure, Mistake
from labkit.course.labs import _09_mistakes as wrong
from labkit.course.labs._09_cases import THREE
from labkit.course.labs._kernel_mistakes import NO_KERNEL, With, beyond, far, unfilled


def rounded(failure: Failure) -> bool:
    """Whether float16 came in and results are near, but not near enough."""
    got, right = (v if isinstance(v, tuple) else (v,) for v in (failure.got, failure.expected))
    pairs = list(zip(got, right, strict=True))
    near = all(torch.allclose(a, b, rtol=1e-2, atol=0.05 * float(b.abs().max())) for a, b in pairs)
    return failure.case.args[0].dtype == torch.float16 and near


def three_sizes(failure: Failure) -> bool:
    """Whether everything was right while all blocks had the same size."""
    return failure.case.label == THREE


FAR = Mistake(
    "far_away",
    "Your kernel was stopped just before it would have touched memory far away from its tensors; without the guards "
    "of this check the whole Python process would be gone. Was a token's number loaded from beyond the last row, where "
    "there is poison? Is a row's number multiplied by its width twice, or an expert's by the wrong size?",
    when=far,
)

GATHER = (
    Mistake(
        "blocks_mixed_up",
        "Right while all blocks are 16 wide. Rows come in blocks of BLOCK_M, columns of BLOCK_N, the depth in steps of "
        "BLOCK_K: look at each `arange`, at the loop's step, and at the shape of the sum.",
        when=three_sizes,
    ),
    Mistake(
        "not_gathered",
        "Row r of the result was made from row r of x. But x is in token order and stands there once for each token; "
        "which token row r is, `token_ptr` says.",
        like=With(wrong.gather, WRONG="not_gathered"),
    ),
    Mistake(
        "by_token",
        "The results were stored at their token's row. Several rows have the same token, each for another expert, and "
        "here they overwrite each other. The output is in expert order: store at `row`.",
        like=With(wrong.gather, WRONG="by_token"),
    ),
    Mistake(
        "into_the_next_expert",
        "An expert's last tile also writes the rows after it, which are the next expert's (or nobody's). Which of two "
        "programs writes last is a matter of luck. Rows end at `offset[expert + 1]`: mask the store with that.",
        like=With(wrong.gather, WRONG="into_the_next_expert"),
    ),
    Mistake(
        "one_row_too_many",
        "One row too many: `offset[expert + 1]` is where the next expert begins, so the last row is the one before it.",
        like=With(wrong.gather, WRONG="one_row_too_many"),
    ),
    Mistake(
        "one_expert_for_all",
        "Every tile is multiplied by the first expert's matrix. The expert of tile p is `tl.load(expert_ptr + p)`, and "
        "its matrix begins W · D elements after the one before it.",
        like=With(wrong.gather, WRONG="one_expert_for_all"),
    ),
    Mistake(
        "expert_too_near",
        "Experts' matrices lie W · D elements apart, and yours only D: expert e's began in the middle of expert 0's.",
        like=With(wrong.gather, WRONG="expert_too_near"),
    ),
    Mistake(
        "not_transposed",
        "The weights were read as [D, W]. They are stored as torch stores a linear layer, [W, D]: element (k, column) "
        "of the tile that `tl.dot` wants is column · D + k elements after the matrix begins.",
        like=With(wrong.gather, WRONG="not_transposed"),
    ),
    Mistake(
        "rows_by_program",
        "Program p took rows from p · BLOCK_M on. That was so when all rows were one expert's; here the list says "
        "where each tile begins: `tl.load(row_ptr + p)`.",
        like=With(wrong.gather, WRONG="rows_by_program"),
    ),
    Mistake(
        "first_columns_only",
        "Only the first columns are computed. `tl.load(column_ptr + p)` is where tile p begins: a column already, not "
        "the number of a block.",
        like=With(wrong.gather, WRONG="first_columns_only"),
    ),
    Mistake(
        "last_step_only",
        "Only the last piece of the depth is in the result: each step overwrites the sum. "
        "`product = tl.dot(x, w, product)` adds to it.",
        like=With(wrong.gather, WRONG="last_step_only"),
    ),
    Mistake(
        "depth_not_masked",
        "Right where D is a multiple of BLOCK_K. Elsewhere the last step reads on into the next row, of x and of the "
        "weights, and multiplies them. Both loads need `k < D` in their masks, and `other=0.0`.",
        like=With(wrong.gather, WRONG="depth_not_masked"),
    ),
    Mistake(
        "rounded_early",
        "Where x is float16 the sums were rounded to float16 before they were stored as float32. Add up and store in "
        "float32; the store converts to whatever the output is.",
        like=With(wrong.gather, WRONG="rounded_early"),
        when=rounded,
    ),
    Mistake(
        "row_is_a_tile_number",
        "`tl.load(row_ptr + p)` is a row already, the first of tile p; you multiplied it by BLOCK_M.",
        like=With(wrong.gather, WRONG="row_is_a_tile_number"),
    ),
    Mistake(
        "same_step_again",
        "Every step reads the first BLOCK_K of the depth again. Step on: k = start + tl.arange(0, BLOCK_K).",
        like=With(wrong.gather, WRONG="same_step_again"),
    ),
    Mistake(
        "step_numbers",
        "The loop counts steps, and k takes their number for a place in the depth: the second step begins at 1. Give "
        "`range` the step BLOCK_K, or multiply.",
        like=With(wrong.gather, WRONG="step_numbers"),
    ),
    Mistake(
        "whole_steps_only",
        "What is left of the depth after the last whole BLOCK_K is missing. The last step has to run, with a mask.",
        like=With(wrong.gather, WRONG="whole_steps_only"),
    ),
    Mistake(
        "counted_twice",
        "The sum so far is added twice in each step: `tl.dot(x, w, product)` adds it already. Write "
        "`product = tl.dot(x, w, product)` or `product += tl.dot(x, w)`.",
        like=With(wrong.gather, WRONG="counted_twice"),
    ),
    Mistake(
        "transposed_twice",
        "The tile of weights was loaded as [BLOCK_K, BLOCK_N], which is the transpose already, and then turned back by "
        "`tl.trans`.",
        like=With(wrong.gather, WRONG="transposed_twice"),
    ),
    Mistake(
        "tokens_of_the_first_rows",
        "All tiles gather the tokens of the first rows. Tokens stand in `token_ptr` at the row's own number: load from "
        "`token_ptr + row`.",
        like=With(wrong.gather, WRONG="tokens_of_the_first_rows"),
    ),
    Mistake(
        "expert_of_the_program",
        "Program p took expert p. An expert may have several tiles, or none: `tl.load(expert_ptr + p)` says whose tile "
        "p is.",
        like=With(wrong.gather, WRONG="expert_of_the_program"),
    ),
    Mistake(
        "ends_where_it_begins",
        "`offset[expert]` is where the expert's rows begin; they end where the next expert's do, at "
        "`offset[expert + 1]`. So no row was taken, or another expert's.",
        like=With(wrong.gather, WRONG="ends_where_it_begins"),
    ),
    Mistake(
        "x_row_too_wide",
        "Rows of x lie D elements apart; you stepped by W. Right where both are the same.",
        like=With(wrong.gather, WRONG="x_row_too_wide"),
    ),
    Mistake(
        "no_mask",
        "Your kernel reads and writes outside its tensors. A tile has BLOCK_M rows and its expert may have fewer "
        "left; it has BLOCK_N columns and the matrix may end before; and so may the depth.",
        when=beyond("reads", "writes"),
    ),
    Mistake(
        "reads_beyond",
        "Your kernel reads outside its tensors. Four things can lie beyond: the token's number, the row of x, the "
        "columns of the weights, the depth of both. Each load needs the mask of what it loads.",
        when=beyond("reads"),
    ),
    Mistake(
        "writes_beyond",
        "Your kernel writes outside its output: a row of it has W elements, and the store needs the rows *and* the "
        "columns in its mask.",
        when=beyond("writes"),
    ),
    FAR,
    NO_KERNEL,
    Mistake(
        "not_all_written",
        "Part of the result was never written, or NaN was loaded from beyond an edge: it holds the NaN that the check "
        "put there. Which rows and which columns does program 0 store?",
        when=unfilled,
    ),
)
