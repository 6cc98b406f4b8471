"""The command line: every command explains itself, and an expected error is a sentence with the right exit status."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from typer.testing import CliRunner

from labkit.core.runtime import Unavailable
from labkit.course import cli, desk, labs, progress
from labkit.course import run as runner
from labkit.course.result import Result

COMMANDS = (
    "doctor", "lab", "run", "release", "train", "progress", "claims", "assign", "grade", "bench", "export", "serve",
)  # fmt: skip
ROOT = Path(__file__).parents[2]


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, list(arguments))


def call(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    """Status, output and errors of the whole command, as a shell sees them."""
    monkeypatch.setattr(sys, "argv", ["labkit", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return ended.value.code or 0, said.out, said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(command):
    told = invoke(command, "--help")
    assert told.exit_code == 0
    assert f"Example: labkit {command}" in told.output


def test_help_lists_exactly_the_commands_that_exist():
    assert tuple(command.name or command.callback.__name__ for command in cli.app.registered_commands) == COMMANDS


def test_the_module_is_a_program():
    told = subprocess.run(
        [sys.executable, "-m", "labkit.course.cli", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert told.returncode == 0
    assert "release" in told.stdout


def test_doctor_shows_the_table():
    assert "torch" in invoke("doctor").output


@pytest.mark.parametrize("command", [("lab", "77", "--no-open"), ("run", "77"), ("release", "77")])
def test_an_unknown_lab_is_bad_usage(capsys, monkeypatch, command):
    status, _, error = call(capsys, monkeypatch, *command)
    assert status == 2
    assert "there is no lab '77'" in error
    assert "Traceback" not in error


def test_an_unknown_option_is_bad_usage(capsys, monkeypatch):
    assert call(capsys, monkeypatch, "run", "--profil", "cpu")[0] == 2


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ValueError("not this"), 2, "not this"),
        (Unavailable("no GPU. Instead: cpu"), 2, "Instead: cpu"),
        (FileNotFoundError("no such file"), 2, "no such file"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full"),
        (RuntimeError("it broke"), 1, "it broke"),
        (runner.Interrupted("finished labs: 00"), 130, "finished labs: 00"),
        (ModuleNotFoundError("No module named 'nbgrader'", name="nbgrader"), 2, "make setup-test"),
    ],
)
def test_expected_errors_are_sentences(capsys, monkeypatch, error, status, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(runner, "run", fail)
    code, _, said = call(capsys, monkeypatch, "run", "00")
    assert code == status
    assert words in said


def test_a_bug_stays_a_traceback(monkeypatch):
    def fail(*_, **__):
        raise ModuleNotFoundError("No module named 'labkit.x'", name="labkit.x")

    monkeypatch.setattr(runner, "run", fail)
    monkeypatch.setattr(sys, "argv", ["labkit", "run"])
    with pytest.raises(ModuleNotFoundError):
        cli.main()


@pytest.mark.parametrize(("problem", "status"), [("", 0), ("cell 3: KeyError: 'x'", 1)])
def test_run_passes_its_options_on_and_fails_if_a_notebook_does(monkeypatch, problem, status):
    seen = {}

    def run(numbers, **options):
        seen.update(options, numbers=numbers)
        return [Result("01", "01_router", "cpu", False, "k", problem, 1.0)]

    monkeypatch.setattr(runner, "run", run)
    told = invoke("run", "01", "--profile", "cpu", "--jobs", "3", "--fresh")
    assert told.exit_code == status
    assert problem in told.output
    assert seen == {
        "numbers": ["01"], "profile": "cpu", "jobs": 3, "blank": False, "update": False, "fresh": True,
    }  # fmt: skip


@pytest.fixture
def maker(monkeypatch):
    """A stand-in for `release`."""
    made = []
    module = ModuleType("labkit.course.release")
    module.release = lambda number: made.append(number) or (Path("notebooks") / f"{number}.ipynb",)
    module.stale = lambda number: number == "01"
    module.solved_notebook = lambda number: number
    monkeypatch.setattr("labkit.course.solutions.reword", lambda fresh, stem: fresh == "00")
    import labkit.course

    monkeypatch.setitem(sys.modules, "labkit.course.release", module)
    monkeypatch.setattr(labkit.course, "release", module, raising=False)
    monkeypatch.setattr(labs, "notebooks", lambda: ("00", "01"))
    monkeypatch.setattr(labs, "lab", lambda n: SimpleNamespace(number=n, stem=f"{n}_made", exercises=()))
    return made


def test_release_makes_all_or_only_looks(maker):
    told = invoke("release").output
    assert "wrote notebooks/00.ipynb" in told
    assert "labkit run 01 --update" in told
    assert "labkit run 00 --update" not in told
    assert maker == ["00", "01"]
    looked = invoke("release", "--check")
    assert looked.exit_code == 1
    assert "01_made" in looked.output
    assert "00_made" not in looked.output
    assert invoke("release", "00", "--check").exit_code == 0
    assert maker == ["00", "01"]


def test_progress_shows_what_is_passed(monkeypatch):
    exercise = SimpleNamespace(id="00.one", title="One")
    monkeypatch.setattr(labs, "numbers", lambda: ("00",))
    monkeypatch.setattr(labs, "lab", lambda n: SimpleNamespace(exercises=(exercise,)))
    assert "0 of 1 exercises passed" in invoke("progress").output
    progress.record("00.one", "passed")
    assert "1 of 1 exercises passed" in invoke("progress").output


def test_claims_reads_the_runs(tmp_path):
    (tmp_path / "none").mkdir()
    assert "nothing measured" in invoke("claims", "--runs", str(tmp_path / "none")).output
    missing = invoke("claims", "--runs", str(tmp_path / "nope"))
    assert "there is no folder" in str(missing.exception)
    measured = {"claim": 1, "measure": "flops_saved", "value": 91.0, "low": 90.5, "high": 92.0, "runs": 3}
    (tmp_path / "01.json").write_text(json.dumps({"claims": [{**measured, "condition": "a toy"}]}))
    told = invoke("claims", "--runs", str(tmp_path)).output
    assert "flops_saved: holds. Measured: 91 % (from 90.5 to 92, 3 runs), on a toy" in told


def test_assign_and_grade_hand_over(monkeypatch, tmp_path):
    @dataclass
    class Report:
        score: int

        def __str__(self):
            return f"score {self.score}"

        def json(self):
            return json.dumps({"score": self.score, "of": 9})

    assign, grade = ModuleType("labkit.course.assign"), ModuleType("labkit.course.grade")
    assign.assign = lambda numbers, course: (course / numbers[0], course / numbers[1])
    grade.grade = lambda path, unsafe, timeout, feedback: Report(3 if unsafe else timeout)
    monkeypatch.setitem(sys.modules, "labkit.course.assign", assign)
    monkeypatch.setitem(sys.modules, "labkit.course.grade", grade)
    assert f"wrote {tmp_path / '02'}" in invoke("assign", "01", "02", "--course", str(tmp_path)).output
    assert "score 60" in invoke("grade", "x.ipynb").output
    told = invoke("grade", "x.ipynb", "--timeout", "5", "--feedback", "page.html").output
    assert "score 5" in told
    assert "wrote page.html" in told
    assert json.loads(invoke("grade", "x.ipynb", "--unsafe", "--json").output) == {"score": 3, "of": 9}
    assert invoke("assign", "01").exit_code == 2


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """labkit as if installed from a wheel, with one notebook, seen from an empty folder."""
    package, folder = tmp_path / "site" / "labkit", tmp_path / "learner"
    (package / "notebooks").mkdir(parents=True)
    (package / "notebooks" / "00_made.ipynb").write_text("shipped")
    folder.mkdir()
    monkeypatch.setattr(desk, "PACKAGE", package)
    monkeypatch.setattr(labs, "lab", lambda n: SimpleNamespace(stem=f"{n}_made"))
    monkeypatch.chdir(folder)
    return folder


def test_a_wheel_copies_the_notebook_once_and_never_overwrites(wheel):
    assert "copied the lab to" in invoke("lab", "--no-open").output
    assert (wheel / "00_made.ipynb").read_text() == "shipped"
    (wheel / "00_made.ipynb").write_text("my work")
    assert "the lab is" in invoke("lab", "00", "--no-open").output
    assert (wheel / "00_made.ipynb").read_text() == "my work"


def test_the_gallery_is_opened_run_and_released_as_a_lab_is(monkeypatch, tmp_path):
    assert "gallery.ipynb" in invoke("lab", "gallery", "--no-open").output
    assert invoke("release", "gallery", "--check").exit_code == 0
    chosen = []
    monkeypatch.setattr(runner, "_all", lambda each, labs, jobs, fresh: chosen.extend(labs) or [])
    monkeypatch.setattr("labkit.course.report.write", lambda root: None)
    for numbers, expected in (("gallery",), ["gallery"]), ((), list(labs.notebooks())):
        chosen.clear()
        runner.run(numbers, profile="cpu", root=tmp_path)
        assert [lab.number for lab in chosen] == expected
    assert "gallery" in labs.notebooks()


def test_a_notebook_that_is_not_shipped_is_named(wheel):
    with pytest.raises(FileNotFoundError, match=r"no notebook 01_made\.ipynb .* install labkit again"):
        desk.lay_out("01_made", wheel)


def test_without_a_checkout_the_advice_names_this_python(monkeypatch):
    monkeypatch.setattr("labkit.course.master.checkout", lambda: None)
    words, status = cli.explain(ModuleNotFoundError("No module named 'nbgrader'", name="nbgrader"))
    assert f"{sys.executable} -m pip install nbgrader" in words
    assert status == 2


def test_a_checkout_opens_its_own_notebook(wheel, monkeypatch):
    root = desk.PACKAGE.parent
    (root / "pyproject.toml").touch()
    (root / "solutions").mkdir()
    (root / "notebooks").mkdir()
    (root / "notebooks" / "00_made.ipynb").touch()
    called = []
    monkeypatch.setattr(desk.subprocess, "call", lambda command, cwd: called.append((command, cwd)) or 0)
    assert invoke("lab").exit_code == 0
    ((command, cwd),) = called
    assert command[:3] == [sys.executable, "-m", "jupyterlab"]
    assert f"--ServerApp.root_dir={root / 'notebooks'}" in command
    assert "--LabApp.default_url=/lab/tree/00_made.ipynb" in command
    assert cwd == str(root / "notebooks")
    assert ("--allow-root" in command) == (os.geteuid() == 0)
    assert list(wheel.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="labkit release 01"):
        desk.shipped("01_made")
