"""The recap of lab 02."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "A layer has 128 experts and 8 are active. Against which dense layer does it save about 94% of the FLOPs?",
        (
            Choice(
                "A dense layer with the same active parameters.",
                "Against that one it saves nothing: the same products are done, and the router comes on top.",
            ),
            Choice(
                "A dense layer with the same total parameters.",
                "Yes: 1 − K/E, less the router. The baseline has to be named, or the figure means nothing.",
                right=True,
            ),
            Choice(
                "Any dense layer.",
                "A percentage needs a baseline. A dense layer can be made as wide or as narrow as one likes.",
            ),
        ),
    ),
    Question(
        "torch.bincount(topk_ids.flatten()) came back one entry short. What happened?",
        (
            Choice(
                "Two experts were merged.", "Nothing merges experts; count the entries and compare with the largest id."
            ),
            Choice("A token was dropped.", "All T·K choices are counted. The sum is right; the length is not."),
            Choice(
                "No token chose the last expert, and bincount stops at the largest id that it sees.",
                "Yes. With minlength=E the empty expert stays, and the offsets line up with the weights again.",
                right=True,
            ),
        ),
    ),
    Question(
        "Why does `out[token] += y` give wrong sums when K > 1?",
        (
            Choice(
                "A token stands K times in `token`, and plain indexed assignment keeps one of the writes.",
                "Yes: index_add adds every one of them. Nothing warns; the terms are missing.",
                right=True,
            ),
            Choice("Floating-point sums depend on the order.", "They do, in the last digits. This loses whole terms."),
            Choice("`token` is not sorted.", "The order of an index does not matter here; repetition does."),
        ),
    ),
    Question(
        "One token is decoded at a time and every weight must come from memory. What sets a layer's least time?",
        (
            Choice("The router.", "It is one thin matrix: far fewer bytes than a single expert."),
            Choice(
                "The bytes of the experts that are visited.",
                "Yes: two FLOPs for every weight read leave the arithmetic units waiting, and K of E experts are read. "
                "What it takes to start the operations comes on top.",
                right=True,
            ),
            Choice("The FLOPs of K experts.", "A GPU does hundreds of FLOPs in the time of reading one weight."),
        ),
    ),
    Question(
        "The one-hot einsum multiplies every token by every expert's weights. How many FLOPs does it save?",
        (
            Choice("1 − K/E of them, since the rest are multiplied by zero.", "A product with zero costs a product."),
            Choice(
                "None against the dense layer.",
                "Yes: the mask makes the result right, not cheap. GShard's capacity C is what bounds the work.",
                right=True,
            ),
            Choice("Half.", "Count the rows that the expert products get: T for every expert."),
        ),
    ),
)
