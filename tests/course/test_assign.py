"""A course for nbgrader is laid out, and only where there is room for it."""

from __future__ import annotations

import nbformat
import pytest
from nbgrader.preprocessors import Execute

from labkit.course import assign as module
from labkit.course.assign import AssignError, assign, nbgrader_api, succeed
from labkit.course.autograde import SandboxedMarking
from labkit.course.release import grade_id, release, student_notebook


@pytest.fixture
def course(tiny, tmp_path):
    return tmp_path / "course"


def sources(notebook):
    return {grade_id(cell): cell.source for cell in notebook.cells if grade_id(cell)}


def test_course_is_complete(tiny, course):
    written = assign(["98", 98], course, tiny.root)
    names = {str(path.relative_to(course)) for path in written}
    assert names == {
        ".labkit-course.json", "nbgrader_config.py", "README.md", "source/98_tiny/98_tiny.ipynb",
        "release/98_tiny/98_tiny.ipynb", "gradebook.db",
    }  # fmt: skip
    assert all(path.is_file() for path in written)
    source = nbformat.read(course / "source/98_tiny/98_tiny.ipynb", as_version=4)
    released = nbformat.read(course / "release/98_tiny/98_tiny.ipynb", as_version=4)
    assert "return 8 * x" in sources(source)["answer-98-times_8"]
    assert sources(released) == sources(student_notebook("98", tiny.root))
    readme = (course / "README.md").read_text("utf-8")
    for command in ("generate_assignment 98_tiny", "autograde 98_tiny", "generate_feedback 98_tiny"):
        assert f"`nbgrader {command}" in readme
    assert "| `98_tiny` | Tiny | 8 | 255 |" in readme
    assert marks_in_the_sandbox(course)


def marks_in_the_sandbox(course) -> bool:
    """Whether the configuration in `course` puts our marking where nbgrader's execution was."""
    from nbgrader.converters import Autograde

    api = nbgrader_api(course)
    steps = Autograde(coursedir=api.coursedir, parent=api).autograde_preprocessors
    return SandboxedMarking in steps and Execute not in steps and not SandboxedMarking(parent=api).unsafe


def test_again_into_its_own_folder_and_never_into_another(tiny, course):
    assign(["98"], course, tiny.root)
    handed_in = course / "submitted" / "ada" / "98_tiny" / "98_tiny.ipynb"
    handed_in.parent.mkdir(parents=True)
    handed_in.write_text("{}")
    assign(["98"], course, tiny.root)
    assert handed_in.read_text() == "{}"
    other = course.parent / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="has other things in it"):
        assign(["98"], other, tiny.root)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="is a file"):
        assign(["98"], other / "thesis.txt", tiny.root)


def test_unknown_and_no_labs(tiny, course):
    with pytest.raises(ValueError, match="there is no lab '77'"):
        assign(["98", "77"], course, tiny.root)
    with pytest.raises(ValueError, match="no labs"):
        assign([], course, tiny.root)
    with pytest.raises(ValueError, match="gallery has no exercises to grade; choose from 00, 01"):
        assign(["98", "gallery"], course, tiny.root)
    assert not course.exists()


def test_without_a_checkout_the_wheel_s_notebook_is_the_source(tiny, course, monkeypatch):
    notebooks = release("98", tiny.root)[0].parent
    package = tiny.root / "labkit"
    (package / "course").mkdir(parents=True)
    notebooks.rename(package / "notebooks")
    monkeypatch.setattr(module, "checkout", lambda: None)
    monkeypatch.setattr(module, "__file__", str(package / "course" / "assign.py"))
    assign(["98"], course)
    released = nbformat.read(course / "release/98_tiny/98_tiny.ipynb", as_version=4)
    assert sources(released) == sources(nbformat.read(package / "notebooks/98_tiny.ipynb", as_version=4))
    (package / "notebooks/98_tiny.ipynb").unlink()
    with pytest.raises(ValueError, match="neither a master nor a notebook"):
        assign(["98"], course)


def test_nbgrader_s_own_words_reach_the_reader():
    def generate_assignment(name, force):
        return {"success": False, "log": "[ERROR] no room", "error": "Traceback"}

    with pytest.raises(AssignError, match=r"nbgrader generate_assignment 98_tiny failed:\s+\[ERROR\] no room"):
        succeed(generate_assignment, "98_tiny", force=True)
