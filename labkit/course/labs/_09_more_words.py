"""Lab 09: the mistakes in an epilogue that its check knows, and the words for each."""

from __future__ import annotations

import torch

from labkit.course.judge import Failure, Mistake
from labkit.course.labs import _09_mistakes as wrong
from labkit.course.labs._09_words import FAR, rounded, three_sizes
from labkit.course.labs._kernel_mistakes import NO_KERNEL, With, beyond, unfilled


def _saves_always(failure: Failure) -> bool:
    """Whether a kernel tried to store where nothing was to be saved: there is no pointer then."""
    outcome = failure.outcome
    failed = outcome.status == "error" and outcome.error_type != "OutOfBounds"
    return failed and not failure.case.kwargs["constants"]["SAVE"]


def _only_pre(failure: Failure) -> bool:
    """Whether what is saved is wrong, while the hidden rows are right."""
    pre, hidden = failure.got
    right_pre, right_hidden = failure.expected
    return torch.allclose(hidden, right_hidden, atol=1e-4) and not torch.allclose(pre, right_pre, atol=1e-4)


SWIGLU_EPILOGUE = (
    Mistake(
        "blocks_mixed_up",
        "Right while all blocks are 16 wide. Rows come in blocks of BLOCK_M, columns of BLOCK_N, the depth in steps of "
        "BLOCK_K: look at each `arange`, at the loop's step, and at the shapes of both sums.",
        when=three_sizes,
    ),
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
        "Where x is float16, gate, up or what is made of them was rounded to float16 before it was stored as float32. "
        "They are in float32 registers: activate there, and let the store round once.",
        like=With(wrong.swiglu_epilogue, WRONG="rounded_early"),
        when=rounded,
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
        "hidden_saved",
        "Gate is saved, and beside it the hidden rows. The backward pass needs up as it was before the product.",
        like=With(wrong.swiglu_epilogue, WRONG="hidden_saved"),
    ),
    Mistake(
        "gate_saved_twice",
        "The hidden rows are right; both halves of what was saved are gate. Up goes to columns F to 2 · F - 1.",
        like=With(wrong.swiglu_epilogue, WRONG="gate_saved_twice"),
    ),
    Mistake(
        "up_not_saved",
        "The hidden rows are right; of what was to be saved, only gate was stored. Up goes F elements later.",
        like=With(wrong.swiglu_epilogue, WRONG="up_not_saved"),
    ),
    Mistake(
        "silu_every_step",
        "SiLU was applied in the loop, to a sum that is not finished. Right where the depth is one step: activate "
        "after the last.",
        like=With(wrong.swiglu_epilogue, WRONG="silu_every_step"),
    ),
    Mistake(
        "f_elements_further",
        "The up rows were taken F *elements* after the gate's. They begin F *rows* after, and a row has D elements: "
        "F · D further.",
        like=With(wrong.swiglu_epilogue, WRONG="f_elements_further"),
    ),
    Mistake(
        "last_step_only",
        "Only the last piece of the depth is in gate and up: each step overwrites the sums. Give `tl.dot` the sum so "
        "far.",
        like=With(wrong.swiglu_epilogue, WRONG="last_step_only"),
    ),
    Mistake(
        "up_overwritten",
        "Gate adds up its steps, up is overwritten by each. Give the second `tl.dot` its sum, too.",
        like=With(wrong.swiglu_epilogue, WRONG="up_overwritten"),
    ),
    Mistake(
        "up_onto_gate",
        "Up was added onto gate's sum. Each of the two has a sum of its own.",
        like=With(wrong.swiglu_epilogue, WRONG="up_onto_gate"),
    ),
    Mistake(
        "not_gathered",
        "Row r was made from row r of x, which is in token order. Which token row r is, `token_ptr` says.",
        like=With(wrong.swiglu_epilogue, WRONG="not_gathered"),
    ),
    Mistake(
        "by_token",
        "The results were stored at their token's row, where several rows overwrite each other. Outputs are in expert "
        "order: store at `row`.",
        like=With(wrong.swiglu_epilogue, WRONG="by_token"),
    ),
    Mistake(
        "one_expert_for_all",
        "Every tile is multiplied by the first expert's matrix. Expert e's begins e · 2 · F · D elements after it.",
        like=With(wrong.swiglu_epilogue, WRONG="one_expert_for_all"),
    ),
    Mistake(
        "not_transposed",
        "The matrix was read as [D, 2F]. It is stored as torch stores a linear layer, [2F, D]: element (k, column) of "
        "a tile is column · D + k elements after the matrix begins.",
        like=With(wrong.swiglu_epilogue, WRONG="not_transposed"),
    ),
    Mistake(
        "sigmoid_turned",
        "The sigmoid has the wrong sign: it is 1 / (1 + exp(-gate)).",
        like=With(wrong.swiglu_epilogue, WRONG="sigmoid_turned"),
    ),
    Mistake(
        "gelu",
        "This is GELU, or near it. SiLU is gate · sigmoid(gate), without a factor.",
        like=With(wrong.swiglu_epilogue, WRONG="gelu"),
    ),
    Mistake(
        "relu",
        "The gate went through ReLU. SiLU is gate · sigmoid(gate): smooth, and a little below zero for negative gates.",
        like=With(wrong.swiglu_epilogue, WRONG="relu"),
    ),
    Mistake(
        "no_mask",
        "Your kernel reads and writes outside its tensors: rows end at `offset[expert + 1]`, columns at F, depth at D.",
        when=beyond("reads", "writes"),
    ),
    Mistake(
        "reads_beyond",
        "Your kernel reads outside its tensors. The columns end at F, for gate and for up, and the depth at D; a "
        "column of F or more is the other half's row, or the next expert's.",
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
