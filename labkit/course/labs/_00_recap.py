"""Lab 00: the recap. Every wrong choice is a misunderstanding that people really have."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "A mixture-of-experts model has 30B parameters, of which 3B are active. What must fit into memory to serve it?",
        (
            Choice("The 3B active ones", "Which 3B? The next token may choose other experts, so all must be at hand."),
            Choice(
                "All 30B",
                "Yes: sparsity saves arithmetic and memory traffic for each token, not the space for the weights.",
                right=True,
            ),
            Choice("33B", "The active parameters are some of the 30B, not further ones."),
        ),
    ),
    Question(
        "Adam in mixed precision takes 16 bytes a parameter. Which part is the largest?",
        (
            Choice("The 16-bit weights", "They are 2 of the 16."),
            Choice("The gradients", "In 16 bits they are 2 of the 16."),
            Choice(
                "The two moments",
                "Yes: two float32 numbers for each parameter, 8 of the 16. The master copy is 4 more.",
                right=True,
            ),
            Choice(
                "The activations", "They depend on the batch, not on the parameters, so they are not in the 16 at all."
            ),
        ),
    ),
    Question(
        "Gradient checkpointing is switched on. What gets smaller?",
        (
            Choice(
                "The activations kept for the backward pass",
                "Yes, and only they. Weights, gradients and moments stay as large as they were.",
                right=True,
            ),
            Choice("The gradients", "Every parameter still has one, as wide as before."),
            Choice("Everything, by about the same share", "It touches nothing that is there before the first token."),
            Choice("The training time", "That grows: the forward pass is computed a second time, layer by layer."),
        ),
    ),
    Question(
        "A model has 32 query heads and 8 key-value heads. Its KV cache, compared with 32 key-value heads, is…",
        (
            Choice("the same: every query head needs keys", "Four query heads read the same keys; they are kept once."),
            Choice("four times smaller", "Yes: only key-value heads are cached.", right=True),
            Choice(
                "sixteen times smaller",
                "Keys and values are both shared by four, which is four times for the sum as well.",
            ),
        ),
    ),
    Question(
        '"16 GB is enough for a 7B model." What do you answer?',
        (
            Choice(
                "It is true",
                "To serve it with 4-bit weights, yes. In 16 bits the dense 7B of this lab fills the card almost "
                "wholly, so with the usual tenth in reserve it does not fit; and training it takes several times that.",
            ),
            Choice(
                "It is false",
                "To train all of it, or to serve the dense one in 16 bits with a tenth in reserve, it is. With 4-bit "
                "weights it fits easily, served or with adapters in training, and OLMoE just fits even in 16 bits.",
            ),
            Choice(
                "To do what with it: which precision, optimizer, batch and context?",
                "Yes. Without them a number for hardware says nothing; with them it becomes arithmetic.",
                right=True,
            ),
        ),
    ),
)
