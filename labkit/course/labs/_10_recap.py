"""Lab 10: the recap's questions."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "A model of 7 billion parameters is trained in mixed precision with Adam, with checkpointing of every layer. "
        "On a card of 16 GB it does not fit. What is too large?",
        (
            Choice(
                "The activations",
                "Checkpointing makes them small. Sixteen bytes a parameter stand there before the first token arrives.",
            ),
            Choice(
                "Weights, gradients and optimizer",
                "Yes: 112 GB of them, and checkpointing touches none of it.",
                right=True,
            ),
            Choice("The KV cache", "There is none in training."),
        ),
    ),
    Question(
        "You free half of all tensors, every second one, and the allocator still cannot give you one large tensor "
        "without asking the driver for more. Why?",
        (
            Choice("It waits for the garbage collector", "Reference counts free a tensor at once."),
            Choice(
                "No free piece is as long as the tensor",
                "Yes: fragmentation. The bytes are there, and not next to each other.",
                right=True,
            ),
            Choice("Sizes are rounded up to 512 bytes", "That costs a little for each tensor, and joins nothing."),
        ),
    ),
    Question(
        "Each layer keeps 40 times what its input takes. Sixty layers, checkpointed in segments. Which length needs "
        "the least memory?",
        (
            Choice(
                "One layer",
                "Yes: 59 inputs wait and one layer keeps 40, 99 in all. Segments of two need 29 + 80.",
                right=True,
            ),
            Choice(
                "Eight, about the square root of sixty",
                "That is right where a layer keeps no more than its input. Here eight layers keep 320.",
            ),
            Choice("All sixty", "That is no checkpointing at all: 2400."),
        ),
    ),
    Question(
        "Flash attention computes the scores a second time in its backward pass. It is faster all the same, because",
        (
            Choice("it does fewer FLOPs", "It does more: one product again, forward and backward."),
            Choice(
                "S² scores never go through memory",
                "Yes. Products are cheap beside reading and writing S² numbers several times.",
                right=True,
            ),
            Choice("it approximates the softmax", "It is exact, up to rounding."),
        ),
    ),
    Question(
        "Weights and updates are in bfloat16. Late in training the loss stands still, and in float32 it falls on. "
        "What happens?",
        (
            Choice("Gradients underflow", "bfloat16 has the exponents of float32: hardly anything underflows."),
            Choice(
                "Updates below half a step of the weight are rounded away",
                "Yes. A float32 master copy adds them up; stochastic rounding takes one of many, at the right rate.",
                right=True,
            ),
            Choice("The loss overflows", "Then it would be infinite, and not stand still."),
        ),
    ),
    Question(
        "Loss scaling multiplies the loss by 2¹⁶ before the backward pass and divides the gradients afterwards. In "
        "which format does that help?",
        (
            Choice("float32", "There is nothing to help: its smallest numbers are far below every gradient."),
            Choice(
                "bfloat16",
                "It has the range of float32; a factor of two changes no rounding.",
            ),
            Choice(
                "float16",
                "Yes: below 6·10⁻⁸ everything is zero there. The factor moves the gradients up, away from it.",
                right=True,
            ),
        ),
    ),
)
