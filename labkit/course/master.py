"""A master: `solutions/NN_name.py` read into cells and held to the rules that everything made from it relies on.

A master is a jupytext py:percent file. Its cells say what they are: `tags=["parameters"]`, `tags=["setup"]`,
`exercise="01.top_k"`, `check="01.top_k"`. What is wrong is reported by file, line and cell.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from labkit.course import labs
from labkit.course.exercise import Exercise
from labkit.course.labs import Lab

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
ROOT = Path(__file__).resolve().parents[2]
PYTHON = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


class MasterError(ValueError):
    """A master that no notebook can be made from; the message names file, line and cell."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell of a master, with its place: the line of its `# %%` and its position, both counted from 1."""

    node: NotebookNode
    line: int
    index: int

    @property
    def source(self) -> str:
        """The text of the cell."""
        return self.node.source

    @property
    def is_code(self) -> bool:
        """Whether the cell is code."""
        return self.node.cell_type == "code"

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags, in order."""
        return tuple(self.node.metadata.get("tags", ()))

    @property
    def exercise(self) -> str:
        """The id of the exercise that is answered here, or an empty string."""
        return self.node.metadata.get("exercise", "")

    @property
    def check(self) -> str:
        """The id of the exercise that is checked here, or an empty string."""
        return self.node.metadata.get("check", "")


@dataclass(frozen=True, eq=False)
class Master:
    """A master that has been read and found in order: its file, its lab, and its cells."""

    path: Path
    lab: Lab
    cells: tuple[Cell, ...]

    @property
    def root(self) -> Path:
        """The folder that holds `solutions/`."""
        return self.path.parent.parent

    @property
    def exercises(self) -> tuple[Exercise, ...]:
        """The exercises in the order of the notebook."""
        return tuple(labs.find(cell.exercise) for cell in self.cells if cell.exercise)


def checkout(root: Path = ROOT) -> Path | None:
    """The root of the checkout that labkit runs from, or None where only the wheel is installed."""
    return root if (root / "solutions").is_dir() and (root / "pyproject.toml").is_file() else None


def read_master(which: str | int | Path, root: Path | None = None) -> Master:
    """Read a master and check it.

    Args:
        which: the number of a lab ("01", 1, "01_router") or the path of a master.
        root: the checkout; by default the one that labkit runs from.

    Raises ValueError for an unknown lab, FileNotFoundError for a master that is not there, and MasterError, naming
    file, line and cell, for one that breaks a rule.
    """
    path = Path(which) if str(which).endswith(".py") else _path_of(which, root)
    if not path.is_file():
        raise FileNotFoundError(f"there is no master {path}; masters are solutions/NN_name.py")
    text = path.read_text("utf-8")
    cells = _cells(path, text)
    try:
        lab = labs.lab(path.stem)
    except ValueError as error:
        raise MasterError(f"{path.name}: {error}") from error
    master = Master(path, lab, cells)
    _check(master)
    return master


def _path_of(which: str | int | Path, root: Path | None) -> Path:
    lab = labs.lab(str(which) if isinstance(which, Path) else which)
    root = root or checkout()
    if root is None:
        raise FileNotFoundError("masters are in a checkout of the course, and labkit runs from an installed wheel")
    return Path(root) / "solutions" / f"{lab.stem}.py"


def _cells(path: Path, text: str) -> tuple[Cell, ...]:
    import jupytext

    try:
        nodes = jupytext.reads(text, fmt="py:percent").cells
    except (SyntaxError, ValueError, nbformat.ValidationError) as error:
        raise MasterError(f"{path.name} cannot be read as py:percent: {error}") from error
    lines = [number for number, line in enumerate(text.splitlines(), 1) if re.match(r"# %%(\s|$)", line)]
    if len(lines) != len(nodes):
        raise MasterError(f"{path.name} has text outside its cells; begin every cell with a line '# %%'")
    return tuple(Cell(node, line, i) for i, (node, line) in enumerate(zip(nodes, lines, strict=True), 1))


def _check(master: Master) -> None:
    cells = master.cells
    if not cells or cells[0].is_code or not cells[0].source.startswith("# "):
        _fail(master, cells[0] if cells else None, "the first cell must be markdown and begin with the title, '# …'")
    parameters = [cell for cell in cells if "parameters" in cell.tags]
    if len(parameters) != 1:
        where = parameters[1] if parameters else None
        _fail(master, where, f"{len(parameters)} cells are tagged parameters; tag exactly one")
    answered: list[str] = []
    checked: list[str] = []
    for cell in cells:
        if cell.exercise:
            _check_exercise(master, cell, answered)
            answered.append(cell.exercise)
        elif BEGIN in cell.source or END in cell.source:
            _fail(
                master, cell, f"a solution region in a cell without exercise=; write # %% exercise={_example(master)}"
            )
        if cell.check:
            _check_check(master, cell, answered, checked)
            checked.append(cell.check)
    for cell in cells:
        if cell.exercise and cell.exercise not in checked:
            _fail(master, cell, f'exercise {cell.exercise} has no check; add a cell # %% check="{cell.exercise}"')


def _check_exercise(master: Master, cell: Cell, answered: list[str]) -> None:
    exercise = _exercise(master, cell, cell.exercise)
    if cell.exercise in answered:
        _fail(master, cell, f"exercise {cell.exercise} stands in two cells; answer it in one")
    body = _parse(master, cell)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    if len(body) != 1 or not isinstance(body[0], kinds):
        _fail(master, cell, "an exercise is one function or one class, and nothing else in its cell")
    if body[0].name != exercise.name:
        _fail(master, cell, f"it defines {body[0].name}, where exercise {exercise.id} asks for {exercise.name}")
    if not ast.get_docstring(body[0]):
        _fail(master, cell, f"{exercise.name} has no docstring; say what goes in and out, with shapes")
    if not cell.source.count(BEGIN) == cell.source.count(END) > 0:
        _fail(master, cell, f"put what the learner writes between '{BEGIN}' and '{END}'")


def _check_check(master: Master, cell: Cell, answered: list[str], checked: list[str]) -> None:
    exercise = _exercise(master, cell, cell.check)
    if cell.check not in answered:
        _fail(master, cell, f"it checks {cell.check}, and no cell before it has exercise={cell.check!r}")
    if cell.check in checked:
        _fail(master, cell, f"exercise {cell.check} is checked twice; check it once")
    line = f'{exercise.name} = check("{exercise.id}", {exercise.name})'
    if ast.unparse(ast.Module(_parse(master, cell), [])) != ast.unparse(ast.parse(line)):
        _fail(master, cell, f"a check cell holds one line: {line}")


def _exercise(master: Master, cell: Cell, exercise_id: str) -> Exercise:
    if not cell.is_code:
        _fail(master, cell, "exercise= and check= belong to code cells")
    try:
        exercise = labs.find(exercise_id)
    except ValueError as error:
        raise MasterError(_where(master, cell) + str(error)) from error
    if exercise.id not in {known.id for known in master.lab.exercises}:
        _fail(master, cell, f"exercise {exercise.id} belongs to another lab")
    return exercise


def _parse(master: Master, cell: Cell) -> list[ast.stmt]:
    try:
        return ast.parse(cell.source).body
    except SyntaxError as error:
        raise MasterError(
            _where(master, cell) + f"not Python: {error.msg} (line {error.lineno} of the cell)"
        ) from error


def _example(master: Master) -> str:
    return f'"{master.lab.exercises[0].id}"' if master.lab.exercises else '"NN.name"'


def _where(master: Master, cell: Cell | None) -> str:
    return f"{master.path.name}: " if cell is None else f"{master.path.name}:{cell.line}, cell {cell.index}: "


def _fail(master: Master, cell: Cell | None, says: str) -> None:
    raise MasterError(_where(master, cell) + says)
