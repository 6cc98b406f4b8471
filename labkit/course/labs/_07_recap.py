"""Lab 07: the recap's questions."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "A sparse and a dense model have the same active parameters. Which comparison can the sparse one lose although "
        "it learns more from every token?",
        (
            Choice(
                "At equal active FLOPs",
                "There both see equally many tokens: the one that learns more from each is ahead.",
            ),
            Choice(
                "At equal wall-clock",
                "Yes. Its FLOPs take longer: small products, sorting, a router. In the same time it sees fewer tokens.",
                right=True,
            ),
            Choice(
                "At equal total parameters",
                "That is another dense model, with more active parameters: it works harder for every token.",
            ),
        ),
    ),
    Question(
        "A training script has a switch `gradient_checkpointing` that turns on autocast and asks for all attention "
        "maps. What happens to memory?",
        (
            Choice(
                "It falls: bfloat16 halves every activation",
                "Autocast changes the format of some activations; none of them is dropped and computed again.",
            ),
            Choice(
                "The maps come on top, and nothing is recomputed",
                "Yes. B·H·S² numbers a layer, kept until the end, and no block runs a second time.",
                right=True,
            ),
            Choice(
                "Nothing: maps are computed anyway",
                "Fused attention never writes them down; asking for them switches it off.",
            ),
        ),
    ),
    Question(
        "Two micro-batches have 10 and 1000 real targets. Each one's mean loss is halved and differentiated. How much "
        "does a token of the first weigh, against one of the second?",
        (
            Choice("The same", "Only if both had equally many targets, or if sums were divided by 1010."),
            Choice("A hundredth", "The other way round: its mean is over fewer."),
            Choice(
                "A hundred times as much",
                "Yes: 1/20 against 1/2000. One big batch would weigh every token 1/1010.",
                right=True,
            ),
        ),
    ),
    Question(
        "A run is killed with signal 9 and started again from weights, optimiser state and step. Its next losses "
        "differ from those of the run that nobody killed. What is the likeliest thing that was not saved?",
        (
            Choice(
                "Where the data stood, and the random state",
                "Yes. The model is the same, and it reads other text and draws other numbers.",
                right=True,
            ),
            Choice("The gradients", "They are cleared after every step: nothing to save."),
            Choice("The learning rate", "A schedule is a function of the step; whoever has the step has the rate."),
        ),
    ),
    Question(
        "Muon takes the momentum of a fused tensor [E, 2F, D]. How many matrices are made orthogonal?",
        (
            Choice("One of E·2F rows", "Then experts would be made orthogonal to one another."),
            Choice(
                "2·E: gate and up of each expert",
                "Yes. They are separate linear maps that happen to lie in one tensor.",
                right=True,
            ),
            Choice("None: Muon takes no three-dimensional tensor", "A batch of matrices is as good as one at a time."),
        ),
    ),
    Question(
        "Suppose a router's choices settle early in training: most tokens keep their experts from then on. What "
        "follows?",
        (
            Choice(
                "The experts have learned all they can",
                "Who works on a token is settled; what is done with it goes on improving, as the loss shows.",
            ),
            Choice(
                "The division of work is decided while experts are still poor",
                "Yes: chance at the start leaves traces. So compare seeds before reading meaning into one expert.",
                right=True,
            ),
            Choice("The router can be left out of the optimiser from the start", "Then it would stay random."),
        ),
    ),
)
