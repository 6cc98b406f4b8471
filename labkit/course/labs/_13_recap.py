"""Lab 13: the recap's questions."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "Two students have seen the same tokens, one with a teacher and one without, and the one with it is better. "
        "What has been shown?",
        (
            Choice(
                "That distillation pays",
                "Perhaps it does, but the teacher's reading was not paid for. A large teacher costs more than its "
                "student.",
            ),
            Choice(
                "That a teacher's targets teach more per token",
                "Yes. Whether they teach more per FLOP, only a student alone with the same FLOPs can tell.",
                right=True,
            ),
            Choice(
                "That the student has learned what the teacher knows",
                "Only that it is nearer to it than before. How near, the gap to the teacher tells.",
            ),
        ),
    ),
    Question(
        "A loss mixes cross-entropy with the divergence at temperature 4, and T² was forgotten. What happens?",
        (
            Choice(
                "The teacher's part is a sixteenth of what it should be",
                "Yes: 1/T² of it, so the text decides almost alone.",
                right=True,
            ),
            Choice(
                "The text's part is a sixteenth of what it should be",
                "The text's term has no temperature and no T²; it is the softened term that lacks the factor.",
            ),
            Choice(
                "Nothing that the learning rate would not make good",
                "It would, if there were one term. The *balance* of two terms no learning rate restores.",
            ),
        ),
    ),
    Question(
        "A student that is too small for its teacher's two ways to go on is trained with reverse KL. What will it do?",
        (
            Choice(
                "Spread over both and over what lies between",
                "That is forward KL: it is punished where the teacher has mass and the student has none.",
            ),
            Choice(
                "Settle on one of them",
                "Yes: reverse KL punishes mass where the teacher has none, and says little of a way that is left out.",
                right=True,
            ),
            Choice("Become uniform", "Then most of its mass would lie where the teacher has none."),
        ),
    ),
    Question(
        "A cache keeps the teacher's 8 likeliest tokens, rescaled to sum to one. What does the best student say about "
        "all other tokens?",
        (
            Choice(
                "What the teacher said",
                "It cannot: nobody told it. With the mass of the rest kept beside, it would at least know how much.",
            ),
            Choice(
                "That they are impossible",
                "Yes: everything that was left out is taught to have probability 0. It grows too sure of itself.",
                right=True,
            ),
            Choice("Nothing: they get no gradient", "They do: softmax pushes down everything that is not a target."),
        ),
    ),
    Question(
        "An expert's rows are taken out of the experts' tensors, and the router is left as it was. What happens?",
        (
            Choice(
                "Tokens are sent to experts that are somebody else now",
                "Yes, or to numbers that do not exist. Experts, router rows and selection bias are one thing.",
                right=True,
            ),
            Choice(
                "The router learns it at once",
                "Not without training, and until then every choice means another expert.",
            ),
            Choice("Nothing: the scores are renormalised", "Scores of wrong choices are no better for that."),
        ),
    ),
    Question(
        "Two experts compute the same function. Their weights are averaged one by one, and the result is poor. Why?",
        (
            Choice(
                "Averages are always poor",
                "Between copies whose units stand in the same order, the average is the copy.",
            ),
            Choice(
                "Their hidden units stand in different orders",
                "Yes: an order of units changes no function, and it decides which weights meet in the average.",
                right=True,
            ),
            Choice("Their router rows differ", "That decides who comes to them, not what they compute."),
        ),
    ),
)
