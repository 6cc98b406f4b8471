"""Judging outcomes: which case fails first, and which mistake explains it.

Only plain data is compared (tensors, numbers, strings, booleans, None, and lists, tuples and dicts of them), with our
own code. An object of another type is wrong whatever its `__eq__` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from labkit.course.attempt import Case, Outcome, attempt


@dataclass(frozen=True, eq=False)
class Failure:
    """One case that went wrong: what it was, what came, what should have come."""

    case: Case
    outcome: Outcome
    expected: Any

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


def difference(got: Any, expected: Any, rtol: float, atol: float) -> str:
    """Where `got` is not `expected`, in words; empty if they agree.

    Shapes, dtypes, lengths and types must be equal. Floating-point values agree within `atol + rtol * |expected|`,
    NaN agrees with NaN; everything else must be equal. A Python number may stand for another kind of number.

    >>> difference(torch.ones(2), torch.ones(2, 1), 1e-5, 1e-6)
    'shape (2,) where (2, 1) was expected'
    """
    if isinstance(expected, Tensor):
        return _tensor_difference(got, expected, rtol, atol)
    if isinstance(expected, bool) or expected is None or isinstance(expected, str):
        return (
            "" if type(got) is type(expected) and got == expected else f"{_show(got)} where {expected!r} was expected"
        )
    if isinstance(expected, (int, float)):
        if type(got) is Tensor and got.numel() == 1:
            got = got.item()
        if type(got) not in (int, float):
            return f"{_show(got)} where a number was expected"
        exact = isinstance(expected, int)
        near = got == expected if exact else abs(got - expected) <= atol + rtol * abs(expected)
        return "" if near or (got != got and expected != expected) else f"{got} where {expected} was expected"
    if isinstance(expected, dict):
        if type(got) is not dict or got.keys() != expected.keys():
            return f"{_show(got)} where a dict with keys {sorted(expected)} was expected"
        pairs = [(f"[{key!r}]", got[key], expected[key]) for key in expected]
    elif isinstance(expected, (list, tuple)):
        if type(got) not in (list, tuple) or len(got) != len(expected):
            return f"{_show(got)} where {len(expected)} values were expected"
        pairs = [(f"[{i}]", g, e) for i, (g, e) in enumerate(zip(got, expected, strict=True))]
    else:
        raise TypeError(f"a reference returned {type(expected).__name__}, which cannot be judged; return plain data")
    for where, one, other in pairs:
        if found := difference(one, other, rtol, atol):
            return f"value {where}: {found}"
    return ""


def _tensor_difference(got: Any, expected: Tensor, rtol: float, atol: float) -> str:
    if type(got) not in (Tensor, torch.nn.Parameter):
        return f"{_show(got)} where a tensor of shape {tuple(expected.shape)} was expected"
    if got.shape != expected.shape:
        return f"shape {tuple(got.shape)} where {tuple(expected.shape)} was expected"
    if got.dtype != expected.dtype:
        return f"dtype {got.dtype} where {expected.dtype} was expected"
    if not expected.is_floating_point():
        wrong = got != expected
    else:
        wrong = ~torch.isclose(got.double(), expected.double(), rtol=rtol, atol=atol, equal_nan=True)
    if not wrong.any():
        return ""
    at = tuple(wrong.nonzero()[0].tolist())
    one, other = _number(got[at]), _number(expected[at])
    return f"{int(wrong.sum())} of {wrong.numel()} values differ, first at {list(at)}: {one} where {other} was expected"


def _number(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.is_floating_point() else str(value.item())


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if value is None:
        return "None"
    if type(value) in (bool, int, float, str):
        return repr(value)[:80]
    return f"an object of type {type(value).__name__}"


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
        failures = [Failure(cases[i], outcomes[i], expected[i].value) for i in failing]
        diagnosis, says = self._specific(cases, outcomes, failures) or self._general(failures[0], expected[failing[0]])
        return Verdict("failed", len(cases), diagnosis, says, failures[0])

    def _expect(self, case: Case) -> Outcome:
        outcome = attempt(self.reference, case)
        if outcome.status == "blank" or (outcome.status == "error" and outcome.error_type != "ValueError"):
            raise RuntimeError(f"the reference failed on {case.label!r}: {outcome.error_type} {outcome.error}")
        return outcome

    def _right(self, outcome: Outcome, expected: Outcome) -> bool:
        if expected.status == "error":  # a case that must be refused
            return outcome.status == "error" and outcome.error_type == expected.error_type
        return outcome.status == "value" and not outcome.changed_input and not self._difference(outcome, expected.value)

    def _difference(self, outcome: Outcome, expected: Any) -> str:
        return difference(outcome.value, expected, self.rtol, self.atol)

    def _specific(
        self, cases: Sequence[Case], outcomes: Sequence[Outcome], failures: Sequence[Failure]
    ) -> tuple[str, str] | None:
        """The mistake that explains every case, else every failure, else the first failure."""
        likely = [mistake for mistake in self.mistakes if mistake.like is not None]
        failed = [failure.outcome for failure in failures]
        scopes = [
            (cases, outcomes),
            ([failure.case for failure in failures], failed),
            ([failures[0].case], failed[:1]),
        ]
        for scope_cases, scope_outcomes in scopes:
            for mistake in likely:
                if all(self._behaves(mistake, c, o) for c, o in zip(scope_cases, scope_outcomes, strict=True)):
                    return mistake.name, mistake.says
        for mistake in self.mistakes:
            if mistake.when is not None and _holds(mistake.when, failures[0]):
                return mistake.name, mistake.says
        return None

    def _behaves(self, mistake: Mistake, case: Case, outcome: Outcome) -> bool:
        assert mistake.like is not None
        wrong = attempt(mistake.like, case)
        if wrong.status != "value":
            return outcome.status == wrong.status and outcome.error_type == wrong.error_type
        if outcome.status != "value" or outcome.changed_input != wrong.changed_input:
            return False
        try:
            return not difference(outcome.value, wrong.value, self.rtol, self.atol)
        except TypeError:
            return False

    def _general(self, failure: Failure, expected: Outcome) -> tuple[str, str]:
        outcome = failure.outcome
        if outcome.status == "blank":
            return "unfinished", "Some inputs still reach `raise NotImplementedError()`: one branch is not written yet."
        if expected.status == "error":
            return "accepts_bad_input", f"This input must be refused with a {expected.error_type}: {expected.error}"
        if outcome.status == "error":
            return "raises", f"Your code raised {outcome.error_type}: {outcome.error}"
        if outcome.changed_input:
            return "changes_input", "Your code changes its input in place; the caller still needs it. Work on a copy."
        if outcome.value is None:
            return "returns_nothing", "Your code returned None; is the `return` missing?"
        found = self._difference(outcome, failure.expected)
        for name, sign in (("wrong_type", "an object of type"), ("wrong_shape", "shape ("), ("wrong_dtype", "dtype ")):
            if found.rsplit(": ", 1)[-1].startswith(sign):
                return name, f"The result does not fit: {found}."
        return "wrong_values", f"The result has the right form, but {found}."


def _holds(when: Callable[[Failure], bool], failure: Failure) -> bool:
    try:
        return bool(when(failure))
    except Exception:  # a predicate asks about shapes that this failure may not have
        return False
