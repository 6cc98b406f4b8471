"""Lab 14: the recap's questions."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "A reader closes the connection in the middle of an answer. Which code frees the blocks for certain?",
        (
            Choice(
                "The line after the loop over the pieces", "It is never reached: the generator ends at its `yield`."
            ),
            Choice(
                "`except Exception` around the loop",
                "GeneratorExit and CancelledError are no Exceptions; they pass it by.",
            ),
            Choice("`finally`", "Yes: it runs whatever ends the generator, the end of the answer too.", right=True),
        ),
    ),
    Question(
        "A request asks for 30,000 tokens, and the bucket holds 20,000 at most. What is the right reply?",
        (
            Choice("429 with Retry-After", "Then it comes again, and again: no waiting makes it fit."),
            Choice("400", "Yes: it can never run here. 429 is for what may run later.", right=True),
            Choice("Let it wait until the bucket is full", "It would wait for ever, and everybody behind it too."),
        ),
    ),
    Question(
        "A load generator sends the next request when the last one's answer is there. What does it not see?",
        (
            Choice(
                "How long people wait in a queue",
                "Yes: where the server is slow it asks less often, so no queue forms. Arrivals that do not ask how "
                "the server is doing (an open loop) make one.",
                right=True,
            ),
            Choice("The server's highest throughput", "With enough of them at once, it sees that quite well."),
            Choice("How long an answer takes once it has begun", "It sees that as well as any other."),
        ),
    ),
    Question(
        "Why does the noise of a sampler depend on (seed, continuation, step) and on nothing else?",
        (
            Choice("It is better distributed that way", "Any good generator is distributed as well."),
            Choice(
                "A request in other company, or begun again after a crash, gets the same answer",
                "Yes. Nothing has to be remembered: who knows the three numbers knows the noise.",
                right=True,
            ),
            Choice("It is faster", "Not noticeably."),
        ),
    ),
    Question(
        "p99 of the time to first token is read from a histogram whose last edges are 2.5 s and +Inf. It says 2.5 s. "
        "What is known?",
        (
            Choice("The true p99 is near 2.5 s", "Prometheus gives the last finite edge when it knows no more."),
            Choice("The true p99 is at most 2.5 s", "The other way round."),
            Choice("It is 2.5 s or more, without limit", "Yes: put edges where your promises are.", right=True),
        ),
    ),
    Question(
        "One request's logits are NaN. What should its neighbours in the same batch notice?",
        (
            Choice(
                "Nothing",
                "Yes: rows of a batch do not mix. The one request ends with an error, and its blocks are never found "
                "again by a prefix.",
                right=True,
            ),
            Choice("An error, as the whole step is void", "Their rows are as good as ever."),
            Choice("A second step, with the request taken out", "Nothing has to be computed again."),
        ),
    ),
)
