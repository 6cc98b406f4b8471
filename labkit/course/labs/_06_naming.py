"""Lab 06: a check that wants a refusal to name the tensors that are at fault."""

from __future__ import annotations

import re

from labkit.course.attempt import Outcome
from labkit.course.exercise import Exercise
from labkit.course.judge import Failure, Judge

TENSOR_NAME = re.compile(r"(?:model|lm_head)\.[\w.]*\w")


class NamingJudge(Judge):
    """A judge who wants a refusal to name the tensors that are at fault."""

    def _right(self, outcome: Outcome, expected: Outcome) -> bool:
        named = expected.status != "error" or names_in(expected.error) <= names_in(outcome.error)
        return named and super()._right(outcome, expected)


class NamingExercise(Exercise):
    """An exercise whose refusals must name the tensors that are at fault, as the reference's do."""

    def judge(self) -> Judge:
        """The judge of this exercise's outcomes."""
        return NamingJudge(self.reference, self.mistakes, self.rtol, self.atol)


def names_in(text: str) -> set[str]:
    """The tensor names that stand in a text.

    >>> sorted(names_in("model.norm.weight is missing, and so is 'lm_head.weight'."))
    ['lm_head.weight', 'model.norm.weight']
    """
    return set(TENSOR_NAME.findall(text))


def unnamed(failure: Failure) -> bool:
    """A refusal of the right kind that does not say which tensor."""
    return failure.outcome.status == "error" and failure.outcome.error_type == failure.refusal != ""
