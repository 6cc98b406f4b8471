"""Lab 01: the recap's questions."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "A router takes a softmax over all experts, keeps the top K and divides them by their sum. Another takes the "
        "top K logits and a softmax over those. How do their weights differ?",
        (
            Choice("The second gives more weight to the favourite", "Try it on two logits: both give the same ratio."),
            Choice(
                "Not at all",
                "Yes. The first softmax's denominator is common to the K scores, so renormalising cancels it.",
                right=True,
            ),
            Choice(
                "They choose different experts", "Softmax keeps the order of the logits, so the choice is the same."
            ),
        ),
    ),
    Question(
        "Your router has K = 1 and norm_topk = True. The training loss falls. What has the router learned?",
        (
            Choice("To pick the best expert", "It got no gradient from the output: its weight was 1 whatever it said."),
            Choice(
                "Nothing from the model's output; the experts did all the learning",
                "Right: p / p = 1 has no slope. Only an auxiliary loss could still move it.",
                right=True,
            ),
            Choice("Half as much as with K = 2", "Not half: exactly nothing flows through a constant weight."),
        ),
    ),
    Question(
        "DeepSeek-V3's selection bias raises an expert's chance. What happens to the weight of that expert's output?",
        (
            Choice("It grows by the bias", "Then balancing would change what the model computes. That is the leak."),
            Choice("It is divided by the bias", "The bias is never near the weights."),
            Choice(
                "It stays the expert's own score, renormalised over the chosen K",
                "Yes: the bias decides who is chosen, the unbiased score decides how much.",
                right=True,
            ),
        ),
    ),
    Question(
        "Why do routers decide in float32 when the rest of the model runs in bfloat16?",
        (
            Choice(
                "bfloat16 keeps 8 significant bits, so at the border experts tie, and top-k breaks the tie arbitrarily",
                "Yes: rounding keeps the order but makes neighbours equal, and each device breaks ties its own way.",
                right=True,
            ),
            Choice("bfloat16 overflows in the softmax", "Its range is float32's own; what it lacks is precision."),
            Choice("It is faster", "It moves twice the bytes. The matrix is small, so nobody minds."),
        ),
    ),
    Question(
        "Scores are sigmoids and norm_topk is False. A token's K weights sum to…",
        (
            Choice("one", "Only a division by their sum would make it so."),
            Choice("at most one", "That holds for softmax. Sigmoids do not know each other."),
            Choice(
                "anything from 0 to K",
                "Yes: each lies between 0 and 1 on its own, so the size of the layer's output depends on the token.",
                right=True,
            ),
        ),
    ),
)
