"""Lab 09: the recap's questions."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "64 experts get 32 tokens each. A kernel computes them in tiles of 128 rows. Which share of the rows that it "
        "multiplies is real?",
        (
            Choice("All of them", "Each expert's 32 rows stand alone in a tile of 128: a tile has one matrix."),
            Choice("A quarter", "Yes, 32 of 128. With tiles of 32 rows it would be all of them.", right=True),
            Choice(
                "Half",
                "That is what one expects of the *last* tile of a large expert. Here the last one is the only one.",
            ),
        ),
    ),
    Question(
        "The gather moved into the grouped product. What was saved?",
        (
            Choice("FLOPs", "A copy multiplies nothing. The product is the same."),
            Choice(
                "A copy of all rows, K times as large as x, written once and read once",
                "Yes: the rows come from token order while the tile is loaded, and no copy is ever made.",
                right=True,
            ),
            Choice(
                "The map",
                "The map is still needed: it says which token each row is.",
            ),
        ),
    ),
    Question(
        "Each token's K outputs are added with atomic additions in float32. The same inputs give results that differ "
        "in the last bits from run to run. Why?",
        (
            Choice(
                "Atomics lose additions now and then",
                "They do not: that is what the word atomic promises.",
            ),
            Choice(
                "The order of the additions differs, and rounding depends on it",
                "Yes: (a + b) + c is not a + (b + c). Adding in the order of the slots costs nothing and is the same "
                "every time.",
                right=True,
            ),
            Choice("float32 is too narrow; in float64 it cannot happen", "It is rarer there, and still happens."),
        ),
    ),
    Question(
        "Which tensor has to be kept between forward and backward, besides x, the scores and the map?",
        (
            Choice(
                "The hidden rows, SiLU(gate) · up",
                "They can be made again from gate and up, but not the other way round.",
            ),
            Choice("The pre-activation, gate and up", "Yes: everything else follows from it in one pass.", right=True),
            Choice(
                "Both, and the output rows", "That is what autograd does on its own; it is more than twice as much."
            ),
        ),
    ),
    Question(
        "An expert got no token in this step. Its weight gradient",
        (
            Choice(
                "needs no program: nothing to add up",
                "The tensor was handed out uninitialised. Unless somebody writes zeros, the optimizer reads garbage.",
            ),
            Choice(
                "must be written as zeros", "Yes: the loop runs zero times, and the store still happens.", right=True
            ),
            Choice(
                "is the same as in the step before",
                "That would be momentum, which the optimizer keeps for itself.",
            ),
        ),
    ),
    Question(
        "At one token of OLMoE, 8 experts, which change makes the layer much faster?",
        (
            Choice(
                "Larger tiles",
                "A tile of 128 rows holds one real row then. The time is that of reading eight experts' weights.",
            ),
            Choice(
                "Fewer launches, as in a CUDA graph, and weights in fewer bits",
                "Yes: it is bound by launches first and by the weights' bytes next; arithmetic is idle.",
                right=True,
            ),
            Choice("A better order of tiles", "Each weight is read once in any order: there is nothing to share."),
        ),
    ),
)
