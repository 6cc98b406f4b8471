"""Judging outcomes: which case fails first, and which mistake explains it.

Only plain data is compared (tensors, numbers, strings, booleans, None, and lists, tuples and dicts of them), with our
own code. An object of another type is wrong whatever its `__eq__` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal

import torch
from torch import Tensor

from labkit.course.attempt import Case, Outcome, attempt


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


@dataclass(frozen=True)
class Difference:
    """How one value is not another: the kind, which names the diagnosis, and the words."""

    kind: str
    says: str

    def __str__(self) -> str:
        return self.says


def difference(got: Any, expected: Any, rtol: float, atol: float) -> Difference | None:
    """Where `got` is not `expected`, or None if they agree.

    Shapes, dtypes, lengths, keys and types must be equal, and a whole number must be one. Floating-point values agree
    within `atol + rtol * |expected|`, NaN agrees with NaN; everything else must be equal.

    >>> print(difference(torch.ones(2), torch.ones(2, 1), 1e-5, 1e-6))
    the shape is (2,) where (2, 1) was expected
    """
    if isinstance(expected, Tensor):
        return _tensor_difference(got, expected, rtol, atol)
    if isinstance(expected, bool) or expected is None or isinstance(expected, str):
        if type(got) is not type(expected):
            return Difference("wrong_type", f"{_show(got)} where {expected!r} was expected")
        return None if got == expected else Difference("wrong_values", f"{got!r} where {expected!r} was expected")
    if isinstance(expected, (int, float)):
        return _number_difference(got, expected, rtol, atol)
    if isinstance(expected, dict):
        if type(got) is not dict:
            return Difference("wrong_type", f"{_show(got)} where a dict was expected, with keys {_keys(expected)}")
        if missing := expected.keys() - got.keys():
            return Difference("missing_keys", f"the dict lacks {_keys(missing)}")
        if extra := got.keys() - expected.keys():
            return Difference("unknown_keys", f"the dict has {_keys(extra)}, which nobody asked for")
        pairs = [(f"[{key!r}]", got[key], expected[key]) for key in expected]
    elif isinstance(expected, (list, tuple)):
        if type(got) not in (list, tuple):
            return Difference("wrong_type", f"{_show(got)} where {len(expected)} values were expected")
        if len(got) != len(expected):
            return Difference("wrong_length", f"{len(got)} values where {len(expected)} were expected")
        pairs = [(f"[{i}]", g, e) for i, (g, e) in enumerate(zip(got, expected, strict=True))]
    else:
        raise TypeError(f"a reference returned {type(expected).__name__}, which cannot be judged; return plain data")
    for where, one, other in pairs:
        if found := difference(one, other, rtol, atol):
            return Difference(found.kind, f"value {where}: {found}")
    return None


def _number_difference(got: Any, expected: float, rtol: float, atol: float) -> Difference | None:
    if type(got) is Tensor and got.numel() == 1:
        got = got.item()
    if type(got) not in (int, float):
        return Difference("wrong_type", f"{_show(got)} where a number was expected")
    if isinstance(expected, int):
        if got != expected:
            return Difference("wrong_values", f"{got} where {expected} was expected")
        return None if type(got) is int else Difference("float_for_integer", f"{got} where {expected} was expected")
    if abs(got - expected) <= atol + rtol * abs(expected) or (got != got and expected != expected) or got == expected:
        return None
    return Difference("wrong_values", f"{got} where {expected} was expected")


def _tensor_difference(got: Any, expected: Tensor, rtol: float, atol: float) -> Difference | None:
    if type(got) not in (Tensor, torch.nn.Parameter):
        return Difference("wrong_type", f"{_show(got)} where a tensor of shape {tuple(expected.shape)} was expected")
    if got.shape != expected.shape:
        return Difference("wrong_shape", f"the shape is {tuple(got.shape)} where {tuple(expected.shape)} was expected")
    if got.dtype != expected.dtype:
        return Difference("wrong_dtype", f"the dtype is {got.dtype} where {expected.dtype} was expected")
    if not expected.is_floating_point():
        wrong = got != expected
    else:
        wrong = ~torch.isclose(got.double(), expected.double(), rtol=rtol, atol=atol, equal_nan=True)
    if not wrong.any():
        return None
    at = tuple(wrong.nonzero()[0].tolist())
    first = f"first at {list(at)}: {_number(got[at])} where {_number(expected[at])} was expected"
    return Difference("wrong_values", f"{int(wrong.sum())} of {wrong.numel()} values differ, {first}")


def _keys(keys: Any) -> str:
    return ", ".join(repr(key) for key in sorted(keys))


def _number(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.is_floating_point() else str(value.item())


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if value is None:
        return "None"
    if type(value) in (bool, int, float):
        return repr(value)
    if type(value) is str:
        return f"the text {value[:60]!r}"
    name = type(value).__name__
    return "a numpy array" if name == "ndarray" else f"an object of type {name}"


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
        failures = [Failure(cases[i], outcomes[i], expected[i].value, expected[i].error_type) for i in failing]
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
        spoilt = outcome.changed_input or (outcome.cuts_graph and not expected.cuts_graph)
        return outcome.status == "value" and not spoilt and not self._difference(outcome, expected.value)

    def _difference(self, outcome: Outcome, expected: Any) -> Difference | None:
        return difference(outcome.value, expected, self.rtol, self.atol)

    def _specific(
        self, cases: Sequence[Case], outcomes: Sequence[Outcome], failures: Sequence[Failure]
    ) -> tuple[str, str] | None:
        """The mistake that behaves the same on every case, else on most failures, else one recognised by `when`."""
        failing = [failure.outcome for failure in failures]
        likely = [mistake for mistake in self.mistakes if mistake.like is not None and self._shows(mistake, failures)]
        for mistake in likely:
            if all(self._behaves(mistake, case, outcome) for case, outcome in zip(cases, outcomes, strict=True)):
                return mistake.name, mistake.says
        where = [failure.case for failure in failures]
        explained = [sum(map(self._behaves, repeat(mistake), where, failing)) for mistake in likely]
        most = max(explained, default=0)
        if most > len(failures) / 2:
            mistake = likely[explained.index(most)]
            return mistake.name, mistake.says
        for mistake in self.mistakes:
            if mistake.when is not None and _holds(mistake.when, failures[0]):
                return mistake.name, mistake.says
        return None

    def _shows(self, mistake: Mistake, failures: Sequence[Failure]) -> bool:
        """Whether some failure carries the mistake's own mark: its value or its words, not only its type of error."""
        assert mistake.like is not None
        for failure in failures:
            wrong = attempt(mistake.like, failure.case)
            same_words = (wrong.error_type, wrong.error) == (failure.outcome.error_type, failure.outcome.error)
            if self._behaves(mistake, failure.case, failure.outcome) and (wrong.status == "value" or same_words):
                return True
        return False

    def _behaves(self, mistake: Mistake, case: Case, outcome: Outcome) -> bool:
        assert mistake.like is not None
        wrong = attempt(mistake.like, case)
        if wrong.status != "value":
            return outcome.status == wrong.status and outcome.error_type == wrong.error_type
        if outcome.status != "value" or (outcome.changed_input, outcome.cuts_graph) != (
            wrong.changed_input,
            wrong.cuts_graph,
        ):
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
                "The values are right, but no gradient can flow back through them: somewhere the result leaves "
                "autograd (detach, no_grad, .data, .item, a new torch.tensor, numpy). Nothing before it could learn."
            )
        return found.kind, GENERAL[found.kind].format(found)


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
