"""Lab 05: the recap's questions."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "All positions of a sequence are shifted by 1000, with rotary positions. What happens to the attention scores?",
        (
            Choice("They fade, since slow pairs have turned further", "Both members of a product turned further, by "
                   "the same angle; what counts is the difference."),
            Choice("They stay the same", "Yes: a score depends on the distance alone. (Up to rounding of the angles.)",
                   right=True),
            Choice("They change, because the model has never seen these positions", "What a model has not seen are "
                   "*distances* beyond its context. A shift changes no distance."),
        ),
    ),
    Question(
        "A checkpoint with pairs of neighbours is loaded into code that turns by halves. What do you notice?",
        (
            Choice("Nothing, it is the same function", "Only if the rows of the query and key matrices are permuted "
                   "as well."),
            Choice("A shape error", "Shapes are the same. That is what makes it so hard to find."),
            Choice("The first token is fine, and with distance everything goes wrong",
                   "Yes. Nothing turns at distance zero, and the wrong dimensions meet the wrong angles beyond.",
                   right=True),
        ),
    ),
    Question(
        "Why does MLA keep a rotary key beside the latent?",
        (
            Choice("The rotation depends on the position, so it cannot be part of a matrix that is folded away",
                   "Yes. Between W_UK and the query there would be a different rotation for each pair of positions.",
                   right=True),
            Choice("For precision", "The latent could hold it as precisely."),
            Choice("Because values need positions too", "Values carry none, in MLA as elsewhere."),
        ),
    ),
    Question(
        "Torch's attention is given the folded query and the latents, without a `scale`. Why is the result wrong?",
        (
            Choice("It divides by the root of the width that it sees", "Yes: R + r instead of n + r. The scores of the "
                   "folded form are the same numbers, so their scale must be too.", right=True),
            Choice("The latents are not normalised", "They are, before they enter the cache."),
            Choice("The folded query is longer, so its scores are larger", "Folding moves a matrix from one side of "
                   "the product to the other. The score is the same number."),
        ),
    ),
    Question(
        "DeepSeek-V3 reads a prompt of 4,000 tokens for the first time. Which form of MLA needs fewer FLOPs?",
        (
            Choice("Absorbed: it never makes keys and values", "It pays for every pair of positions instead, with "
                   "heads as wide as the latent."),
            Choice("Expanded", "Yes. Each latent is expanded once and read by thousands of queries with narrow heads.",
                   right=True),
            Choice("Both the same, as they are the same function", "The same function, in another order of products."),
        ),
    ),
    Question(
        "A padding query sees nothing at all, and its softmax is written out. Nobody uses its output. Why care?",
        (
            Choice("It costs time", "No more than any other row."),
            Choice("0/0 is NaN, and NaN times zero is NaN", "Yes: in the next layer it is a key and a value, and a "
                   "share of zero does not remove it.", right=True),
            Choice("Torch raises an error", "It does not. Written out it is NaN; torch's own attention or a large "
                   "negative number instead of minus infinity give other things."),
        ),
    ),
)  # fmt: skip
