"""An exercise: its card, its inputs, its reference, its oracle, and the mistakes that its check knows by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from labkit.course.attempt import Case, attempt_all, same
from labkit.course.judge import Judge, Mistake, Verdict

PRACTICE_SEEDS = (0, 1)
GRADING_SEEDS = (1009, 2003, 3001)


@dataclass(frozen=True)
class Oracle:
    """An implementation that this project did not write: its name, and a call with the exercise's own arguments.

    `fits` says which cases it can answer; by default all of them. `needs` is a package without which it cannot answer,
    and which a learner may do without.
    """

    name: str
    call: Callable[..., Any]
    fits: Callable[[Case], bool] = lambda case: True
    needs: str = ""


@dataclass(frozen=True)
class Exercise:
    """One task of a lab: its card, its inputs, its reference, and the mistakes that its check knows by name.

    Args:
        id: "NN.name", the lab's number and the name of the function to write.
        title: what is to be done, a few words.
        difficulty: 1 to 3, shown as ●○○.
        minutes: how long it takes a learner, in minutes.
        points: what it counts in grading.
        reference: a right answer, short enough to be shown by `reveal`.
        cases: from a seed to the inputs, smallest first; ugly sizes and edge cases included.
        hints: three, from a nudge to nearly the answer.
        mistakes: what goes wrong, most telling first.
        oracle: an independent implementation that the reference must agree with.
        rtol, atol: how near floating-point results must come, as in torch.isclose.
    """

    id: str
    title: str
    difficulty: int
    minutes: int
    points: int
    reference: Callable[..., Any]
    cases: Callable[[int], Sequence[Case]]
    hints: tuple[str, str, str]
    mistakes: tuple[Mistake, ...] = ()
    oracle: Oracle | None = None
    rtol: float = 1e-4
    atol: float = 1e-5

    def __post_init__(self) -> None:
        number, _, name = self.id.partition(".")
        if not (len(number) == 2 and number.isdigit() and name.isidentifier()):
            raise ValueError(f"Exercise id is {self.id!r}; write it as 'NN.name', such as '01.top_k'")
        if self.difficulty not in (1, 2, 3):
            raise ValueError(f"Exercise {self.id} has difficulty {self.difficulty}; give 1, 2 or 3")
        if self.minutes < 1 or self.points < 1:
            raise ValueError(f"Exercise {self.id} has {self.minutes} minutes and {self.points} points; give 1 or more")
        if len(self.hints) != 3:
            raise ValueError(f"Exercise {self.id} has {len(self.hints)} hints; give three")

    @property
    def name(self) -> str:
        """The name of the function or class that the learner writes."""
        return self.id.partition(".")[2]

    @property
    def stars(self) -> str:
        """Difficulty as it stands on the card."""
        return "●" * self.difficulty + "○" * (3 - self.difficulty)

    def inputs(self, seeds: Sequence[int]) -> tuple[Case, ...]:
        """The cases of several seeds, one after another; one that asks the same as another is taken once."""
        found: list[Case] = []
        for case in (case for seed in seeds for case in self.cases(seed)):
            if not any(same(_asked(case), _asked(old)) for old in found):
                found.append(case)
        return tuple(found)

    def judge(self) -> Judge:
        """The judge of this exercise's outcomes."""
        return Judge(self.reference, self.mistakes, self.rtol, self.atol)

    def test(self, answer: Callable[..., Any], seeds: Sequence[int] = PRACTICE_SEEDS) -> Verdict:
        """Run `answer` on fresh inputs and judge it. Never raises for what the answer does."""
        cases = self.inputs(seeds)
        return self.judge()(cases, attempt_all(answer, cases))

    def against_oracle(self, answer: Callable[..., Any], seeds: Sequence[int] = PRACTICE_SEEDS) -> int:
        """On how many inputs `answer` equals the oracle; raises AssertionError at the first that differs."""
        if self.oracle is None:
            return 0
        cases = [case for case in self.inputs(seeds) if self.oracle.fits(case)]
        verdict = Judge(self.oracle.call, (), self.rtol, self.atol)(cases, attempt_all(answer, cases))
        if not verdict.passed:
            label = verdict.failure.case.label if verdict.failure else ""
            raise AssertionError(f"{self.id} differs from {self.oracle.name} on {label!r}: {verdict.says}")
        return len(cases)


def _asked(case: Case) -> tuple[Any, ...]:
    """All of a case but its label: what two cases must share to be one."""
    return case.args, dict(case.kwargs), case.init, case.needs_grad, case.through
