"""Lab 06: the recap's questions."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "In a pre-norm block, what does the feed-forward layer read?",
        (
            Choice(
                "The norm of the block's input",
                "That is the parallel block: it would not know what attention has just added.",
            ),
            Choice(
                "The norm of the input plus what attention made of it",
                "Yes. And its output is added to that same sum, without a norm.",
                right=True,
            ),
            Choice(
                "What attention made of the normed input",
                "Then attention would replace the stream; everything is added to it.",
            ),
        ),
    ),
    Question(
        "Half of a model's sparse layers are made dense, each dense layer as wide as the K experts that a token "
        "visits. What happens to the active parameters?",
        (
            Choice(
                "They are halved", "The dense layers work for every token, and they are as wide as what they replace."
            ),
            Choice("They double", "A dense layer of that width costs what the K experts cost."),
            Choice(
                "They hardly change: only the routers of those layers go",
                "Yes. It is the total that shrinks, by the experts that a token does not visit.",
                right=True,
            ),
        ),
    ),
    Question(
        "A row of the batch has three pads on the left and five tokens. At which position is its next token rotated?",
        (
            Choice("8", "That counts the pads: the answer would depend on how long its neighbours are."),
            Choice("5", "Yes: positions count the real tokens of the row, from 0.", right=True),
            Choice("0", "It is not the first token; five keys with positions 0 to 4 are in the cache."),
        ),
    ),
    Question(
        "Generation with a cache gives the right tokens. What does that prove about the cache?",
        (
            Choice(
                "That it does no harm; whether it is used, only the work can tell",
                "Yes: count FLOPs, and count what was read from it.",
                right=True,
            ),
            Choice(
                "That it works",
                "A model that ignores its cache and computes everything anew gives the right tokens too.",
            ),
            Choice("Nothing at all", "A wrong mask or position would have shown in the tokens, in most cases."),
        ),
    ),
    Question(
        "A file holds a tensor that our model has no place for. What should loading do?",
        (
            Choice("Leave it out; the rest is there", "Then a file of another architecture can load, and be nonsense."),
            Choice(
                "Print a warning",
                "Warnings scroll away. Transformers does print a report, and many have not read it.",
            ),
            Choice("Refuse, and name it", "Yes. Who knows that it is harmless can say so.", right=True),
        ),
    ),
    Question(
        "top_k = 50 and top_p = 0.9 together, in transformers: 90% of what?",
        (
            Choice(
                "Of the probability that the fifty have among themselves",
                "Yes: top-k comes first, and the softmax that top-p adds up runs over what is left.",
                right=True,
            ),
            Choice("Of the whole softmax", "The other tokens are at minus infinity by then and hold nothing."),
            Choice("Of the fifty tokens, so 45 of them", "p is probability, not a number of tokens."),
        ),
    ),
)
