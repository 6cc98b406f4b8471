"""Lab 15: the recap's questions."""

from __future__ import annotations

from labkit.course.question import Choice, Question

QUESTIONS = (
    Question(
        "A replica dies. Which of its requests may the front send to another replica?",
        (
            Choice("All of them", "A client that has read half an answer would read another half after it."),
            Choice(
                "Those of which nothing has been sent yet",
                "Yes: their clients cannot tell. The others end with an error that says so.",
                right=True,
            ),
            Choice("None, to be safe", "Then every death loses a queue of requests that had not even begun."),
        ),
    ),
    Question(
        "Two replicas are equally fast, requests are of very different length. Why is round robin's p99 worse?",
        (
            Choice(
                "It hands out requests, not work",
                "Yes: a short request is put behind a long one while the other replica is idle.",
                right=True,
            ),
            Choice("It sends more requests to one of them", "It sends exactly as many to each."),
            Choice("It takes longer to decide", "It is the fastest of all to decide."),
        ),
    ),
    Question(
        "The router sees loads that are four seconds old. Which policy suffers most?",
        (
            Choice("Random", "It does not look at loads at all."),
            Choice("Two choices", "It suffers, but only a part of the requests meets the same pair."),
            Choice(
                "Least loaded of all",
                "Yes: for four seconds everyone runs to the same replica, and then to the next one.",
                right=True,
            ),
        ),
    ),
    Question(
        "An object's ETag is `9b2cf5…-12`. What does it tell about a file that was downloaded?",
        (
            Choice("Its MD5", "A dash and a number: this is the digest of twelve parts' digests."),
            Choice(
                "Little, unless the size of the parts is known; and MD5 keeps no forger away",
                "Yes: a manifest with the SHA-256 of each file says it by itself.",
                right=True,
            ),
            Choice("That it is the twelfth version", "The number counts parts."),
        ),
    ),
    Question(
        "The manifest of a version names a file `../../.ssh/authorized_keys`. What should a download do?",
        (
            Choice("Take the `../` out and go on", "What comes of it was never meant by anybody."),
            Choice(
                "Refuse the version",
                "Yes: nothing else in this manifest deserves belief either. The version before goes on.",
                right=True,
            ),
            Choice("Leave that file out", "Then a version is served that nobody has published."),
        ),
    ),
    Question(
        "Why does an alert on errors look at an hour and at five minutes at once?",
        (
            Choice(
                "The hour says that it matters, the five minutes that it still goes on",
                "Yes. Either alone wakes people for nothing: for a blip, or for what is over.",
                right=True,
            ),
            Choice("The five minutes are more exact", "They are noisier: fewer requests."),
            Choice("To fire twice, for two people", "It fires once, when both burn."),
        ),
    ),
)
