"""Lab 12: the recap's questions."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "Two decoding requests share a batch instead of running one after the other. Why is that nearly twice as fast?",
        (
            Choice("Half as much is computed", "The same multiplications are done, for two rows instead of one twice."),
            Choice(
                "The weights are read once for both",
                "Yes: a decode step waits for memory, and what it reads serves every row of the batch.",
                right=True,
            ),
            Choice(
                "They share a KV cache",
                "Each has its own; only a common beginning can be shared.",
            ),
        ),
    ),
    Question(
        "A batch was padded on the right, with a right mask. What goes wrong when an answer is generated?",
        (
            Choice(
                "Its next token is read off a padding column, and the answer stands behind a gap",
                "Yes. On the left, every prompt ends in the last column and its answer follows it.",
                right=True,
            ),
            Choice(
                "Nothing, if the mask is right", "The mask keeps padding from being seen; it does not move the end."
            ),
            Choice("The prompt's own keys become wrong", "They are those of a prompt alone: nobody saw the padding."),
        ),
    ),
    Question(
        "Prompts are sorted into buckets of similar length, eight to a batch. What waste is left?",
        (
            Choice("None", "Nobody knows how long the answers will be."),
            Choice(
                "Rows whose answer has ended, until the longest of the batch is done",
                "Yes: buckets know prompts. Only a batch whose members come and go does not wait.",
                right=True,
            ),
            Choice("Padding to the model's maximum", "A bucket is padded to its longest prompt, or to its edge."),
        ),
    ),
    Question(
        "A sequence is forked into four answers. When is its last, half-full block copied?",
        (
            Choice("At the fork", "Then three copies would be made that perhaps nobody needs yet."),
            Choice(
                "When somebody writes into it while others hold it",
                "Yes, and the last of them who is left may write without a copy.",
                right=True,
            ),
            Choice("Never: keys do not change", "Old ones do not, but the next token's key goes into the same block."),
        ),
    ),
    Question(
        "No block is free, and the first sequence needs one. Why does the last one lose its blocks, not the first?",
        (
            Choice(
                "The last has computed least",
                "Often, but a last one may have a long prompt. That is not what the order is for.",
            ),
            Choice(
                "So the first gets on, and everybody comes to be first",
                "Yes: with one fixed order nobody starves, and two cannot throw each other out in turn.",
                right=True,
            ),
            Choice("Its user will not notice", "That user waits longer, and the tokens already sent stay right."),
        ),
    ),
    Question(
        "An engine serves more tokens a second than another. Is it the better one?",
        (
            Choice(
                "Not yet: how long do first tokens and gaps take at that load?",
                "Yes. A larger batch always serves more, and everybody in it waits longer.",
                right=True,
            ),
            Choice(
                "Yes: that is what throughput means", "A batch of everything that comes has it, and nobody reads it."
            ),
            Choice(
                "Only if its mean latency is lower too",
                "A mean hides the pauses. Ask for percentiles, of first tokens and of gaps.",
            ),
        ),
    ),
)
