"""Lab 16: the recap's questions."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "Expert parallelism with 8 ranks instead of one GPU: what of a layer is on each rank?",
        (
            Choice("An eighth of every expert", "That is tensor parallelism: each matrix is cut."),
            Choice(
                "An eighth of the experts, whole, and all of the rest",
                "Yes: attention and router are there eight times, tokens travel to their experts and back.",
                right=True,
            ),
            Choice("All experts, and an eighth of the tokens", "That is data parallelism; no token has to travel."),
        ),
    ),
    Question(
        "A rank has no token in this micro-batch. What does it do in the all-to-all?",
        (
            Choice("It skips the call", "Then the others wait until their timeout: a collective wants everybody."),
            Choice(
                "It calls it with counts of zero, and its experts work for the others",
                "Yes. Nothing to send is not nothing to receive.",
                right=True,
            ),
            Choice("It sends one empty row to each", "Rows of padding would be computed by somebody. Zero is a count."),
        ),
    ),
    Question(
        "A token has 8 of 256 experts on 8 nodes, 4 nodes at most. What does the limit save?",
        (
            Choice("Half of the arithmetic", "Eight experts compute as before."),
            Choice(
                "Trips over the network: at most 4 instead of up to 8; inside a node NVLink carries the rest",
                "Yes: one copy travels to each node and is handed on there.",
                right=True,
            ),
            Choice("Nothing, if routing is balanced", "Balanced routing spreads a token over more nodes, not fewer."),
        ),
    ),
    Question(
        "One expert has a fifth of all tokens; there are 8 GPUs. Why does packing alone not help?",
        (
            Choice(
                "Its GPU has more than the mean, an eighth, whatever else lies there",
                "Yes. Only a copy elsewhere takes load off it.",
                right=True,
            ),
            Choice(
                "Packing needs equally many experts on each GPU", "It has them, and that is not what is in the way."
            ),
            Choice("Greedy packing is not optimal", "The best packing cannot cut an expert either."),
        ),
    ),
    Question(
        "Dispatch goes out in fp8 and results come back in bf16. What is risked, what saved?",
        (
            Choice("Half of all bytes, at no risk", "Only one way is halved, and three bits of mantissa are a risk."),
            Choice(
                "Half of the bytes on the way out; an error of a few per cent in each activation that travels",
                "Yes, with a scale for each block of values. Sums of results are more delicate, and stay wider.",
                right=True,
            ),
            Choice("The weights' precision", "Weights stay where they are. Activations travel."),
        ),
    ),
    Question(
        "The batch of all GPUs together stays as it is. Twice as many GPUs: what happens to the pipeline's bubble?",
        (
            Choice("It stays: the number of stages has not changed", "Its length has not; the work beside it has."),
            Choice(
                "Each pipeline has half as many micro-batches, so its share grows",
                "Yes: (p − 1)/(m + p − 1) with half of m. A larger batch would help, and costs learning.",
                right=True,
            ),
            Choice("It shrinks with the work", "The idle slots are as many as before, and the busy ones fewer."),
        ),
    ),
)
