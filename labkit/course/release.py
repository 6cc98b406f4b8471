"""From a master to its notebooks: the student's, with nbgrader's own preprocessors, and the solved one.

Everything generated is made here: the facts under the title, the card before each exercise, the Colab cell, cell ids
and the graders' metadata. Made twice, a notebook is the same to the last byte.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from labkit.course import labs
from labkit.course.address import colab_badge, colab_source, repository
from labkit.course.claims import claims
from labkit.course.exercise import Exercise
from labkit.course.labs import Lab
from labkit.course.master import PYTHON, Cell, Master, read_master

GENERATED = ("labkit-colab", "labkit-facts", "labkit-card")

Which = str | int | Path | Master


def answer_id(exercise_id: str) -> str:
    """nbgrader's id of the cell that answers an exercise: "answer-01-top_k"."""
    return "answer-" + exercise_id.replace(".", "-", 1)


def check_id(exercise_id: str) -> str:
    """nbgrader's id of the cell that checks an exercise: "check-01-top_k"."""
    return "check-" + exercise_id.replace(".", "-", 1)


def setup_id(number: str, index: int) -> str:
    """nbgrader's id of the index-th cell that runs before every graded answer: "setup-01-00"."""
    return f"setup-{number}-{index:02d}"


def grade_id(cell: NotebookNode) -> str:
    """nbgrader's id of a cell, or an empty string, whatever a learner has made of the metadata."""
    grader = cell.metadata.get("nbgrader")
    name = grader.get("grade_id") if isinstance(grader, dict) else ""
    return name if isinstance(name, str) else ""


def solved_notebook(which: Which, root: Path | None = None) -> NotebookNode:
    """The solved notebook of a lab, with cards, ids and graders' metadata; not executed.

    Raises what `read_master` raises.
    """
    master = which if isinstance(which, Master) else read_master(which, root)
    address = repository(root or master.root)
    lab, setups, cells = master.lab, 0, []
    for cell in master.cells:
        if cell.exercise:
            cells.append(_card(labs.find(cell.exercise)))
        grader = _grader(cell)
        if grader is None and not lab.is_extra and {"parameters", "setup"} & set(cell.tags):
            grader = {"grade": False, "solution": False, "locked": True, "grade_id": setup_id(lab.number, setups)}
            setups += 1
        cells.append(_node(cell, grader))
        if cell.index == 1:
            cells += [_facts(lab, address), _tagged(new_code_cell(colab_source(address)), "labkit-colab")]
    _name(lab, cells)
    notebook = new_notebook(cells=cells, metadata=copy.deepcopy(PYTHON))
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.validate(notebook)
    return notebook


def student_notebook(which: Which, root: Path | None = None) -> NotebookNode:
    """The student's notebook of a lab, made by nbgrader's preprocessors. Raises what `read_master` raises."""
    from nbgrader import preprocessors as nbgrader

    notebook = solved_notebook(which, root)
    resources: dict[str, Any] = {}
    steps = (
        nbgrader.LockCells(lock_readonly_cells=False), nbgrader.ClearSolutions(), nbgrader.ClearOutput(),
        nbgrader.CheckCellMetadata(), nbgrader.ComputeChecksums(), nbgrader.ClearHiddenTests(),
        nbgrader.ComputeChecksums(),
    )  # fmt: skip
    for step in steps:
        step.log = logging.getLogger(__name__)
        notebook, resources = step.preprocess(notebook, resources)
    return notebook


def release(which: Which, root: Path | None = None) -> tuple[Path, ...]:
    """Write the student's notebook of a lab to `notebooks/`; returns the paths written.

    A notebook there that somebody has worked in is kept beside it, as `NN_name.mine.ipynb` or the next free name.
    Raises what `read_master` raises.
    """
    master = which if isinstance(which, Master) else read_master(which, root)
    path = notebook_path(master, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, kept = render(student_notebook(master, root)), []
    if path.is_file() and worked_in(path.read_text("utf-8")):
        names = (path.with_name(f"{path.stem}.mine{n or ''}.ipynb") for n in itertools.count())
        kept.append(path.replace(next(name for name in names if not name.exists())))
    path.write_text(fresh, "utf-8")
    return (path, *kept)


def worked_in(text: str) -> bool:
    """Whether a student's notebook holds somebody's work: an output, or an answer where the stub was."""
    try:
        cells = nbformat.reads(text, as_version=4).cells
    except (ValueError, nbformat.ValidationError):
        return bool(text.strip())
    answers = [cell for cell in cells if cell.metadata.get("exercise")]
    return any(cell.get("outputs") for cell in cells) or any(
        "NotImplementedError" not in cell.source for cell in answers
    )


def stale(which: Which, root: Path | None = None) -> bool:
    """Whether the student's notebook on disk is not what its master makes today, or is missing."""
    master = which if isinstance(which, Master) else read_master(which, root)
    path = notebook_path(master, root)
    return not path.is_file() or path.read_text("utf-8") != render(student_notebook(master, root))


def notebook_path(master: Master, root: Path | None = None) -> Path:
    """Where the student's notebook of a master lies."""
    return Path(root or master.root) / "notebooks" / f"{master.lab.stem}.ipynb"


def render(notebook: NotebookNode) -> str:
    """A notebook as text, the same for equal notebooks."""
    return nbformat.writes(notebook, version=4) + "\n"


def card_text(exercise: Exercise) -> str:
    """The card before an exercise, as markdown."""
    points = "1 point" if exercise.points == 1 else f"{exercise.points} points"
    return (
        f"### ✎ Exercise {exercise.id} · {exercise.title}\n\n"
        f"{exercise.stars} · {exercise.minutes} minutes · {points}\n\n"
        f'Stuck? Run `hint("{exercise.id}")`, up to three times, then `reveal("{exercise.id}")`.'
    )


def facts_text(lab: Lab, address: str) -> str:
    """What stands under the title: time, hardware, points, claims audited, and the way into Colab."""
    lines = [
        f"| {'Notebook' if lab.is_extra else f'Lab {lab.number}'} | |",
        "|---|---|",
        f"| Time | about {lab.minutes} minutes |",
        f"| Hardware | {lab.hardware} |",
    ]
    if not lab.is_extra:
        points = sum(exercise.points for exercise in lab.exercises)
        ledger = f"{address}/blob/main/data/claims.yaml"
        audited = [f"[{number}]({ledger}) *{claims()[number].wording}*" for number in lab.claims]
        lines.append(f"| Exercises | {len(lab.exercises)}, {points} points |")
        lines.append(f"| Claims audited | {'; '.join(audited) or 'none'} |")
    badge = colab_badge(address, lab.stem)
    return "\n".join([*lines, "", badge] if badge else lines)


def _grader(cell: Cell) -> dict[str, Any] | None:
    if cell.exercise:
        return {"grade": False, "solution": True, "locked": False, "grade_id": answer_id(cell.exercise)}
    if cell.check:
        points = labs.find(cell.check).points
        return {
            "grade": True, "solution": False, "locked": True, "grade_id": check_id(cell.check), "points": points,
        }  # fmt: skip
    return None


def _node(cell: Cell, grader: dict[str, Any] | None) -> NotebookNode:
    make = new_code_cell if cell.is_code else new_markdown_cell
    metadata = {key: value for key, value in cell.node.metadata.items() if not key.startswith("lines_to_")}
    node = make(cell.source, metadata=copy.deepcopy(metadata))
    if grader is not None:
        task = {"schema_version": 3, "task": False, "cell_type": cell.node.cell_type}
        node.metadata["nbgrader"] = NotebookNode({**grader, **task})
    return node


def _card(exercise: Exercise) -> NotebookNode:
    card = _tagged(new_markdown_cell(card_text(exercise)), "labkit-card")
    card.metadata["card"] = exercise.id
    return card


def _facts(lab: Lab, address: str) -> NotebookNode:
    return _tagged(new_markdown_cell(facts_text(lab, address)), "labkit-facts")


def _tagged(cell: NotebookNode, tag: str) -> NotebookNode:
    cell.metadata["tags"] = [tag]
    return cell


def _name(lab: Lab, cells: list[NotebookNode]) -> None:
    """Give every cell an id that stays when cells are added before it: its part in the lab, or a hash of its text."""
    seen: Counter[str] = Counter()
    for cell in cells:
        role = next((tag for tag in cell.metadata.get("tags", ()) if tag in GENERATED), "")
        if "nbgrader" in cell.metadata:
            name = cell.metadata.nbgrader.grade_id
        elif role:
            name = role + "-" + cell.metadata.get("card", lab.number).replace(".", "-")
        else:
            text = f"{lab.stem}\n{cell.cell_type}\n{cell.source}"
            name = f"{lab.number}-" + hashlib.sha256(text.encode()).hexdigest()[:10]
        seen[name] += 1
        cell["id"] = name[:60] if seen[name] == 1 else f"{name[:60]}-{seen[name]}"
