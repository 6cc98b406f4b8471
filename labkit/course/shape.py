"""The shape of a lab: what every lab has in common, held by `lint`, which a test runs over all of them.

How things are counted: in the solved notebook as it is generated, cards and facts included, without the Colab cell
and the cell of parameters. Prose is a markdown cell. A cell's length is its lines that are not blank. A figure is a
code cell whose own statements call something of `figures`, `picture`, `plt`, `ipywidgets` or `show`, or a function of
the notebook that does, or shows a prediction `against` its measurement, which draws both on a line. The sliders of
`predict` and the cards of `check` do not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode

from labkit.course.master import Master, read_master
from labkit.course.release import Which, solved_notebook

PROSE = (0.55, 0.65)
LONG_LINES, SHORT_SHARE = 20, 0.9
MAX_CODE_RUN, MAX_WITHOUT_FIGURE = 2, 5
MIN_COMPARED = 8
EXERCISES = (3, 6)
DRAWS = {"figures", "picture", "plt", "ipywidgets", "show"}
SKIPPED = {"labkit-colab", "parameters"}


def lint(which: Which, root: Path | None = None) -> list[str]:
    """What is wrong with the shape of a lab, one sentence each, or nothing. Raises what `read_master` raises."""
    master = which if isinstance(which, Master) else read_master(which, root)
    cells = [cell for cell in solved_notebook(master, root).cells if not SKIPPED & set(cell.metadata.get("tags", ()))]
    code = [cell for cell in cells if cell.cell_type == "code"]
    return [*_proportions(cells, code), *_rhythm(cells, code), *_parts(master, code), *_predictions(code)]


def _proportions(cells: list[NotebookNode], code: list[NotebookNode]) -> Iterator[str]:
    prose = 1 - len(code) / len(cells)
    if not PROSE[0] <= prose <= PROSE[1]:
        yield f"{prose:.0%} of {len(cells)} cells are prose; {PROSE[0]:.0%} to {PROSE[1]:.0%} should be"
    long = [cell for cell in code if _length(cell) > LONG_LINES]
    if len(long) > (1 - SHORT_SHARE) * len(code):
        shown = ", ".join(f"{_first_line(cell)} ({_length(cell)})" for cell in long)
        yield f"{len(long)} of {len(code)} code cells are longer than {LONG_LINES} lines, one in ten may be: {shown}"


def _rhythm(cells: list[NotebookNode], code: list[NotebookNode]) -> Iterator[str]:
    run = 0
    for cell in cells:
        run = run + 1 if cell.cell_type == "code" else 0
        if run == MAX_CODE_RUN + 1:
            yield f"more than {MAX_CODE_RUN} code cells in a row, up to {_first_line(cell)}"
    painters = _painters(code)
    without = 0
    for cell in code:
        without = 0 if _calls(cell, painters) or _against(cell) else without + 1
        if without == MAX_WITHOUT_FIGURE + 1:
            yield f"more than {MAX_WITHOUT_FIGURE} code cells without a figure or a widget, up to {_first_line(cell)}"


def _parts(master: Master, code: list[NotebookNode]) -> Iterator[str]:
    number = len(master.exercises)
    if not EXERCISES[0] <= number <= EXERCISES[1]:
        yield f"{number} exercises; {EXERCISES[0]} to {EXERCISES[1]} should be"
    if missing := {exercise.id for exercise in master.lab.exercises} - {exercise.id for exercise in master.exercises}:
        yield f"the lab declares {', '.join(sorted(missing))}, and the master does not have it"
    compared = sum("nbval-check-output" in cell.metadata.get("tags", ()) for cell in code)
    if compared < MIN_COMPARED:
        yield f"{compared} cells are tagged nbval-check-output; at least {MIN_COMPARED} should be"
    if not any(_calls(cell, {"recap"}) for cell in code):
        yield f'no recap; end with recap("{master.lab.number}")'
    imported = {
        alias.asname or alias.name
        for cell in code
        for node in ast.walk(_tree(cell))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "labkit"
        for alias in node.names
    }
    if absent := {"check", "hint", "reveal"} - imported:
        yield f"no setup cell imports {', '.join(sorted(absent))}, which the cards tell the learner to run"


def _predictions(code: list[NotebookNode]) -> Iterator[str]:
    asked = measured = 0
    for cell in code:
        calls = [_called(node) for node in ast.walk(_tree(cell)) if _is_call(node)]
        measured += _against(cell)
        if measured > asked:
            yield f"a measurement without a prediction in a cell before it: {_first_line(cell)}"
            measured = asked
        asked += sum(name == ("predict",) for name in calls)
    if not asked:
        yield "no prediction; ask for one with predict(…) before every experiment"
    elif measured < asked:
        yield f"{asked} predictions are asked for and {measured} are shown beside the measurement"


def _painters(code: list[NotebookNode]) -> set[str]:
    names = set(DRAWS)
    functions = [node for cell in code for node in ast.walk(_tree(cell)) if isinstance(node, ast.FunctionDef)]
    for _ in functions:
        names |= {f.name for f in functions if any(_called(n)[0] in names for n in ast.walk(f) if _is_call(n))}
    return names


def _calls(cell: NotebookNode, names: set[str]) -> bool:
    """Whether the cell's own statements, not the bodies of its functions, call one of `names`."""
    statements = [
        s for s in _tree(cell).body if not isinstance(s, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    ]
    return any(_called(node)[0] in names for s in statements for node in ast.walk(s) if _is_call(node))


def _against(cell: NotebookNode) -> int:
    """How many measurements the cell shows beside their predictions."""
    return sum(_called(node)[-1] == "against" for node in ast.walk(_tree(cell)) if _is_call(node))


def _is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call)


def _called(call: ast.Call) -> tuple[str, ...]:
    """The dotted name that a call calls: ("figures", "load"); ("", …) where it hangs on another value."""
    parts: list[str] = []
    node = call.func
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return (*((node.id,) if isinstance(node, ast.Name) else ("",)), *reversed(parts))


def _tree(cell: NotebookNode) -> ast.Module:
    lines = ["pass" if line.lstrip().startswith(("%", "!")) else line for line in cell.source.splitlines()]
    return ast.parse("\n".join(lines))


def _length(cell: NotebookNode) -> int:
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def _first_line(cell: NotebookNode) -> str:
    return repr(cell.source.strip().splitlines()[0][:60])
