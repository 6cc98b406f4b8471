"""Lab 03's clinic, the learner's side: six charts, six faults, and a reply to every diagnosis.

A wrong diagnosis is told where that fault would have shown, and which panel of this chart to look at instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.course import recap
from labkit.course.question import Choice, Question


@dataclass(frozen=True)
class Suspect:
    """A fault: its name on the form, and where it would show."""

    text: str
    would: str


@dataclass(frozen=True)
class Chart:
    """What is remarkable about one patient, as a question back, and what is said to the right diagnosis."""

    suspect: str
    instead: str
    found: str


SUSPECTS = {
    "double softmax": Suspect(
        "Double softmax: the chosen scores went through a softmax again",
        "A second softmax makes the K weights nearly equal: the favourite's weight would be near one half, far below "
        "the mended twin's, from the first step on.",
    ),
    "balance loss dropped": Suspect(
        "The balance loss is computed, and dropped before it reaches the gradient",
        "A dropped balance loss sends the router no gradient at all: in the gradient's panel the twin would have a "
        "dotted line and the sick layer none, and nobody would hold its MaxVio down.",
    ),
    "renormalised K = 1": Suspect(
        "K = 1, and the one weight is divided by itself",
        "A weight divided by itself is one for every token and has no slope: the task's gradient would vanish, up to "
        "rounding.",
    ),
    "bias in the weights": Suspect(
        "The selection bias is in the weights",
        "With the bias in the weights, lifting all biases by the same amount would move weights, although it changes "
        "no choice.",
    ),
    "capacity by position": Suspect(
        "A full expert turns away whoever stands later in the batch",
        "Dropping by position takes from the last sequences of the batch and leaves the first alone: its bars would "
        "rise from left to right.",
    ),
    "balance loss over padding": Suspect(
        "The balance loss counts padding",
        "If padding votes, MaxVio over real tokens is far above the twin's, while counted with padding (dotted) it "
        "is a little below. The balance loss's gradient would not fade either: padding cannot be spread.",
    ),
}

CHARTS = {
    "A": Chart(
        "balance loss over padding",
        "On this chart compare MaxVio over real tokens with its twin's, and ask what the balance loss is still working "
        "on.",
        "Yes. Counted with padding, the sick layer's load is on average the more even one; counted without, it is far "
        "less even than its twin's. Padding all looks alike and crowds onto few experts, so the loss drives real text "
        "away from them. And its gradient never rests, since padding cannot be spread.",
    ),
    "B": Chart(
        "double softmax",
        "On this chart look at how much weight the favourite gets. Why can it not get more?",
        "Yes. Scores lie between 0 and 1, so after a second softmax the larger of two weights is at most e/(1 + e), "
        "73%. The router may be as sure as it likes; it is not heard. The task's gradient is weaker for the same "
        "reason.",
    ),
    "C": Chart(
        "capacity by position",
        "On this chart look at who is dropped. Does it matter where in the batch one stands?",
        "Yes. The first sequences lose next to nothing, the last pay for them. Shuffle the batch, and other text is "
        "lost. The twin drops too, but all over the batch: the lowest weights, wherever they stand.",
    ),
    "D": Chart(
        "balance loss dropped",
        "On this chart look at MaxVio, and at which of the two gradients is not there at all.",
        "Yes. The number was in the log and looked sensible, and its gradient never reached the router: the dotted "
        "line is missing. The load does what it does without any balancing.",
    ),
    "E": Chart(
        "renormalised K = 1",
        "On this chart look at the gradient from the task; its axis is logarithmic. And at the favourite's weight.",
        "Yes. Weight one for every token, and a gradient of rounding errors. The router learns from the balance loss "
        "alone: it spreads the tokens evenly, without asking what they are.",
    ),
    "F": Chart(
        "bias in the weights",
        "On this chart look at what a common lift of all biases does. No choice changes; should anything else?",
        "Yes. The choice is the same and the weights are not, so the balancer turns the model's outputs with every "
        "step. In the twin nothing moves.",
    ),
}


def _question(letter: str, chart: Chart) -> Question:
    choices = tuple(
        Choice(
            suspect.text,
            chart.found if name == chart.suspect else f"{suspect.would} {chart.instead}",
            right=name == chart.suspect,
        )
        for name, suspect in SUSPECTS.items()
    )
    return Question(f"What is wrong with patient {letter}?", choices)


DIAGNOSES = tuple(_question(letter, chart) for letter, chart in CHARTS.items())


def clinic(answers: str | Sequence[str] | None = None) -> None:
    """Show the clinic's form, one question a patient, or judge `answers`, one letter a patient ("-" for none).

    Raises ValueError for a letter too many or too few, or one that is no choice.
    """
    recap.ask("03.clinic", DIAGNOSES, answers)
