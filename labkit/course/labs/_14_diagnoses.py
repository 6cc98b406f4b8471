"""Lab 14's clinic, the learner's side: five charts, five faults, and a reply to every diagnosis.

A wrong diagnosis is told where that fault would have shown, and which panel of this chart to look at instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from labkit.course import recap
from labkit.course.question import Choice, Question

SUSPECTS = {
    "assertion": (
        "What cannot be answered is caught by an assertion, not by a 4xx",
        "With an assertion, over-long prompts would be among the 5xx, all through the two minutes, and nearly missing "
        "among the 4xx.",
    ),
    "batch dies": (
        "One request with NaN takes the whole batch with it",
        "If a batch died with one of its requests, 5xx would come in bundles, up to eight in one second.",
    ),
    "endless queue": (
        "The queue has no end",
        "With an endless queue nobody would be sent away in the rush: the queue would grow beyond sixteen, and waits "
        "with it, long after the rush is over.",
    ),
    "blocks leak": (
        "Blocks stay held when a reader leaves",
        "If blocks leaked, the free ones would fall and never come back, until nobody can start.",
    ),
    "plain comparison": (
        "Keys are compared with ==",
        "With ==, a wrong key would be found out later the more of its first letters are right: see the last panel.",
    ),
}

CHARTS = {
    "A": (
        "blocks leak",
        "On this chart look at what is left of the pool, and at what happens to answers when it is empty.",
        "Yes. Every reader who leaves takes six blocks along. For a while nobody notices; then nobody is served, and "
        "after a restart it begins anew. Such servers are restarted every night.",
    ),
    "B": (
        "assertion",
        "On this chart look at which kind of refusal is missing, and which came in its place.",
        "Yes. An assertion is a 500: it tells the client that the server is at fault and that trying again may help, "
        "and it wakes somebody up at night. The request was at fault: 400, with what to do.",
    ),
    "C": (
        "endless queue",
        "On this chart look at the rush and the minute after it: who waits, and for how long?",
        "Yes. Twenty seconds after the rush people still wait behind those who came in it, some of whom have gone. "
        "The healthy twin turned some away, at once, and kept its promise to the others.",
    ),
    "D": (
        "batch dies",
        "On this chart look at how many fail *at once*.",
        "Yes. One row is no number, somebody checks the whole tensor, and eight people get a 500. Rows of a batch do "
        "not mix: end the one request.",
    ),
    "E": (
        "plain comparison",
        "On this chart everything that people see is as in the twin. What does somebody see who has no key?",
        "Yes. Who measures finely enough learns letter by letter: six letters of 36 need 216 trials instead of two "
        "billion. `hmac.compare_digest` looks at all of them, always; better still, at hashes.",
    ),
}


def _question(letter: str) -> Question:
    suspect, instead, found = CHARTS[letter]
    choices = tuple(
        Choice(text, found if name == suspect else f"{would} {instead}", right=name == suspect)
        for name, (text, would) in SUSPECTS.items()
    )
    return Question(f"What is wrong with server {letter}?", choices)


DIAGNOSES = tuple(map(_question, CHARTS))


def clinic(answers: str | Sequence[str] | None = None) -> None:
    """Show the clinic's form, one question a server, or judge `answers`, one letter a server ("-" for none).

    Raises ValueError for a letter too many or too few, or one that is no choice.
    """
    recap.ask("14.clinic", DIAGNOSES, answers)
