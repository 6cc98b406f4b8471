"""Lab 11: the recap's questions."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "A matrix in INT8 has one scale. One of its weights becomes a hundred times larger than all others. What "
        "happens to the rest?",
        (
            Choice(
                "Nothing: each weight is rounded by itself", "Rounded by itself, on the grid that all of them share."
            ),
            Choice(
                "It is left with one or two steps on either side of zero",
                "Yes: the step grows a hundredfold. A scale for every row or group keeps the damage where it belongs.",
                right=True,
            ),
            Choice("It overflows", "The scale grows so that nothing does. That is the trouble."),
        ),
    ),
    Question(
        "NF4 has sixteen levels, more of them near zero than at the ends. On which numbers does it lose to sixteen "
        "equal steps?",
        (
            Choice("On normal ones", "Those are what it was made for."),
            Choice(
                "On numbers spread evenly over the block's range",
                "Yes: there the wide gaps at the ends are met as often as the narrow ones in the middle.",
                right=True,
            ),
            Choice("On none, its levels are optimal", "For one distribution, and one way to choose the scale."),
        ),
    ),
    Question(
        "INT8 and FP8 both take a byte. A row's weights are all of about the same size. Which is nearer to them?",
        (
            Choice(
                "INT8",
                "Yes: 127 equal steps are all where the weights are. E4M3 has eight steps between a power of two and "
                "the next, and spends the other codes on numbers that do not occur.",
                right=True,
            ),
            Choice("FP8", "It wins where sizes differ by orders of magnitude; that is what exponent bits are for."),
            Choice("They are equal, a byte is a byte", "Both have 256 codes. They lie elsewhere."),
        ),
    ),
    Question(
        "A tool says that it loaded your mixture of experts in 4 bits. Memory has fallen by a tenth. What is likely?",
        (
            Choice("The scales take the rest", "They take an eighth of what 4-bit codes take."),
            Choice(
                "It packed linear layers only, and the experts are one fused tensor",
                "Yes. It looked for `nn.Linear` and found attention. Weigh every room, by storage.",
                right=True,
            ),
            Choice("4-bit weights are stored in 16 bits", "Two of them share a byte."),
        ),
    ),
    Question(
        "Weights alone are in INT8; products stay in bfloat16. When does that save time?",
        (
            Choice("Always: half of the bytes", "Only if bytes were what took the time."),
            Choice(
                "When few tokens are read, and the weights' bytes are the limit",
                "Yes: decoding. With many tokens arithmetic is the limit, and making weights whole adds to it.",
                right=True,
            ),
            Choice("When many tokens are read at once", "Then every weight that was read serves many products."),
        ),
    ),
    Question(
        "Tokens with outliers get eight bits, the others four. The loss falls. What has to be shown before you say "
        "that "
        "the choice was clever?",
        (
            Choice("That the loss is lower than with four bits for all", "More bits help, whoever gets them."),
            Choice(
                "That it beats every fixed way to spend the same bits",
                "Yes: the same number of tokens at random, and the best layers in eight bits for all tokens.",
                right=True,
            ),
            Choice("That it is lower than with eight bits for all", "It costs less; it need not be better."),
        ),
    ),
)
