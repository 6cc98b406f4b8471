"""Lab 09: the mistakes in a map, an order of tiles and a gathered product that their checks know, and their words."""

from __future__ import annotations

from labkit.course.judge import Mistake
from labkit.course.labs import _09_mistakes as wrong
from labkit.course.labs._kernel_mistakes import NO_KERNEL, With, beyond, far, unfilled

FAR = Mistake(
    "far_away",
    "Your kernel was stopped just before it would have touched memory far away from its tensors; without the guards "
    "of this check the whole Python process would be gone. Is a row's number multiplied by its width twice, or an "
    "expert's number by the wrong size? An expert's matrix has W · D elements.",
    when=far,
)

GATHER = (
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
        "All tiles compute the same columns. `tl.load(column_ptr + p)` is the first one of tile p.",
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
        "Your kernel writes outside its output: the store needs the rows *and* the columns in its mask.",
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
