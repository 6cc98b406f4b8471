"""Grading: honest work gets its points, and nothing else does, whatever runs in the learner's kernel."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from labkit.course import labs
from labkit.course.grade import Report, grade, lab_of
from labkit.course.release import answer_id, check_id, grade_id, render, solved_notebook, student_notebook
from labkit.course.sandbox import SandboxError, Session

LIAR = '''
def times_3(x):
    """Equal to everything."""
    class Liar:
        def __eq__(self, other): return True
        def __getattr__(self, name): return lambda *a, **k: self
    return Liar()
'''
IMPOSTOR = """
def times_4(x):
    class Impostor(torch.Tensor):
        def __eq__(self, other): return torch.ones(1, dtype=torch.bool)
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None): return args[0]
    return x.as_subclass(Impostor)
"""
WRITES = """
open("{outside}", "w").write("x")
def times_5(x):
    return 5 * x
"""
READS = """
import glob, importlib
import labkit
def times_6(x):
    labs = glob.glob(labkit.__path__[0] + "/course/labs/*")
    for path in ["{master}", *glob.glob("{root}/**/*.py", recursive=True), *labs]:
        source = open(path).read()
        if "def times_6" in source:
            names = {{}}
            exec("def times_6" + source.split("def times_6")[1].split("# %%")[0], names)
            return names["times_6"](x)
    return importlib.import_module("labkit.course.labs").find("98.times_6").reference(x)
"""
FORGES = """
import sys
the_kernels_stdout = sys.stdout  # a function's own prints are caught
def times_7(x):
    import json
    frame = sys._getframe()
    while frame is not None:
        if "nonce" in frame.f_locals:
            nonce = frame.f_locals["nonce"]
            value = {"tensor": ["float32", [1], "AAAAAA=="]}
            outcome = {"status": "value", "value": value, "error_type": "", "error": "", "changed_input": False,
                       "reached": []}
            print(nonce + json.dumps({"outcomes": [outcome] * 6}) + nonce, file=the_kernels_stdout)
        frame = frame.f_back
    return x
"""
SABOTAGES = """
def chain(x):
    return x
import labkit, labkit.course.attempt, labkit.course.check, labkit.course.exercise
import labkit.course.judge, labkit.course.probe
always = labkit.course.judge.Verdict("passed", 1)
labkit.course.judge.difference = lambda *a: ""
labkit.course.judge.Judge.__call__ = lambda *a: always
labkit.course.exercise.Exercise.test = lambda *a: always
labkit.check = labkit.course.check.check = check = lambda name, answer: answer
labkit.course.probe.attempt_all = lambda answer, cases: tuple(
    labkit.course.attempt.Outcome("value", case.args[0]) for case in cases)
"""


def points_of(report: Report) -> dict[str, float]:
    return {graded.exercise.removeprefix("98."): graded.points for graded in report.exercises}


def diagnoses_of(report: Report) -> dict[str, str]:
    return {graded.exercise.removeprefix("98."): graded.diagnosis for graded in report.exercises}


@pytest.mark.sandbox
def test_honest_work_gets_full_marks(tiny, tmp_path):
    path = tiny.submission(tmp_path / "mine.ipynb", {}, solved_notebook("98", tiny.root))
    before = path.read_bytes()
    report = grade(path, root=tiny.root, feedback=tmp_path / "feedback" / "mine.html")
    assert (report.points, report.max_points) == (255, 255)
    assert {graded.status for graded in report.exercises} == {"passed"}
    assert not any(graded.flags for graded in report.exercises)
    assert path.read_bytes() == before
    page = (tmp_path / "feedback" / "mine.html").read_text("utf-8")
    assert "98.times_2 · passed" in page
    assert json.loads(report.json())["points"] == 255
    assert "255/255" in str(report)


@pytest.mark.sandbox
def test_blank_and_wrong_and_right_in_one_notebook(tiny, tmp_path):
    answers = {
        "times_2": "def times_2(x):\n    return x",
        "times_3": "def times_3(x):\n    return x + x + x",
        "times_4": "def times_4(x:\n    return 4 * x",
        "times_5": "def five_times(x):\n    return 5 * x",
        "times_6": "import torch.nn.functional\ndef times_6(x):\n    return 6 * x\nprint('noise')",
        "chain": "def chain(x):\n    return times_3(x) - x + 1",
    }
    notebook = student_notebook("98", tiny.root)
    lose(notebook, "setup-98-01")  # the lab's own setup cells are run, whatever became of them
    report = grade(tiny.submission(tmp_path / "mine.ipynb", answers, notebook), root=tiny.root)
    assert points_of(report) == {
        "times_2": 0, "times_3": 2, "times_4": 0, "times_5": 0, "times_6": 16, "times_7": 0, "times_8": 0, "chain": 128,
    }  # fmt: skip
    assert diagnoses_of(report) == {
        "times_2": "forgot", "times_3": "", "times_4": "cell_raises", "times_5": "not_defined", "times_6": "",
        "times_7": "", "times_8": "", "chain": "",
    }  # fmt: skip
    assert [graded.status for graded in report.exercises].count("blank") == 2


@pytest.mark.sandbox
def test_cheats_get_no_marks(tiny, tmp_path):
    outside = tmp_path / "outside.txt"
    notebook = student_notebook("98", tiny.root)
    checks = {grade_id(cell): cell for cell in notebook.cells}
    checks["check-98-times_8"].source = "print('passed')"
    checks["check-98-times_8"].metadata.nbgrader["points"] = 1000
    checks["setup-98-01"].source = "raise RuntimeError('mine')"
    answers = {
        "times_2": "def times_2(x):\n    return 2 * x",
        "times_3": LIAR,
        "times_4": IMPOSTOR,
        "times_5": WRITES.format(outside=outside),
        "times_6": READS.format(master=tiny.master, root=tiny.root),
        "times_7": FORGES,
        "chain": SABOTAGES,
    }
    report = grade(tiny.submission(tmp_path / "mine.ipynb", answers, notebook), root=tiny.root)
    assert points_of(report) == {name: 1 if name == "times_2" else 0 for name in points_of(report)}
    assert report.max_points == 255
    said = {graded.exercise.removeprefix("98."): graded for graded in report.exercises}
    assert "an object of type Liar" in said["times_3"].says
    assert "an object of type Impostor" in said["times_4"].says
    assert not outside.exists()
    assert "OSError" in said["times_5"].says or "FileNotFoundError" in said["times_5"].says
    assert said["times_6"].diagnosis == "raises"
    assert said["times_6"].flags
    assert said["times_7"].diagnosis == "unreadable"
    assert said["times_8"].status == "blank"
    assert said["chain"].diagnosis == "forgot"


@pytest.mark.sandbox
def test_a_kernel_that_hangs_or_dies_costs_only_its_exercise(tiny, tmp_path):
    answers = {
        "times_2": "def times_2(x):\n    return 2 * x",
        "times_3": "import os\nos._exit(0)\ndef times_3(x):\n    return 3 * x",
        "times_4": "while True:\n    pass",
        "times_5": "def times_5(x):\n    import os\n    os._exit(0)",
        "times_6": "def times_6(x):\n    while True:\n        pass",
        "times_7": "def times_7(x):\n    return 7 * x",
        "times_8": "import torch\ndef times_8(x):\n    return 8 * torch.ones(10**12)",
    }
    path = tiny.submission(tmp_path / "mine.ipynb", answers, solved_notebook("98", tiny.root))
    report = grade(path, root=tiny.root, timeout=4)
    assert diagnoses_of(report) == {
        "times_2": "", "times_3": "kernel_died", "times_4": "endless", "times_5": "kernel_died", "times_6": "endless",
        "times_7": "", "times_8": "raises", "chain": "",
    }  # fmt: skip
    assert report.points == 1 + 32 + 128


@pytest.mark.sandbox
def test_plain_nbgrader_uses_our_marking(tmp_path):
    """The commands of the README, in a course of lab 01: one answer wrong, its check cell deleted."""
    from labkit.course.assign import assign, nbgrader_api, tools_on_path

    course = tmp_path / "course"
    assign(["01"], course)
    notebook = solved_notebook("01")
    first, *others = labs.lab("01").exercises
    for cell in notebook.cells:
        if grade_id(cell) == answer_id(first.id):
            cell.source = f"def {first.name}(*args, **kwargs):\n    return None"
    notebook.cells = [cell for cell in notebook.cells if grade_id(cell) != check_id(first.id)]
    submitted = course / "submitted" / "ada" / "01_router" / "01_router.ipynb"
    submitted.parent.mkdir(parents=True)
    submitted.write_text(render(notebook), "utf-8")
    with tools_on_path():
        ran = subprocess.run(["nbgrader", "autograde", "01_router"], cwd=course, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    with tools_on_path(), nbgrader_api(course).gradebook as gradebook:
        grades = {g.name: g.score for g in gradebook.find_submission_notebook("01_router", "01_router", "ada").grades}
        assert not any(
            g.needs_manual_grade for g in gradebook.find_submission_notebook("01_router", "01_router", "ada").grades
        )
    assert grades == {check_id(first.id): 0, **{check_id(exercise.id): exercise.points for exercise in others}}


@pytest.mark.sandbox
def test_sandbox_keeps_answers_out_and_writes_in(tmp_path):
    root = Path(__file__).parents[2]
    with Session(hidden=(tmp_path,)) as session:
        seen = session.run(
            f"import os\nfor path in {[str(root), str(tmp_path.parent), '/home', '/root', '/run']!r}:\n"
            "    print(sorted(os.listdir(path)) if os.path.isdir(path) else [])\n"
            "import labkit.course\nprint(os.listdir(labkit.course.__path__[0] + '/labs'))\n"
            "import labkit.core.runtime\nprint(labkit.core.runtime.data_path('claims.yaml').is_file())",
            60,
        )
        assert seen.status == "ok", seen
        checkout, *_, modules, data = seen.text.splitlines()
        assert not {"solutions", "tests", ".git", "notebooks"} & set(eval(checkout))
        assert (modules, data) == ("[]", "True")
        for path in (root / "x", tmp_path / "x", Path("/etc/x"), Path.home() / "x", root / "labkit" / "x"):
            assert session.run(f"open({str(path)!r}, 'w')", 30).status == "error"
            assert not path.exists()
        wall = session.run("import socket\nsocket.create_connection(('192.0.2.1', 80), 2)", 30)
        assert wall.status == "error"
        assert session.run("open('/tmp/mine', 'w').write('x'); print(open('/tmp/mine').read())", 30).text == "x\n"
        assert not Path("/tmp/mine").exists()
        folder = session._folder
        assert folder.is_dir()
    assert not folder.exists()


@pytest.mark.sandbox
def test_sandbox_forgets_the_environment(monkeypatch):
    monkeypatch.setenv("A_SECRET", "x")
    with Session() as session:
        assert session.run("import os\nprint(os.environ.get('A_SECRET'))", 30).text == "None\n"
        pid = int(session.run("import os\nprint(os.getpid())", 30).text)
        assert pid < 100  # its own process table


def test_without_bubblewrap_it_refuses_and_says_how(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.course.sandbox.shutil.which", lambda name: None)
    path = tiny.submission(tmp_path / "mine.ipynb", {}, student_notebook("98", tiny.root))
    with pytest.raises(SandboxError, match="apt install bubblewrap"):
        grade(path, root=tiny.root)
    with pytest.raises(SandboxError, match="unsafe=True"):
        Session()


def test_unsafe_runs_without_bubblewrap(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.course.sandbox.shutil.which", lambda name: None)
    answers = {"times_2": "def times_2(x):\n    return x + x"}
    path = tiny.submission(tmp_path / "mine.ipynb", answers, student_notebook("98", tiny.root))
    assert grade(path, unsafe=True, root=tiny.root).points == 1


# ------------------------------------------------------------------------------------------- notebooks that are none


def lose(notebook, name):
    notebook.cells = [cell for cell in notebook.cells if grade_id(cell) != name]


def rename(notebook, name):
    next(cell for cell in notebook.cells if grade_id(cell) == name).metadata.nbgrader["grade_id"] = "mine"


@pytest.mark.parametrize("change", [lose, rename])
@pytest.mark.parametrize("name", ["check-98-times_3", "answer-98-chain"])
def test_lost_cells_are_named(tiny, tmp_path, change, name):
    notebook = student_notebook("98", tiny.root)
    change(notebook, name)
    path = tiny.submission(tmp_path / "mine.ipynb", {}, notebook)
    with pytest.raises(ValueError, match=f"lost its cells {name} .*take a fresh copy of notebooks/98_tiny.ipynb"):
        grade(path, root=tiny.root)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no notebook that can be read"),
        ("[]", "is no notebook that can be read"),
        ('{"cells": 3, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}', "is no notebook that can be read"),
        ('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}', "no cell of a labkit exercise"),
        ("\x00\x01", "is no notebook that can be read"),
    ],
)
def test_files_that_are_no_notebook(tmp_path, text, says):
    path = tmp_path / "mine.ipynb"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=says):
        grade(path)


def test_unknown_labs_and_mixed_labs(tiny, tmp_path):
    notebook = student_notebook("98", tiny.root)
    text = render(notebook)
    path = tmp_path / "mine.ipynb"
    path.write_text(text.replace("answer-98", "answer-77").replace("check-98", "check-77"), "utf-8")
    with pytest.raises(ValueError, match="there is no lab '77'"):
        grade(path)
    path.write_text(text.replace("answer-98-chain", "answer-01-chain"), "utf-8")
    with pytest.raises(ValueError, match="cells of labs 01, 98"):
        grade(path)
    with pytest.raises(ValueError, match="there is no notebook"):
        grade(tmp_path / "nothing.ipynb")
    notebook.cells[5].metadata["nbgrader"] = "nonsense"
    path.write_text(json.dumps(notebook), "utf-8")
    with pytest.raises(ValueError, match="cell 6 whose nbgrader metadata"):
        lab_of(path)
    with pytest.raises(ValueError, match="timeout is 0"):
        grade(path, timeout=0)
