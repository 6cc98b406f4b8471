"""Grading one learner's notebook with no course at hand: a temporary one is made, and nbgrader runs in it."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from labkit.course import labs
from labkit.course.assign import assign, nbgrader_api, succeed, tools_on_path
from labkit.course.labs import Lab
from labkit.course.marking import TIMEOUT
from labkit.course.release import answer_id, check_id, grade_id
from labkit.course.sandbox import SandboxError, sandbox_missing
from labkit.course.say import VERDICT

LEARNER = "learner"


@dataclass(frozen=True)
class Graded:
    """One exercise of a graded notebook: points, verdict, and flags for an instructor."""

    exercise: str
    title: str
    points: float
    max_points: float
    status: str
    diagnosis: str
    says: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What a graded notebook got. Prints as a table; `json()` gives the same to a program."""

    lab: str
    notebook: str
    exercises: tuple[Graded, ...]

    @property
    def points(self) -> float:
        """The points it got."""
        return sum(graded.points for graded in self.exercises)

    @property
    def max_points(self) -> float:
        """The points it could get."""
        return sum(graded.max_points for graded in self.exercises)

    def json(self) -> str:
        """The report as JSON."""
        facts = {**asdict(self), "points": self.points, "max_points": self.max_points}
        return json.dumps(facts, indent=1, ensure_ascii=False)

    def __rich__(self) -> Any:
        from rich.markup import escape
        from rich.table import Table

        table = Table("exercise", "points", "verdict", "what it says")
        for graded in self.exercises:
            verdict = graded.diagnosis.replace("_", " ") or graded.status
            says = " ".join([graded.says, *(f"Flag: {flag}." for flag in graded.flags)])
            table.add_row(graded.exercise, f"{graded.points:g}/{graded.max_points:g}", verdict, escape(says.strip()))
        table.add_section()
        table.add_row(self.lab, f"{self.points:g}/{self.max_points:g}", "", "")
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=110, no_color=True, file=None)
        with console.capture() as captured:
            console.print(self)
        return captured.get()


def grade(
    notebook_path: Path,
    *,
    unsafe: bool = False,
    timeout: float = TIMEOUT,
    feedback: Path | None = None,
    root: Path | None = None,
) -> Report:
    """Grade one learner's notebook in a sandbox.

    Args:
        notebook_path: the learner's notebook; it is only read.
        unsafe: run the learner's code without a sandbox, with all your rights and every answer in its reach.
        timeout: seconds for each exercise cell, and again for its function.
        feedback: where to write nbgrader's feedback page, as HTML.
        root: the checkout with the masters; by default the one labkit runs from.

    Raises ValueError for a file that is no notebook of a lab or has lost cells, SandboxError where there is no
    bubblewrap and `unsafe` is not set, AssignError, with nbgrader's words, where the course itself is at fault.
    """
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout}; give a number of seconds above 0")
    path = Path(notebook_path)
    lab = lab_of(path)
    if not unsafe and (missing := sandbox_missing()):
        raise SandboxError(missing)
    with tempfile.TemporaryDirectory(prefix="labkit-grade-") as folder:
        course = Path(folder) / "course"
        assign([lab.number], course, root)
        submitted = course / "submitted" / LEARNER / lab.stem
        submitted.mkdir(parents=True)
        shutil.copyfile(path, submitted / f"{lab.stem}.ipynb")
        nbgrader = nbgrader_api(course)
        nbgrader.config.SandboxedMarking.cell_timeout = float(timeout)
        nbgrader.config.SandboxedMarking.unsafe = unsafe
        succeed(nbgrader.autograde, lab.stem, LEARNER)
        if feedback is not None:
            succeed(nbgrader.generate_feedback, lab.stem, LEARNER)
            Path(feedback).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(course / "feedback" / LEARNER / lab.stem / f"{lab.stem}.html", feedback)
        return _report(course, lab, path, nbgrader)


def lab_of(path: Path) -> Lab:
    """The lab that a learner's notebook belongs to.

    Raises ValueError for a file that is missing, is no notebook, belongs to no lab or to several, or has lost the
    marks of an exercise cell or a check cell.
    """
    notebook = _read(path)
    for index, cell in enumerate(notebook.cells, 1):
        if not isinstance(cell.metadata.get("nbgrader", {}), dict):
            raise ValueError(f"{path} has a cell {index} whose nbgrader metadata are no table; remove them")
    found = [grade_id(cell) for cell in notebook.cells]
    numbers = {name.split("-")[1] for name in found if name.startswith(("answer-", "check-"))}
    if len(numbers) != 1:
        which = f"cells of labs {', '.join(sorted(numbers))}" if numbers else "no cell of a labkit exercise"
        raise ValueError(f"{path} has {which}; give one lab's notebook, as it came from notebooks/")
    lab = labs.lab(numbers.pop())
    wanted = [make(exercise.id) for exercise in lab.exercises for make in (answer_id, check_id)]
    if lost := [name for name in wanted if name not in found]:
        raise ValueError(
            f"{path} has lost its cells {', '.join(lost)} (deleted, or their metadata changed); take a fresh copy of "
            f"notebooks/{lab.stem}.ipynb and paste the answers into it"
        )
    return lab


def _read(path: Path) -> NotebookNode:
    if not path.is_file():
        raise ValueError(f"there is no notebook {path}")
    try:
        notebook = nbformat.reads(path.read_text("utf-8"), as_version=4)
        nbformat.validate(notebook)
    except (ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} is no notebook that can be read: {str(error).splitlines()[0][:200]}") from error
    return notebook


def _report(course: Path, lab: Lab, path: Path, nbgrader: Any) -> Report:
    marked = nbformat.read(course / "autograded" / LEARNER / lab.stem / f"{lab.stem}.ipynb", as_version=4)
    verdicts = [output.data[VERDICT] for cell in marked.cells for output in cell.get("outputs", ()) if "data" in output]
    with tools_on_path(), nbgrader.gradebook as gradebook:
        grades = gradebook.find_submission_notebook(lab.stem, lab.stem, LEARNER).grades
        points = {grade.name: (float(grade.score), float(grade.max_score)) for grade in grades}
    return Report(lab.number, path.name, tuple(_graded(facts, points) for facts in verdicts))


def _graded(facts: dict[str, Any], points: dict[str, tuple[float, float]]) -> Graded:
    name = facts["exercise"]
    said = {key: facts[key] for key in ("status", "diagnosis", "says")}
    return Graded(name, labs.find(name).title, *points[check_id(name)], **said, flags=tuple(facts["flags"]))
