"""The labs: one module each, `labNN`, holding its exercises, recap questions and what its header says.

A notebook that is no lab, such as the gallery, has a module under its own name; it has no exercises and no recap.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from difflib import get_close_matches

from labkit.course.exercise import Exercise
from labkit.course.question import Question


@dataclass(frozen=True)
class Lab:
    """What a lab is: its number "NN", file name, title, minutes, hardware, claims audited, exercises and recap.

    A notebook that is no lab has its name for a number, no second name, and nothing to answer.
    """

    number: str
    name: str
    title: str
    minutes: int
    hardware: str
    claims: tuple[int, ...]
    exercises: tuple[Exercise, ...]
    questions: tuple[Question, ...]

    def __post_init__(self) -> None:
        for exercise in self.exercises:
            if not exercise.id.startswith(f"{self.number}."):
                raise ValueError(f"lab {self.number} holds exercise {exercise.id!r}; its ids start with {self.number}.")
        if self.is_extra and (self.exercises or self.questions):
            raise ValueError(f"notebook {self.number} is no lab; give it no exercises and no questions, or a name")
        if not self.is_extra and not 4 <= len(self.questions) <= 6:
            raise ValueError(f"lab {self.number} has {len(self.questions)} recap questions; give four to six")

    @property
    def is_extra(self) -> bool:
        """Whether it is a notebook beside the labs."""
        return not self.name

    @property
    def stem(self) -> str:
        """The file name of its master and notebooks, without a suffix: "01_router", "gallery"."""
        return self.number if self.is_extra else f"{self.number}_{self.name}"


def numbers() -> tuple[str, ...]:
    """The numbers of the labs that exist, in order: "00", "01", …"""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(name.removeprefix("lab") for name in names if name.startswith("lab"))


def extras() -> tuple[str, ...]:
    """The names of the notebooks that are no labs: "gallery"."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(name for name in names if not name.startswith(("lab", "_")))


def notebooks() -> tuple[str, ...]:
    """Everything that has a master: the labs' numbers, then the other notebooks' names."""
    return (*numbers(), *extras())


def lab(number: str | int) -> Lab:
    """The lab of a number ("01", "1" or 1), or the notebook of a name ("gallery").

    Raises ValueError for one that does not exist, listing those that do.
    """
    text = f"{number:02d}" if isinstance(number, int) else str(number).split("_")[0].zfill(2)
    if text in extras():
        return importlib.import_module(f"{__name__}.{text}").LAB
    if text not in numbers():
        others = f"; besides there is {', '.join(extras())}" if extras() else ""
        raise ValueError(f"there is no lab {number!r}; the labs are {', '.join(numbers())}{others}")
    return importlib.import_module(f"{__name__}.lab{text}").LAB


def find(exercise_id: str) -> Exercise:
    """The exercise of an id such as "01.top_k". Raises ValueError for an unknown one, naming the nearest."""
    if not isinstance(exercise_id, str) or "." not in exercise_id:
        name = exercise_id if isinstance(exercise_id, str) else getattr(exercise_id, "__name__", repr(exercise_id))
        ids = [exercise.id for number in numbers() for exercise in lab(number).exercises if exercise.name == name]
        advice = f"write {ids[0]!r}" if ids else "write the lab and the name, such as '01.top_k'"
        raise ValueError(f"{name!r} is no exercise id; {advice}")
    exercises = {exercise.id: exercise for exercise in lab(exercise_id.partition(".")[0]).exercises}
    if exercise_id not in exercises:
        near = get_close_matches(exercise_id, exercises, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(exercises)}"
        raise ValueError(f"lab {exercise_id.partition('.')[0]} has no exercise {exercise_id!r}; {advice}")
    return exercises[exercise_id]
