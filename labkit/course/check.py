"""The words a notebook says to an exercise: `check`, `hint`, `reveal`."""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Callable
from typing import Any

from labkit.course import labs, progress  # labs may be empty: a grader hides what is in it
from labkit.course.attempt import Case, detached
from labkit.course.exercise import GRADING_SEEDS, Exercise
from labkit.course.judge import Verdict
from labkit.course.say import VERDICT, say
from labkit.show.cards import Card


class NotPassed(AssertionError):
    """Raised by `check` while grading, with the diagnosis."""


def grading() -> bool:
    """Whether this kernel grades: then a check raises, and nothing falls back on the reference."""
    return os.environ.get("LABKIT_GRADE") == "1"


def check(exercise_id: str, answer: Callable[..., Any]) -> Callable[..., Any]:
    """Judge the learner's answer, show a card, and return the function that the notebook goes on with.

    Passed: the learner's own. Otherwise the reference, and the card says so. While grading (LABKIT_GRADE=1) other
    seeds are drawn and `NotPassed` is raised instead. Raises ValueError for an unknown exercise or an answer that
    cannot be called.

    >>> from labkit.course.check import check
    >>> check("01.top_q", print)
    Traceback (most recent call last):
    ValueError: lab 01 has no exercise '01.top_q'; ...
    """
    exercise = labs.find(exercise_id)
    if not callable(answer):
        raise ValueError(f"check({exercise_id!r}, …) was given {type(answer).__name__}; give the function itself")
    if grading():
        verdict = exercise.test(answer, GRADING_SEEDS)
        if not verdict.passed:
            raise NotPassed(f"{exercise_id}: {verdict.diagnosis or 'not attempted'}. {verdict.says}")
        return answer
    answered_by_reference = answer is exercise.reference
    verdict = exercise.test(answer)
    agrees = ""
    if verdict.passed and exercise.oracle is not None:
        count = exercise.against_oracle(answer)
        agrees = f"Agrees with {exercise.oracle.name} on {count} of them."
    card = verdict_card(exercise, verdict, agrees, answered_by_reference)
    say(card, VERDICT, {"exercise": exercise_id, "status": verdict.status, "diagnosis": verdict.diagnosis})
    if not answered_by_reference:
        progress.record(exercise_id, verdict.status, diagnosis=verdict.diagnosis)
    return answer if verdict.passed else exercise.reference


def verdict_card(exercise: Exercise, verdict: Verdict, agrees: str = "", borrowed: bool = False) -> Card:
    """The card of a verdict: green, red with the smallest failing input, or grey for a blank."""
    if borrowed:
        return Card("info", f"{exercise.id} · this is the reference", ("Run your own cell again, then this one.",))
    if verdict.passed:
        lines = [f"Right on all {verdict.num_cases} inputs.", agrees, "The notebook goes on with your function."]
        return Card("pass", f"{exercise.id} · passed", tuple(line for line in lines if line))
    goes_on = "The notebook goes on with the reference."
    if verdict.status == "blank":
        return Card("todo", f"{exercise.id} · not attempted", (goes_on, f'Stuck? Run hint("{exercise.id}").'))
    failure = verdict.failure
    assert failure is not None
    table = [("", "smallest input that fails"), ("input", describe_case(failure.case))]
    table.append(("expected", describe(failure.expected)))
    table.append(("yours", describe(failure.got) if failure.outcome.status == "value" else failure.outcome.error_type))
    lines = (verdict.says, f'{goes_on} A hint: hint("{exercise.id}").')
    return Card("fail", f"{exercise.id} · not yet: {verdict.diagnosis.replace('_', ' ')}", lines, table=tuple(table))


def describe_case(case: Case) -> str:
    """A case in one line: what is special about it, then its arguments."""
    shown = [describe(value) for value in case.args]
    shown += [f"{name}={describe(value)}" for name, value in case.kwargs.items()]
    return (f"{case.label}: " if case.label else "") + ", ".join(shown)


def describe(value: Any, limit: int = 240) -> str:
    """A value in one line; a long tensor by its shape and first values."""
    value = detached(value)
    text = repr(value)
    if hasattr(value, "shape"):
        if value.numel() <= 16:
            text = f"{[_rounded(v) for v in value.tolist()] if value.ndim else _rounded(value.item())}"
        else:
            first = ", ".join(str(_rounded(v)) for v in value.flatten()[:6].tolist())
            text = f"shape {tuple(value.shape)}: [{first}, …]"
    elif isinstance(value, (list, tuple)):
        text = "(" + ", ".join(describe(item, limit) for item in value) + ")"
    return textwrap.shorten(text, limit, placeholder=" …")


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def hint(exercise_id: str) -> None:
    """Show the next of the three hints; the third stays. Hints taken are kept in the learner's progress."""
    exercise = labs.find(exercise_id)
    shown = min(progress.hints_taken(exercise_id) + 1, 3)
    progress.record_hint(exercise_id, shown)
    rest = f'{3 - shown} more: run hint("{exercise_id}") again.' if shown < 3 else f'Next: reveal("{exercise_id}").'
    say(Card("info", f"{exercise_id} · hint {shown} of 3", (exercise.hints[shown - 1], rest)))


def reveal(exercise_id: str) -> None:
    """Show a right answer, as source. Refused while grading."""
    exercise = labs.find(exercise_id)
    if grading() or os.environ.get("LABKIT_NO_REVEAL") == "1":
        raise NotPassed(f"{exercise_id}: answers are not shown in a graded assignment; the three hints are.")
    progress.record_reveal(exercise_id)
    source = textwrap.dedent(inspect.getsource(exercise.reference)).rstrip()
    say(Card("info", f"{exercise_id} · one right answer", (exercise.title, source)))
