"""What `nbgrader autograde` runs in our courses instead of executing the notebook: see `marking`.

Of the submitted notebook only the exercise cells are executed. Setup cells and check cells come from the gradebook,
so editing or deleting them changes nothing; a check cell that was deleted is put back after its exercise.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_output
from nbgrader.api import Gradebook
from nbgrader.preprocessors import Execute
from traitlets import Bool, Float

from labkit.course import labs
from labkit.course.marking import TIMEOUT, Answer, Mark, mark_answers
from labkit.course.release import answer_id, check_id, grade_id
from labkit.course.sandbox import Session
from labkit.course.say import VERDICT
from labkit.show.cards import Card


class SandboxedMarking(Execute):
    """Marks the answers of a submitted notebook and gives each check cell its verdict as output."""

    cell_timeout = Float(TIMEOUT, help="Seconds that a cell, and its function on all inputs, may take.").tag(
        config=True
    )
    unsafe = Bool(False, help="Run the learner's code without a sandbox.").tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: dict[str, Any]) -> tuple[NotebookNode, dict[str, Any]]:
        """Mark `nb`, in place."""
        released = _released(resources["nbgrader"])
        cells = {name: cell for cell in nb.cells if (name := grade_id(cell))}
        order = {name: i for i, name in enumerate(cells)}
        ids = sorted(_checked(released), key=lambda name: order.get(answer_id(name), len(order)))
        setup = [released[name] for name in sorted(released) if name.startswith("setup-")]
        answers = [
            Answer(
                labs.find(name),
                cells[answer_id(name)].source if answer_id(name) in cells else None,
                released.get(answer_id(name), ""),
            )
            for name in ids
        ]
        open_session = partial(Session, hidden=(Path.cwd(),), unsafe=self.unsafe)
        for mark in mark_answers(setup, answers, open_session, self.cell_timeout):
            name = mark.exercise.id
            check = cells.get(check_id(name)) or _put_back(nb, cells.get(answer_id(name)), mark, released)
            check.outputs = outputs_of(mark)
        return nb, resources


def outputs_of(mark: Mark) -> list[NotebookNode]:
    """The outputs of a check cell: the verdict, and an error unless it passed, which nbgrader counts as no marks."""
    exercise, verdict = mark.exercise, mark.verdict
    says = verdict.says or ("" if verdict.passed else "Not attempted.")
    kind = "pass" if verdict.passed else "todo" if verdict.status == "blank" else "fail"
    title = f"{exercise.id} · " + {"pass": "passed", "todo": "not attempted"}.get(
        kind, f"not passed: {verdict.diagnosis.replace('_', ' ')}"
    )
    where = verdict.failure.case.label if verdict.failure else ""
    lines = [says, f"Smallest input that fails: {where}." if where else "", *(f"Flag: {flag}." for flag in mark.flags)]
    card = Card(kind, title, tuple(line for line in lines if line))
    facts = {
        "exercise": exercise.id, "status": verdict.status, "diagnosis": verdict.diagnosis, "says": says,
        "flags": list(mark.flags),
    }  # fmt: skip
    outputs = [new_output("display_data", data={"text/plain": str(card), VERDICT: facts})]
    if not verdict.passed:
        name = verdict.diagnosis or "not_attempted"
        outputs.append(new_output("error", ename="NotPassed", evalue=name, traceback=[f"NotPassed: {name}"]))
    return outputs


def _released(where: dict[str, Any]) -> dict[str, str]:
    """The sources of the cells that the gradebook knows, by grade id."""
    with Gradebook(where["db_url"]) as gradebook:
        notebook = gradebook.find_notebook(where["notebook"], where["assignment"])
        return {cell.name: cell.source for cell in notebook.source_cells}


def _checked(released: dict[str, str]) -> list[str]:
    names = [name.removeprefix("check-") for name in sorted(released) if name.startswith("check-")]
    return [name.replace("-", ".", 1) for name in names]


def _put_back(nb: NotebookNode, after: NotebookNode | None, mark: Mark, released: dict[str, str]) -> NotebookNode:
    name = check_id(mark.exercise.id)
    check = new_code_cell(released[name], id=name[:60])
    check.metadata["nbgrader"] = NotebookNode(
        grade=True, solution=False, locked=True, task=False, schema_version=3, cell_type="code", grade_id=name,
        points=mark.exercise.points,
    )  # fmt: skip
    at = nb.cells.index(after) + 1 if after is not None else len(nb.cells)
    nb.cells.insert(at, check)
    return check
