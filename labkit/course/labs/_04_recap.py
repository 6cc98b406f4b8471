"""Lab 04: the recap's questions."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "Every expert is split into four, and four times as many are chosen. What stays the same?",
        (
            Choice(
                "The number of possible combinations",
                "That is what grows: 16 choose 2 is 120, 64 choose 8 is over four billion.",
            ),
            Choice(
                "The parameters and FLOPs of the experts",
                "Yes. Only the router grows, by a factor of four: it has a row for every expert.",
                right=True,
            ),
            Choice(
                "The bytes that a token sends to other devices",
                "Its experts are four times as many and can sit on up to four times as many devices: section 4 is "
                "about that price.",
            ),
        ),
    ),
    Question(
        "A split layer with a softmax router chooses all parts of each expert it chose before, and its output is one "
        "quarter of what it was. Why?",
        (
            Choice("The parts are narrower", "Together they have all hidden units, so their plain sum is the expert."),
            Choice("The gate's SiLU is not linear", "Each hidden unit keeps its own gate; nothing in it changed."),
            Choice(
                "Four twins share one expert's score",
                "Yes: the softmax runs over four times as many logits, and each twin gets a quarter.",
                right=True,
            ),
        ),
    ),
    Question(
        "What weight does DeepSeek's router give to a shared expert?",
        (
            Choice("The highest score of the token", "It is not in the router's list at all."),
            Choice(
                "None: it is added as it is, for every token",
                "Yes. It is a dense layer beside the sparse one.",
                right=True,
            ),
            Choice("1/S each, so that S of them average", "They are summed; S of width F are one of width S·F."),
        ),
    ),
    Question(
        "Forbidden groups are masked with 0 before top-k. When does that go wrong?",
        (
            Choice("When scores come from a softmax", "Then they are positive, and 0 loses to all of them."),
            Choice(
                "When too many groups are allowed",
                "Then fewer are masked, which harms nothing: 0 loses to every positive score, of few groups or many.",
            ),
            Choice(
                "When a selection bias makes the allowed scores negative",
                "Yes: 0 is then the highest value of the row. Minus infinity can never win.",
                right=True,
            ),
        ),
    ),
    Question(
        "An untrained router, random weights, shows lifts well outside the permuted interval. What does that mean?",
        (
            Choice(
                "The domains look different to it; nothing has been learned",
                "Yes. The permuted baseline asks whether choice and domain are related at all. What training added "
                "is the distance to the untrained router.",
                right=True,
            ),
            Choice("The baseline was computed wrongly", "It was right: domains do have different bytes in them."),
            Choice(
                "The experts specialise before they are trained",
                "Only the router was read, and it is random. No expert had learned anything, or was asked.",
            ),
        ),
    ),
    Question(
        "Why must the permutation move whole sequences and not single tokens?",
        (
            Choice("It is faster", "Hardly, and that would be no reason."),
            Choice(
                "Tokens of one text are alike, so there are fewer independent draws than tokens",
                "Yes. Shuffling tokens pretends to thousands of draws; the baseline comes out too low and too narrow, "
                "and chance looks like specialisation.",
                right=True,
            ),
            Choice("Because domains have unequal sizes", "Shuffling tokens keeps the sizes too."),
        ),
    ),
)
