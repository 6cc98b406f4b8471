"""Judging outcomes: which case fails first, and which mistake explains it. What is compared: see `difference`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from labkit.course.attempt import Case, Outcome, attempt
from labkit.course.difference import Difference, difference


@dataclass(frozen=True, eq=False)
class Failure:
    """One case that went wrong: what it was, what came, what should have come, or which error (`refusal`)."""

    case: Case
    outcome: Outcome
    expected: Any
    refusal: str = ""

    @property
    def got(self) -> Any:
        """The value that the answer returned, or None if it raised."""
        return self.outcome.value


@dataclass(frozen=True, eq=False)
class Mistake:
    """A mistake that learners make, and the words that help.

    `like` is the mistaken implementation: an answer that behaves as it does, has made it. `when` recognises a mistake
    that has no single implementation, from the first failure. Give one of the two, or both.
    """

    name: str
    says: str
    like: Callable[..., Any] | None = None
    when: Callable[[Failure], bool] | None = None

    def __post_init__(self) -> None:
        if self.like is None and self.when is None:
            raise ValueError(f"Mistake {self.name!r} can never be recognised; give `like` or `when`")


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a check found. `diagnosis` names the mistake, `says` explains it; both are empty when passed."""

    status: Literal["passed", "failed", "blank"]
    num_cases: int
    diagnosis: str = ""
    says: str = ""
    failure: Failure | None = None

    @property
    def passed(self) -> bool:
        """Whether every case came out right."""
        return self.status == "passed"


GENERAL = {
    "wrong_type": "The result is of the wrong kind: {}.",
    "wrong_shape": "The result does not fit: {}.",
    "wrong_dtype": "The result does not fit: {}.",
    "wrong_length": "The result does not fit: {}.",
    "missing_keys": "The result does not fit: {}.",
    "unknown_keys": "The result does not fit: {}.",
    "float_for_integer": "The value is right, but it is a float and a whole number was asked for: {}. Divide with //.",
    "wrong_values": "The result has the right form, but {}.",
}


@dataclass(frozen=True, eq=False)
class Judge:
    """Compares outcomes with a reference: `Judge(reference, mistakes)(cases, outcomes)` gives the Verdict."""

    reference: Callable[..., Any]
    mistakes: Sequence[Mistake] = ()
    rtol: float = 1e-4
    atol: float = 1e-5

    def __call__(self, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> Verdict:
        """The verdict on `outcomes`, one for each case in order (or a single blank one)."""
        if outcomes and outcomes[0].status == "blank":
            return Verdict("blank", len(cases))
        if len(outcomes) != len(cases):
            raise ValueError(f"{len(outcomes)} outcomes for {len(cases)} cases; give one for each")
        expected = [self._expect(case) for case in cases]
        failing = [i for i, outcome in enumerate(outcomes) if not self._right(outcome, expected[i])]
        if not failing:
            return Verdict("passed", len(cases))
        wanted = expected[failing[0]]
        first = Failure(cases[failing[0]], outcomes[failing[0]], wanted.value, wanted.error_type)
        diagnosis, says = self._specific(cases, outcomes, failing, first) or self._general(first, wanted)
        return Verdict("failed", len(cases), diagnosis, says, first)

    def _expect(self, case: Case) -> Outcome:
        outcome = attempt(self.reference, case)
        if outcome.status == "blank" or (outcome.status == "error" and outcome.error_type != "ValueError"):
            raise RuntimeError(f"the reference failed on {case.label!r}: {outcome.error_type} {outcome.error}")
        return outcome

    def _right(self, outcome: Outcome, expected: Outcome) -> bool:
        if expected.status == "error":  # a case that must be refused
            return outcome.status == "error" and outcome.error_type == expected.error_type
        spoilt = outcome.changed_input or _cuts(outcome, expected)
        return outcome.status == "value" and not spoilt and not self._difference(outcome, expected.value)

    def _difference(self, outcome: Outcome, expected: Any) -> Difference | None:
        return difference(outcome.value, expected, self.rtol, self.atol)

    def _specific(
        self, cases: Sequence[Case], outcomes: Sequence[Outcome], failing: Sequence[int], first: Failure
    ) -> tuple[str, str] | None:
        """The mistake that behaves the same on every case, else on most failures, else one recognised by `when`."""
        likely, explained = None, len(failing) / 2
        for mistake in self.mistakes:
            if mistake.like is None:
                continue
            alike, marked = self._explains(mistake.like, cases, outcomes, failing, explained)
            if not marked:
                continue
            others = (i for i in range(len(cases)) if i not in failing)
            if alike == len(failing) and all(self._alike(attempt(mistake.like, cases[i]), outcomes[i]) for i in others):
                return mistake.name, mistake.says
            if alike > explained:
                likely, explained = mistake, alike
        if likely is not None:
            return likely.name, likely.says
        for mistake in self.mistakes:
            if mistake.when is not None and _holds(mistake.when, first):
                return mistake.name, mistake.says
        return None

    def _explains(
        self, like: Callable[..., Any], cases: Sequence[Case], outcomes: Sequence[Outcome], failing: Sequence[int],
        least: float,
    ) -> tuple[int, bool]:  # fmt: skip
        """How many failures a mistake explains, and whether one shows its mark.

        Given up when it cannot explain all, nor more than `least`: to run a mistake may take a while.
        """
        alike, marked = 0, False
        for done, i in enumerate(failing):
            if alike < done and alike + len(failing) - done <= least:
                break
            wrong = attempt(like, cases[i])
            if self._alike(wrong, outcomes[i]):
                alike += 1
                marked = marked or _marked(wrong, outcomes[i])
        return alike, marked

    def _alike(self, wrong: Outcome, outcome: Outcome) -> bool:
        """Whether an outcome is what a mistaken implementation makes: the same value, or the same type of error."""
        if wrong.status != "value":
            return outcome.status == wrong.status and outcome.error_type == wrong.error_type
        spoilt = (outcome.changed_input, outcome.reached) != (wrong.changed_input, wrong.reached)
        if outcome.status != "value" or spoilt:
            return False
        try:
            return not self._difference(outcome, wrong.value)
        except TypeError:
            return False

    def _general(self, failure: Failure, expected: Outcome) -> tuple[str, str]:
        outcome = failure.outcome
        if outcome.status == "blank":
            return "unfinished", "Some inputs still reach `raise NotImplementedError()`: one branch is not written yet."
        if expected.status == "error":
            return _refusal(outcome, expected)
        if outcome.status == "error":
            return "raises", f"Your code raised {outcome.error_type}: {outcome.error}"
        if outcome.changed_input:
            return "changes_input", "Your code changes its input in place; the caller still needs it. Work on a copy."
        if outcome.value is None:
            shown = " It printed its result instead." if outcome.printed.strip() else ""
            return "returns_nothing", f"Your code returned None; is the `return` missing?{shown}"
        found = self._difference(outcome, failure.expected)
        if found is None:
            return "cuts_graph", (
                "The values are right, but gradients do not flow back to every input that they should: somewhere the "
                "result leaves autograd (detach, no_grad, .data, .item, a new torch.tensor, numpy). What lies before "
                "that point could never learn."
            )
        return found.kind, GENERAL[found.kind].format(found)


def _marked(wrong: Outcome, outcome: Outcome) -> bool:
    """Whether an outcome alike carries the mistake's own mark: its value or its words, not only its type of error."""
    return wrong.status == "value" or (wrong.error_type, wrong.error) == (outcome.error_type, outcome.error)


def _cuts(outcome: Outcome, expected: Outcome) -> bool:
    """Whether some input that the reference's gradient reaches is not reached by the answer's."""
    got = outcome.reached or (False,) * len(expected.reached)
    return any(wanted and not there for wanted, there in zip(expected.reached, got, strict=False))


def _refusal(outcome: Outcome, expected: Outcome) -> tuple[str, str]:
    wanted = f"a {expected.error_type} was asked for: {expected.error}"
    if outcome.status == "error":
        return "raises_another", f"It raised {outcome.error_type}, and {wanted}"
    if type(outcome.value).__name__ == expected.error_type:
        return (
            "returns_the_error",
            f"The {expected.error_type} was returned; it has to be raised: `raise`, not `return`.",
        )
    return "accepts_bad_input", f"This input must be refused: {wanted}"


def _holds(when: Callable[[Failure], bool], failure: Failure) -> bool:
    try:
        return bool(when(failure))
    except Exception:  # a predicate asks about shapes that this failure may not have
        return False
