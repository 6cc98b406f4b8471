"""A ready nbgrader course: the chosen labs as assignments, marked by us instead of by the learner's own process."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from labkit.core.environ import environment
from labkit.course import labs
from labkit.course.labs import Lab
from labkit.course.master import BEGIN, END, checkout
from labkit.course.release import render, solved_notebook

OURS = ".labkit-course.json"
STUB = re.compile(r"^( *)# YOUR CODE HERE\n *raise NotImplementedError\(\)$", re.MULTILINE)

CONFIG = '''\
"""nbgrader's configuration of this course, written by `labkit assign`."""

from nbgrader.preprocessors import AssignLatePenalties, CheckCellMetadata, LimitOutput, SaveAutoGrades

from labkit.course.autograde import SandboxedMarking

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "labkit"

# Answers run in a sandboxed kernel; the verdict is made outside it. Learners may edit setup cells, ours are run.
c.Autograde.autograde_preprocessors = [
    SandboxedMarking, LimitOutput, SaveAutoGrades, AssignLatePenalties, CheckCellMetadata,
]
c.SandboxedMarking.cell_timeout = 60.0  # seconds for a cell, and for its function on all inputs
c.SandboxedMarking.unsafe = False  # True runs learners' code with your own rights
c.LockCells.lock_readonly_cells = False
'''

README = """\
# A labkit course for nbgrader

{table}

Run these here, in this folder:

1. `nbgrader generate_assignment {first} --force` makes `release/{first}/` (done once already): give it to the learners.
   Their notebooks go to `submitted/<learner>/{first}/{first}.ipynb`.
2. `nbgrader autograde {first}` marks them. It needs bubblewrap: learners' code runs in a sandbox, without network and
   without the answers, and is judged outside it. Only exercise cells are run, after the lab's own setup cells, so an
   exercise cell has to bring the imports that it adds.
3. `nbgrader generate_feedback {first}` writes one page a learner to `feedback/`; `nbgrader export` writes the grades.

A check that says *Flag: uses labkit* passed or failed as it says; the answer calls labkit's own implementation, and
whether that counts is yours to decide. `source/` and `gradebook.db` hold the answers: keep them to yourself.
"""


class AssignError(RuntimeError):
    """nbgrader could not make an assignment; the message is its own."""


def assign(numbers: Sequence[str | int], course_dir: Path, root: Path | None = None) -> tuple[Path, ...]:
    """Write a course with the labs `numbers`; returns what was written, in the order it was.

    Submissions and grades that are there already stay.

    Args:
        numbers: the labs, such as ["01", "02"].
        course_dir: an empty or new folder, or a course that `assign` made.
        root: the checkout with the masters; by default the one labkit runs from. Without one the course is made from
            the student notebooks in the wheel, and `source/` holds no answers.

    Raises ValueError for no labs, an unknown lab, or a folder with other things in it.
    """
    chosen = [labs.lab(number) for number in dict.fromkeys(numbers)]
    if not chosen:
        raise ValueError(f"assign was given no labs; choose from {', '.join(labs.numbers())}")
    if empty := [lab.number for lab in chosen if lab.is_extra]:
        raise ValueError(f"{', '.join(empty)} has no exercises to grade; choose from {', '.join(labs.numbers())}")
    course = Path(course_dir)
    _refuse_strangers(course)
    notebooks = {lab.stem: _source(lab, root) for lab in chosen}
    course.mkdir(parents=True, exist_ok=True)
    written = [_write(course / OURS, json.dumps({"labs": sorted({*_labs_in(course), *notebooks})}) + "\n")]
    written.append(_write(course / "nbgrader_config.py", CONFIG))
    written.append(_write(course / "README.md", README.format(table=_table(chosen), first=chosen[0].stem)))
    for stem, notebook in notebooks.items():
        written.append(_write(course / "source" / stem / f"{stem}.ipynb", render(notebook)))
    nbgrader = nbgrader_api(course)
    for stem in notebooks:
        succeed(nbgrader.generate_assignment, stem, force=True)
        written.append(course / "release" / stem / f"{stem}.ipynb")
    return (*written, course / "gradebook.db")


def nbgrader_api(course: Path) -> Any:
    """nbgrader's API with the configuration that lies in `course`."""
    from nbgrader.apps import NbGraderAPI
    from traitlets.config.loader import PyFileConfigLoader

    config = PyFileConfigLoader("nbgrader_config.py", path=str(course)).load_config()
    config.CourseDirectory.root = str(Path(course).resolve())
    config.Exchange.root = str(Path(course).resolve())  # unused; nbgrader complains where its default is not writable
    config.NbGraderAPI.log_level = "ERROR"
    return NbGraderAPI(config=config)


def succeed(command: Callable[..., dict[str, Any]], *args: Any, **options: Any) -> None:
    """Call one of the API's commands. Raises AssignError with nbgrader's own words unless it succeeds."""
    with tools_on_path(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nbgrader's database layer warns about its own habits
        result = command(*args, **options)
    if not result["success"]:
        said = "\n".join(filter(None, (result.get("log"), result.get("error"))))
        raise AssignError(f"nbgrader {command.__name__} {' '.join(args)} failed:\n{said.strip()}")


@contextmanager
def tools_on_path() -> Iterator[None]:
    """The tools installed beside this Python are found, whether or not its environment is activated."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    with environment({"PATH": os.pathsep.join(folders)}):
        yield


def _refuse_strangers(course: Path) -> None:
    if course.exists() and not course.is_dir():
        raise ValueError(f"{course} is a file; give a folder for the course")
    if course.is_dir() and any(course.iterdir()) and not (course / OURS).is_file():
        raise ValueError(
            f"{course} has other things in it; give an empty folder, a new one, or a course made by assign"
        )


def _labs_in(course: Path) -> list[str]:
    return json.loads((course / OURS).read_text("utf-8"))["labs"] if (course / OURS).is_file() else []


def _source(lab: Lab, root: Path | None) -> NotebookNode:
    if root is not None or checkout() is not None:
        return solved_notebook(lab.number, root)
    path = Path(__file__).resolve().parents[1] / "notebooks" / f"{lab.stem}.ipynb"
    if not path.is_file():
        raise ValueError(f"there is neither a master nor a notebook of lab {lab.number} here; work in a checkout")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = STUB.sub(rf"\1{BEGIN}\n\1raise NotImplementedError()\n\1{END}", cell.source)
    return notebook


def _table(chosen: Sequence[Lab]) -> str:
    rows = ["| assignment | lab | exercises | points |", "|---|---|---|---|"]
    for lab in chosen:
        points = sum(exercise.points for exercise in lab.exercises)
        rows.append(f"| `{lab.stem}` | {lab.title} | {len(lab.exercises)} | {points} |")
    return "\n".join(rows)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path
