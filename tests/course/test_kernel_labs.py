"""What the labs on kernels have in common: what they reveal, and that the list of labs works without Triton."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap

import pytest

from labkit.course import labs
from labkit.course.release import answer_id, grade_id, solved_notebook

NUMBERS = ("08", "09", "10")
EXERCISES = {exercise.id: exercise for number in NUMBERS for exercise in labs.lab(number).exercises}


def body(source):
    """A function without its signature and docstring, and its decorators."""
    (function,) = ast.parse(textwrap.dedent(source)).body
    statements = function.body[1:] if ast.get_docstring(function) else function.body
    return [ast.unparse(node) for node in statements], [ast.unparse(node) for node in function.decorator_list]


@pytest.mark.parametrize("id", sorted(EXERCISES))
def test_what_reveal_shows_is_what_the_master_has(id):
    cells = {grade_id(cell): cell.source for cell in solved_notebook(id[:2]).cells}
    assert body(inspect.getsource(EXERCISES[id].reference)) == body(cells[answer_id(id)])


def test_the_list_of_labs_does_not_need_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from labkit.course import labs\n"
        f"print([(each.id, each.stars) for number in {NUMBERS} for each in labs.lab(number).exercises])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for id in ("08.router_kernel", "09.weight_gradient", "10.flash_kernel"):
        assert id in done.stdout
