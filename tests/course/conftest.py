"""A tiny lab of our own, 98, in a checkout of its own: for everything that makes or grades notebooks.

Its points are powers of two, so a total says exactly which exercises were passed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from labkit.course import labs
from labkit.course.attempt import Case
from labkit.course.exercise import Exercise
from labkit.course.judge import Mistake
from labkit.course.labs import Lab
from labkit.course.question import Choice, Question

FACTORS = (2, 3, 4, 5, 6, 7, 8)
ADDRESS = "https://github.com/someone/somewhere"

HEAD = """\
# %% [markdown]
# # 98 · Tiny
#
# A lab for tests.

# %% tags=["parameters"]
profile = "auto"
seed = 0

# %% tags=["setup"]
import torch

from labkit import check, hint, reveal
"""

EXERCISE = '''
# %% [markdown]
# Now {name}.

# %% exercise="98.{name}"
def {name}(x):
    """{title}, [T] to [T]."""
    ### BEGIN SOLUTION
    return {body}
    ### END SOLUTION

# %% check="98.{name}"
{name} = check("98.{name}", {name})
'''


def times(factor: int) -> Exercise:
    def reference(x):
        return factor * x

    return exercise(f"times_{factor}", f"Multiply by {factor}", 2 ** (factor - 2), reference)


def chain(x):
    return 2 * x + 1


def exercise(name: str, title: str, points: int, reference) -> Exercise:
    def cases(seed):
        generator = torch.Generator().manual_seed(seed)
        return [Case((torch.randn(n, generator=generator),), label=f"{n} numbers") for n in (1, 5)]

    forgot = Mistake("forgot", "It comes back as it went in.", like=lambda x: x)
    return Exercise(f"98.{name}", title, 1, 5, points, reference, cases, ("a", "b", "c"), (forgot,))


def tiny_lab() -> Lab:
    exercises = (*(times(factor) for factor in FACTORS), exercise("chain", "Twice and one more", 128, chain))
    question = Question("Which?", (Choice("this", "yes", right=True), Choice("that", "no")))
    return Lab("98", "tiny", "Tiny", 20, "any CPU", (1,), exercises, (question,) * 4)


def tiny_master() -> str:
    parts = [EXERCISE.format(name=f"times_{n}", title=f"Multiply by {n}", body=f"{n} * x") for n in FACTORS]
    parts.append(EXERCISE.format(name="chain", title="Twice and one more", body="times_2(x) + 1"))
    return HEAD + "".join(parts)


@dataclass
class Tiny:
    """The tiny lab's checkout."""

    root: Path
    lab: Lab = field(default_factory=tiny_lab)
    points: int = 255

    @property
    def master(self) -> Path:
        return self.root / "solutions" / "98_tiny.py"

    def submission(self, path: Path, answers: dict[str, str], notebook) -> Path:
        """Write `notebook` with the cells of some exercises replaced."""
        for cell in notebook.cells:
            name = cell.metadata.get("exercise", "").removeprefix("98.")
            if name in answers:
                cell.source = answers[name]
        path.write_text(json.dumps(notebook), "utf-8")
        return path


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Tiny:
    made = Tiny(tmp_path / "checkout")
    made.master.parent.mkdir(parents=True)
    made.master.write_text(tiny_master(), "utf-8")
    (made.root / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{ADDRESS}"\n', "utf-8")
    known = labs.lab

    def lab(number):
        return made.lab if str(number).split("_")[0] == "98" else known(number)

    monkeypatch.setattr(labs, "lab", lab)
    return made
