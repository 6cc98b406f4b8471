"""Lab 00: your machine, the map, the claims. Its exercises and the words that help; those about memory in `_00_memory`.

What they are tested on lies in `_00_cases`, the mistaken implementations in `_00_mistakes`.
"""

from __future__ import annotations

from labkit.course.exercise import Exercise, Oracle
from labkit.course.judge import Mistake
from labkit.course.labs import Lab
from labkit.course.labs import _00_cases as right
from labkit.course.labs import _00_mistakes as wrong
from labkit.course.labs import _00_oracles as theirs
from labkit.course.labs._00_memory import ADAM_MEMORY, GPUS_NEEDED, KV_BYTES
from labkit.course.labs._00_recap import QUESTIONS

EXPERT_PARAMS = Exercise(
    id="00.expert_params",
    title="Parameters of one expert",
    difficulty=1,
    minutes=3,
    points=1,
    reference=right.expert_params,
    cases=right.expert_cases,
    hints=(
        "Count matrices first, then the size of each. The formula in the text above has one letter for each matrix.",
        "W_gate and W_up lead from D to F, W_down leads back. None of them has a bias.",
        "Each has D·F entries, whichever way it leads, so the body is one line: that product, as often as there are "
        "matrices.",
    ),
    mistakes=(
        Mistake(
            "two_matrices",
            "You counted the two matrices of the classic feed-forward layer, up and down. SwiGLU has one more: look at "
            "what stands inside its SiLU.",
            like=wrong.expert_two_matrices,
        ),
        Mistake(
            "one_matrix",
            "That is one matrix. A token has to enter the expert, be gated, and come out again.",
            like=wrong.expert_one_matrix,
        ),
        Mistake(
            "with_biases",
            "The matrices are right, but you gave them biases. GPT-OSS has those; the experts of this exercise, like "
            "those of Mixtral, OLMoE, Qwen3 and DeepSeek, have none.",
            like=wrong.expert_with_biases,
        ),
        Mistake(
            "square",
            "Your matrices are D × D, as in attention. An expert has a width of its own, F, on its inside.",
            like=wrong.expert_square,
        ),
        Mistake(
            "added_widths",
            "You added the widths. A matrix that leads from D values to F values has a number for every pair of them.",
            like=wrong.expert_added,
        ),
    ),
    oracle=Oracle("transformers' SwiGLU network on the meta device", theirs.expert_params),
)

LAYER_PARAMS = Exercise(
    id="00.layer_params",
    title="Total and active parameters of a sparse layer",
    difficulty=1,
    minutes=10,
    points=2,
    reference=right.layer_params,
    cases=right.layer_cases,
    hints=(
        "Sort the parts into two heaps: what every token uses, and what only some tokens use. Only one part belongs to "
        "the second heap.",
        "Every token uses the router, all of it (E·D), and every shared expert. Of the E routed experts `total` counts "
        "all, `active` K.",
        "Start with expert = 3 * d_model * d_expert, as in the first exercise, and put the first heap into a variable "
        "`always`. Then both results are `always` plus a number of experts, and only that number differs.",
    ),
    mistakes=(
        Mistake(
            "order",
            "Both numbers are right, in the wrong order: the total comes first, then the active ones.",
            like=wrong.layer_swapped,
        ),
        Mistake(
            "no_router",
            "The experts are right; the router is missing. It is one matrix, with a row of D numbers for each expert. "
            "Small, but without it nobody knows where to go.",
            like=wrong.layer_without_router,
        ),
        Mistake(
            "partial_router",
            "You counted only K rows of the router as active. To find the best K it must score all E experts first, so "
            "every token uses every row.",
            like=wrong.layer_partial_router,
        ),
        Mistake(
            "router_asleep",
            "The total has the router, the active count has not. Does a token get anywhere without being routed?",
            like=wrong.layer_router_asleep,
        ),
        Mistake(
            "shared_asleep",
            "Shared experts are missing among the active ones. What makes them shared is that every token visits them.",
            like=wrong.layer_shared_asleep,
        ),
        Mistake(
            "no_shared",
            "`num_shared_experts` never reaches the result. Shared experts come on top of the routed ones.",
            like=wrong.layer_without_shared,
        ),
        Mistake(
            "shared_in_router",
            "The experts are right, but your router has a row for each shared expert too. Nothing is decided about "
            "those, so the router does not know them.",
            like=wrong.layer_shared_in_router,
        ),
        Mistake(
            "all_active",
            "Here every parameter is active: that is a dense layer. A token visits K of the E routed experts.",
            like=wrong.layer_all_active,
        ),
        Mistake(
            "scaled_total",
            "You took K/E of the whole layer. Only the routed experts shrink by that share; the router and the shared "
            "experts are used in full.",
            like=wrong.layer_scaled,
            when=wrong.scaled_without_rounding,
        ),
    ),
    oracle=Oracle(
        "transformers' sparse blocks and the gradient of one token",
        theirs.layer_params,
        fits=lambda case: case.args[0] < 100,
    ),
)

LAB = Lab(
    number="00",
    name="start",
    title="Start: your machine, the map, the claims",
    minutes=50,
    hardware="any CPU; with a GPU, the last check weighs a layer of real size",
    claims=(6,),
    exercises=(EXPERT_PARAMS, LAYER_PARAMS, KV_BYTES, ADAM_MEMORY, GPUS_NEEDED),
    questions=QUESTIONS,
)
