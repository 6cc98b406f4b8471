"""Lab 09: the MoE layer as three kernels, forward and backward. Its exercises and words that help.

What they are tested on lies in `_09_cases`, right answers in `_09_answers`, the mistakes that their checks know in
`_09_words`, `_09_map_words`, `_09_more_words` and `_09_gradient_words`, as `_09_mistakes` and `_09_orders` make them.
Kernels are launched by `kernels.guard`.
"""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.labs import Lab
from labkit.course.labs import _09_answers as right
from labkit.course.labs import _09_cases as inputs
from labkit.course.labs import _09_gradient_words as gradient
from labkit.course.labs import _09_map_words as maps
from labkit.course.labs import _09_more_words as more
from labkit.course.labs import _09_oracles as theirs
from labkit.course.labs import _09_words as words
from labkit.course.labs._09_recap import QUESTIONS

TILE_MAP = Exercise(
    id="09.tile_map",
    title="From counts to tiles, without sorting",
    difficulty=2,
    minutes=20,
    points=2,
    reference=right.tile_map,
    cases=inputs.map_cases,
    hints=(
        "Three questions: how many tiles does each expert need, whose is tile number m, and the how-manieth of its "
        "expert's tiles is it?",
        "Rounding up in whole numbers is (c + block_m - 1) // block_m. `a.repeat_interleave(n)` repeats each element "
        "of a as often as n says. A running sum minus the count itself is where each begins, for rows and for tiles "
        "alike. A `torch.arange` of your own needs device=counts.device.",
        "tiles_E as above; expert_M = torch.arange(E, device=counts.device).repeat_interleave(tiles_E); within_M = "
        "torch.arange(len(expert_M), device=counts.device) - (tiles_E.cumsum(0) - tiles_E)[expert_M]; the first row is "
        "(counts.cumsum(0) - counts)[expert_M] + within_M * block_m.",
    ),
    mistakes=maps.TILE_MAP,
    oracle=Oracle("torch.split, once by expert and once by tile", theirs.tile_map),
)

GATHER = Exercise(
    id="09.gather",
    title="A grouped product that gathers its rows",
    difficulty=2,
    minutes=30,
    points=4,
    reference=right.gather,
    cases=inputs.gather_cases,
    hints=(
        "Take `grouped_kernel` from above and ask of each line: does it speak of a row in expert order, or of the "
        "token that stands there? One load is new, one changes.",
        "token = tl.load(token_ptr + row, mask=mine, other=0), and x's rows begin at x_ptr + token[:, None] * D. The "
        "expert, the ragged end and the store are as they were.",
        "In the loop: x = tl.load(x_ptr + token[:, None] * D + k[None, :], mask=mine[:, None] & (k < D)[None, :], "
        "other=0.0); w = tl.load(weights_ptr + (expert * W + column)[None, :] * D + k[:, None], mask=(column < "
        "W)[None, :] & (k < D)[:, None], other=0.0); product = tl.dot(x, w, product).",
    ),
    mistakes=words.GATHER,
    oracle=Oracle("torch's grouped_mm", theirs.gather, fits=theirs.multiples_of_four),
)

SWIGLU_EPILOGUE = Exercise(
    id="09.swiglu_epilogue",
    title="Gate, up and SwiGLU in one kernel",
    difficulty=3,
    minutes=30,
    points=4,
    reference=right.swiglu_epilogue,
    cases=inputs.swiglu_cases,
    hints=(
        "Your `gather`, with two sums instead of one: each step loads x once and multiplies it by two tiles of the "
        "matrix. What is F rows further down?",
        "gate_row = gate_up_ptr + (expert * 2 * F + column)[None, :] * D, and up's rows begin F * D elements later; "
        "both are masked with column < F. After the loop everything is in registers, in float32.",
        "if SAVE: store gate at pre_ptr + row[:, None] * 2 * F + column[None, :], up F elements later. Then store "
        "gate * tl.sigmoid(gate) * up at hidden_ptr + row[:, None] * F + column[None, :]. All three with the mask "
        "mine[:, None] & (column < F)[None, :].",
    ),
    mistakes=more.SWIGLU_EPILOGUE,
    oracle=Oracle("transformers' Mixtral experts and torch's grouped_mm", theirs.swiglu_epilogue, fits=theirs.narrow),
)

TILE_ORDER = Exercise(
    id="09.tile_order",
    title="An order in which neighbours share",
    difficulty=1,
    minutes=15,
    points=2,
    reference=right.tile_order,
    cases=inputs.order_cases,
    hints=(
        "How many tiles are in a whole group? Dividing by that gives the group's number, the rest is the place within.",
        "A group begins at row number · group, and has min(group, rows - first) rows. Within it, going down first: the "
        "row is the place modulo its size, the column the place divided by it.",
        "first = tile // (group * columns) * group; size = (rows - first).clamp(max=group); within = tile % (group * "
        "columns); return first + within % size, within // size.",
    ),
    mistakes=maps.TILE_ORDER,
    oracle=Oracle("Triton's swizzle2d", theirs.tile_order),
)

WEIGHT_GRADIENT = Exercise(
    id="09.weight_gradient",
    title="The gradient of an expert's matrix",
    difficulty=3,
    minutes=30,
    points=4,
    reference=right.weight_gradient,
    cases=inputs.gradient_cases,
    hints=(
        "A product whose *depth* is the expert's rows: [D, rows] times [rows, W]. Which of the three axes has the "
        "ragged end now?",
        "for start in range(first, end, BLOCK_K): row = start + tl.arange(0, BLOCK_K), masked by row < end. x is "
        "gathered by token, y is not. tl.dot(tl.trans(x), y, product) adds [BLOCK_M, BLOCK_N].",
        "x at x_ptr + token[:, None] * D + d[None, :], y at y_ptr + row[:, None] * W + w[None, :], each masked by "
        "rows and by its own width, other=0.0. Store, also when there are no rows, at out_ptr + expert * D * W + d[:, "
        "None] * d_stride + w[None, :] * w_stride.",
    ),
    mistakes=gradient.WEIGHT_GRADIENT,
    oracle=Oracle("torch's own gradient of grouped_mm", theirs.weight_gradient, fits=theirs.multiples_of_four),
)

LAB = Lab(
    number="09",
    name="grouped_gemm",
    title="Grouped products: the MoE layer as three kernels",
    minutes=150,
    hardware="any CPU with Linux (kernels are interpreted); a GPU for every time of a kernel",
    claims=(),
    exercises=(TILE_MAP, GATHER, SWIGLU_EPILOGUE, TILE_ORDER, WEIGHT_GRADIENT),
    questions=QUESTIONS,
)
