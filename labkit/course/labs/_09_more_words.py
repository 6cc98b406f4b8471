"""Lab 09: the mistakes in an epilogue and in a gradient that their checks know, and the words for each."""

from __future__ import annotations

import torch

from labkit.course.judge import Failure, Mistake
from labkit.course.labs import _09_mistakes as wrong
from labkit.course.labs._09_words import FAR
from labkit.course.labs._kernel_mistakes import NO_KERNEL, With, beyond, unfilled


def _saves_always(failure: Failure) -> bool:
    """Whether a kernel tried to store where nothing was to be saved: there is no pointer then."""
    return not failure.case.kwargs["constants"]["SAVE"] and failure.outcome.status == "error"


def _only_pre(failure: Failure) -> bool:
    """Whether what is saved is wrong, while the hidden rows are right."""
    pre, hidden = failure.got
    right_pre, right_hidden = failure.expected
    return torch.allclose(hidden, right_hidden, atol=1e-4) and not torch.allclose(pre, right_pre, atol=1e-4)


SWIGLU_EPILOGUE = (
    Mistake(
        "silu_of_up",
        "SiLU is on the up half. It belongs to the gate: hidden = SiLU(gate) · up. Nothing crashes, and a trained "
        "model talks nonsense.",
        like=With(wrong.swiglu_epilogue, WRONG="silu_of_up"),
    ),
    Mistake(
        "halves_swapped",
        "Gate and up are the wrong way round: the first F rows of an expert's matrix are the gate's.",
        like=With(wrong.swiglu_epilogue, WRONG="halves_swapped"),
    ),
    Mistake(
        "sigmoid_only",
        "The gate is a plain sigmoid. SiLU is the sigmoid times its own input: gate · sigmoid(gate).",
        like=With(wrong.swiglu_epilogue, WRONG="sigmoid_only"),
    ),
    Mistake(
        "no_activation",
        "Gate times up, without SiLU in between.",
        like=With(wrong.swiglu_epilogue, WRONG="no_activation"),
    ),
    Mistake(
        "silu_of_product",
        "SiLU was applied to gate · up. It belongs to the gate alone.",
        like=With(wrong.swiglu_epilogue, WRONG="silu_of_product"),
    ),
    Mistake(
        "added", "SiLU(gate) and up were added; they are multiplied.", like=With(wrong.swiglu_epilogue, WRONG="added")
    ),
    Mistake(
        "interleaved",
        "You took gate and up rows in turns, as some kernels store them. In transformers' layout the F gate rows come "
        "first, and the up row of column f is row F + f.",
        like=With(wrong.swiglu_epilogue, WRONG="interleaved"),
    ),
    Mistake(
        "next_block_is_up",
        "The up rows were taken BLOCK_N rows after the gate's. They begin F rows after: only where F is the block "
        "size is that the same.",
        like=With(wrong.swiglu_epilogue, WRONG="next_block_is_up"),
    ),
    Mistake(
        "up_is_gate",
        "Gate and up come from the same rows of the matrix. The up row of column f is row F + f.",
        like=With(wrong.swiglu_epilogue, WRONG="up_is_gate"),
    ),
    Mistake(
        "expert_too_near",
        "Experts' matrices lie 2 · F · D elements apart, gate and up together; yours lie F · D apart.",
        like=With(wrong.swiglu_epilogue, WRONG="expert_too_near"),
    ),
    Mistake(
        "rounded_early",
        "Where x is float16, gate and up were rounded to float16 before SiLU. They are in float32 registers: activate "
        "there, and let the store round once.",
        like=With(wrong.swiglu_epilogue, WRONG="rounded_early"),
    ),
    Mistake(
        "activated_saved",
        "What you saved is SiLU(gate), not gate. The backward pass needs SiLU's slope, and from SiLU's value alone it "
        "cannot be found: two gates below zero give the same.",
        like=With(wrong.swiglu_epilogue, WRONG="activated_saved"),
    ),
    Mistake(
        "up_saved_first",
        "The hidden rows are right; what was saved has up before gate. Gate goes to columns 0 to F - 1, up after it.",
        like=With(wrong.swiglu_epilogue, WRONG="up_saved_first"),
    ),
    Mistake(
        "never_saved",
        "The hidden rows are right, and the pre-activation was not stored where SAVE is true.",
        like=With(wrong.swiglu_epilogue, WRONG="never_saved"),
    ),
    Mistake(
        "always_saved",
        "Where SAVE is false there is no `pre` to write to, and your kernel writes to it. Put both stores under "
        "`if SAVE:`, which is decided when the kernel is compiled.",
        when=_saves_always,
    ),
    Mistake(
        "no_mask",
        "Your kernel reads and writes outside its tensors: rows end at `offset[expert + 1]`, columns at F, depth at D.",
        when=beyond("reads", "writes"),
    ),
    Mistake(
        "reads_beyond",
        "Your kernel reads outside its tensors. The columns end at F, for gate and for up; a column of F or more is "
        "the other half's row, or the next expert's.",
        when=beyond("reads"),
    ),
    Mistake(
        "writes_beyond",
        "Your kernel writes outside its outputs. A row of `pre` has 2 · F elements, a row of `hidden` F; mask the rows "
        "and the columns of all three stores.",
        when=beyond("writes"),
    ),
    FAR,
    NO_KERNEL,
    Mistake(
        "pre_misplaced",
        "The hidden rows are right, and what was saved is not. Row r of `pre` begins at r · 2 · F; gate is there, and "
        "up F elements later.",
        when=_only_pre,
    ),
    Mistake(
        "not_all_written",
        "Part of an output was never written: it still has the NaN that the check put there.",
        when=unfilled,
    ),
)

WEIGHT_GRADIENT = (
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
