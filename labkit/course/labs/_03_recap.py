"""Lab 03: the recap's questions."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "The auxiliary loss multiplies f, a count, by P, a mean probability. Why not the square of f, which is what "
        "one wants to be even?",
        (
            Choice("f squared would be too large", "A coefficient would mend that. What does autograd do with f?"),
            Choice(
                "Counting has no slope, so only P can carry a gradient",
                "Yes: f says which experts are too busy, P is what the gradient can lower.",
                right=True,
            ),
            Choice("P is more exact than f", "P can be even while the choices are not. It is f that counts them."),
        ),
    ),
    Question(
        "Loss-free balancing moves a bias by a fixed step against each expert's load. What does it leave alone that "
        "the auxiliary loss bends?",
        (
            Choice("The choice of experts", "That is the one thing that it moves."),
            Choice(
                "The gradient that trains the model",
                "Yes: no term is added to the loss, and the bias never enters a weight.",
                right=True,
            ),
            Choice("The load of each expert", "Then nothing would balance. It moves the load, by another road."),
        ),
    ),
    Question(
        "You multiply the auxiliary loss's coefficient by ten, and the load does not change in any digit. Where do you "
        "look first?",
        (
            Choice(
                "Whether the loss's gradient reaches the router at all",
                "Yes: computed and logged is not added. A knob that turns nothing is not connected.",
                right=True,
            ),
            Choice("At the learning rate", "With another coefficient any learning rate gives another run."),
            Choice("The load is even already", "Then still some digit would change."),
        ),
    ),
    Question(
        "Expert choice gives every expert exactly its capacity, without any loss. Why does a language model that "
        "writes from left to right not use it as it is?",
        (
            Choice(
                "Whether a token is taken depends on tokens that come after it",
                "Yes: in training it looks at the future, and when writing there is none to look at.",
                right=True,
            ),
            Choice("It needs more FLOPs", "The same: E experts with C tokens each are T·K pairs."),
            Choice(
                "Some tokens get several experts",
                "So they do, and that alone is no harm. When is it known who gets them?",
            ),
        ),
    ),
    Question(
        "Half of your batch is padding and the balance loss does not know it. What happens to real text?",
        (
            Choice("Nothing: padding has no loss", "No task loss. In the balance loss it has a voice like any token."),
            Choice("It is balanced more strongly", "The sum of both is balanced; the text alone is not."),
            Choice(
                "It is pushed away from the experts that padding uses",
                "Yes: those look busy, so the loss lowers their probability for everyone.",
                right=True,
            ),
        ),
    ),
    Question(
        "In a paper a learned router beats a random one by two points. What would you ask before you believe that "
        "adaptive routing gains two points?",
        (
            Choice(
                "How it does against hash or frozen routing, over several seeds, at the same FLOPs",
                "Yes: random routing takes away from the experts what any fixed rule gives them, a kind of token.",
                right=True,
            ),
            Choice("Whether the router was large enough", "It is one small matrix. The baseline is the weak point."),
            Choice("Nothing, two points are a lot", "How much is a lot depends on the spread over seeds."),
        ),
    ),
)
