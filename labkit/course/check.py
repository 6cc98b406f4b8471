"""The words a notebook says to an exercise: `check`, `hint`, `reveal`."""

from __future__ import annotations

import contextlib
import inspect
import os
import textwrap
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from labkit.course import labs, progress  # labs may be empty: a grader hides what is in it
from labkit.course.attempt import Case, detached
from labkit.course.exercise import GRADING_SEEDS, Exercise
from labkit.course.judge import Failure, Verdict
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
    if answer is exercise.reference:
        status = progress.read()["exercises"].get(exercise_id, {}).get("status", "blank")
        say(borrowed_card(exercise), VERDICT, {"exercise": exercise_id, "status": status, "diagnosis": ""})
        return answer
    try:
        verdict = exercise.test(answer)
    except KeyboardInterrupt:
        stopped = "You stopped it before it came back. Does a loop never end?"
        verdict = Verdict("failed", 0, "interrupted", stopped)
    remark = _remark(exercise, answer, verdict)
    card = verdict_card(exercise, verdict, remark)
    say(card, VERDICT, {"exercise": exercise_id, "status": verdict.status, "diagnosis": verdict.diagnosis})
    progress.record(exercise_id, verdict.status, diagnosis=verdict.diagnosis)
    return answer if verdict.passed else exercise.reference


def _remark(exercise: Exercise, answer: Callable[..., Any], verdict: Verdict) -> str:
    """What a card adds: that the function is the one of the last check, or what the oracle says of a right one."""
    if getattr(answer, "_labkit_checked", None) == exercise.id:
        return (
            "This is the very function of the last check. If you have changed your cell, run it first; a cell with a "
            "syntax error leaves the old function in place."
        )
    with contextlib.suppress(AttributeError, TypeError):
        answer._labkit_checked = exercise.id  # type: ignore[attr-defined]
    if not verdict.passed or exercise.oracle is None:
        return ""
    if (needs := exercise.oracle.needs) and find_spec(needs) is None:
        return f"Not compared with {exercise.oracle.name}: there is no {needs} here (`pip install {needs}`)."
    try:
        if not (count := exercise.against_oracle(answer)):
            return f"{exercise.oracle.name} of the version installed here can answer none of them: no comparison."
        return f"Agrees with {exercise.oracle.name} on {count} of them."
    except (AssertionError, ImportError, RuntimeError) as error:
        return f"The comparison with {exercise.oracle.name} did not work out on this machine: {error}"


def verdict_card(exercise: Exercise, verdict: Verdict, remark: str = "") -> Card:
    """The card of a verdict: green, red with the first failing input, or grey for a blank."""
    goes_on = "The notebook goes on with the reference."
    if verdict.passed:
        lines = [f"Right on all {verdict.num_cases} inputs.", remark, "The notebook goes on with your function."]
        return Card("pass", f"{exercise.id} · passed", tuple(line for line in lines if line))
    if verdict.status == "blank":
        return Card("todo", f"{exercise.id} · not attempted", (goes_on, f'Stuck? Run hint("{exercise.id}").'))
    title = f"{exercise.id} · not yet: {verdict.diagnosis.replace('_', ' ')}"
    lines = [verdict.says, remark, f'{goes_on} A hint: hint("{exercise.id}").']
    table = None if verdict.failure is None else _failure_rows(exercise, verdict.failure)
    return Card("fail", title, tuple(line for line in lines if line), table=table)


def borrowed_card(exercise: Exercise) -> Card:
    """What is said when the reference itself is handed to `check`: a check before this one put it there."""
    told = (
        f"`{exercise.name}` stands for the course's reference now, because the last check did not pass. "
        "Run your own cell above, then this one."
    )
    return Card("info", f"{exercise.id} · this is the reference", (told,))


def _failure_rows(exercise: Exercise, failure: Failure) -> tuple[tuple[str, str], ...]:
    outcome = failure.outcome
    expected, yours = failure.refusal or describe(failure.expected), describe(failure.got)
    if outcome.status != "value":
        yours = textwrap.shorten(f"{outcome.error_type}: {outcome.error}", 240) if outcome.error_type else "not written"
    elif yours == expected:
        expected, yours = (f"{text} ({_kind(v)})" for text, v in ((expected, failure.expected), (yours, failure.got)))
    rows = [("", "first input that fails"), ("input", describe_case(failure.case, exercise.reference))]
    rows += [("expected", expected), ("yours", yours)]
    if outcome.printed.strip():
        rows.append(("it printed", textwrap.shorten(outcome.printed, 120, placeholder=" …")))
    return tuple(rows)


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_kind(item) for item in value)
    return str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__


def describe_case(case: Case, reference: Callable[..., Any] | None = None) -> str:
    """A case in one line: what is special about it, then its arguments, named as who is given them names them."""
    names: list[str] = []
    if reference is not None and case.init is None:
        names = [f"{name}=" for name in _names(case, reference)]
    names += [""] * (len(case.args) - len(names))
    shown = [name + describe(value) for name, value in zip(names, case.args, strict=False)]
    shown += [f"{name}={describe(value)}" for name, value in case.kwargs.items()]
    return (f"{case.label}: " if case.label else "") + ", ".join(shown)


def _names(case: Case, reference: Callable[..., Any]) -> list[str]:
    """The reference's names of the arguments, or those of what calls it, where that one names them."""
    if case.through is not None:
        _, *given = inspect.signature(case.through).parameters.values()
        if all(parameter.kind is not parameter.VAR_POSITIONAL for parameter in given):
            return [parameter.name for parameter in given]
    return list(inspect.signature(reference).parameters)


def describe(value: Any, limit: int = 240) -> str:
    """A value in one line; a long tensor by its shape and first values."""
    value = detached(value)
    text = "a huge number" if type(value) is int and abs(value) > 10**100 else repr(value)
    if isinstance(value, torch.Tensor):
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


def hint(exercise_id: str, number: int | None = None) -> None:
    """Show the next of the three hints, below those taken before; `number` (1 to 3) asks for one alone.

    Hints taken are kept in the learner's progress. Raises ValueError for an unknown exercise or number.
    """
    exercise = labs.find(exercise_id)
    if number is not None and number not in (1, 2, 3):
        raise ValueError(f"hint {number!r} of {exercise_id} does not exist; give 1, 2 or 3")
    taken = max(progress.hints_taken(exercise_id), number or 0)
    shown = number or min(taken + 1, 3)
    progress.record_hint(exercise_id, max(taken, shown))
    first = shown if number else 1
    lines = [f"{i}. {exercise.hints[i - 1]}" for i in range(first, shown + 1)]
    rest = f'{3 - shown} more: run hint("{exercise_id}") again.' if shown < 3 else f'Next: reveal("{exercise_id}").'
    say(Card("info", f"{exercise_id} · hint {shown} of 3", (*lines, rest)))


def reveal(exercise_id: str) -> None:
    """Show a right answer, as source. Refused while grading."""
    exercise = labs.find(exercise_id)
    if grading() or os.environ.get("LABKIT_NO_REVEAL") == "1":
        raise NotPassed(f"{exercise_id}: answers are not shown in a graded assignment; the three hints are.")
    progress.record_reveal(exercise_id)
    source = textwrap.dedent(inspect.getsource(exercise.reference)).rstrip()
    say(Card("info", f"{exercise_id} · one right answer", (exercise.title, source)))
