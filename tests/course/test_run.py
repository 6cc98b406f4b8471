"""`labkit run`: what is executed, what is kept, what is a failure, and what a committed notebook holds."""

from __future__ import annotations

import base64
import copy
import dataclasses
import errno
import json
import os
import shutil
import sys
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from labkit.core.runtime import Unavailable
from labkit.course import labs, report, result, run, solutions

PIXEL = base64.b64encode(
    base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=")
).decode()
WIDGET = "application/vnd.jupyter.widget-view+json"
MEASURED = {"claim": 1, "measure": "flops_saved", "value": 90.0, "low": 89.0, "high": 91.0, "runs": 3}
MEASURED["condition"] = "a <test>"
SHOW = "from IPython.display import display\n"


def verdict(exercise: str, status: str) -> str:
    """A cell that speaks as `check` does."""
    data = {"text/plain": "card", run.VERDICT: {"exercise": exercise, "status": status, "diagnosis": ""}}
    return f"{SHOW}display({data!r}, raw=True)"


def notebook(*sources: str):
    """A notebook as `release` makes it: a heading, the parameters, then cells."""
    cells = [new_markdown_cell("# A lab"), new_code_cell('profile = "auto"', metadata={"tags": ["parameters"]})]
    made = new_notebook(cells=[*cells, *map(new_code_cell, sources)])
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"
    return made


WHERE = "import os, sys, labkit\nprint(profile, sys.executable, os.environ['LABKIT_HOME'], os.getcwd(), os.listdir())"
PICTURE = f"{SHOW}display({{'image/png': {PIXEL!r}, 'text/plain': 'x', {WIDGET!r}: {{'model_id': 'a1'}}}}, raw=True, "
PICTURE += "metadata={'image/png': {'alt': 'loads & <biases>'}})"
CLAIM = f"{SHOW}display({{'text/plain': 'claim', {run.CLAIM!r}: {MEASURED!r}}}, raw=True)"
NOTEBOOKS = {
    "00": notebook(WHERE, PICTURE, CLAIM, verdict("00.one", "passed")),
    "01": notebook("x = 1", "raise RuntimeError('first line\\nsecond line')", "y = 2"),
    "02": notebook(verdict("02.one", "failed")),
}
BLANK = {"00": notebook(verdict("00.one", "blank")), "02": notebook(verdict("02.one", "passed"))}


def fake_lab(number):
    if str(number) not in NOTEBOOKS:
        raise ValueError(f"there is no lab {number!r}; the labs are {', '.join(NOTEBOOKS)}")
    exercise = SimpleNamespace(id=f"{number}.one")
    exercises = () if number == "01" else (exercise,)
    return SimpleNamespace(number=str(number), stem=f"{number}_made", exercises=exercises)


@pytest.fixture(scope="module")
def made_up():
    """Three made-up labs in place of the course's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labs, "notebooks", lambda: tuple(NOTEBOOKS))
        patch.setattr(labs, "lab", fake_lab)
        patch.setattr(run, "source_of", lambda lab, blank: (BLANK if blank else NOTEBOOKS)[lab.number])
        patch.setattr(run, "package_digest", lambda: "same")
        yield


@pytest.fixture(scope="module")
def done(made_up, tmp_path_factory):
    """All three executed once, side by side."""
    root = tmp_path_factory.mktemp("runs")
    return root, {each.number: each for each in run.run(profile="cpu", jobs=2, root=root)}


def text_of(path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", ()))


def test_a_solved_notebook_runs_in_this_interpreter_with_its_profile_and_a_private_home(done):
    root, results = done
    assert results["00"].problem == ""
    profile, python, home, work, listing = text_of(root / "cpu" / "00_made.ipynb").split(maxsplit=4)
    assert (profile, python, listing.strip()) == ("cpu", sys.executable, "[]")
    assert home != os.environ["LABKIT_HOME"]
    assert not os.path.exists(home)
    assert not os.path.exists(work)


def test_the_json_holds_times_environment_claims_and_verdicts(done):
    root, _ = done
    kept = json.loads((root / "cpu" / "00_made.json").read_text())
    assert kept["claims"] == [MEASURED]
    assert kept["verdicts"] == {"00.one": "passed"}
    assert kept["environment"]["torch"]
    assert [cell["cell"] for cell in kept["cells"]] == [2, 3, 4, 5, 6]
    assert all(cell["seconds"] >= 0 for cell in kept["cells"])
    assert kept["cells"][1]["code"] == "import os, sys, labkit"


def test_a_broken_cell_is_named_with_the_first_line_of_its_error_and_the_copy(done):
    root, results = done
    problem = results["01"].problem
    assert problem.startswith("cell 4: RuntimeError: first line (")
    assert "second line" not in problem
    assert str(root / "cpu" / "01_made.ipynb") in problem


def test_a_solved_run_with_an_exercise_not_passed_is_a_failure(done):
    assert "02.one is failed" in done[1]["02"].problem


@pytest.mark.parametrize(
    ("verdicts", "blank", "problem"),
    [
        ({"a": "passed", "b": "passed"}, False, ""),
        ({"a": "passed"}, False, "b is never checked"),
        ({"a": "passed", "b": "blank"}, False, "b is blank"),
        ({"a": "blank", "b": "blank"}, True, ""),
        ({"a": "blank", "b": "passed"}, True, "b is passed"),
    ],
)
def test_every_exercise_must_be_as_the_kind_of_run_demands(verdicts, blank, problem):
    found = result.exercise_problem(verdicts, ("a", "b"), blank)
    assert problem in found
    assert bool(problem) == bool(found)


def test_what_went_well_is_kept_and_what_failed_runs_again(done, tmp_path, monkeypatch):
    root = shutil.copytree(done[0], tmp_path / "runs")
    asked = []

    def refuse(job, say, stop):
        asked.append(os.path.basename(job.target))
        return "not now"

    monkeypatch.setattr(run, "execute_job", refuse)
    again = {each.number: each for each in run.run(profile="cpu", root=root)}
    assert asked == ["01_made.ipynb", "02_made.ipynb"]
    assert again["00"].ok
    before = (root / "cpu" / "00_made.json").read_bytes()
    monkeypatch.setattr(run, "package_digest", lambda: "changed")
    run.run(["00"], profile="cpu", root=root)
    assert asked[2:] == ["00_made.ipynb"]
    (root / "cpu" / "00_made.json").write_bytes(before)
    monkeypatch.setattr(run, "package_digest", lambda: "same")
    run.run(["00"], profile="cpu", root=root, fresh=True)
    assert asked[3:] == ["00_made.ipynb"]
    (root / "cpu" / "00_made.json").write_bytes(before)


def test_the_key_depends_on_cells_profile_and_package():
    keys = {
        run.key_of(NOTEBOOKS["00"], "cpu", "a"),
        run.key_of(NOTEBOOKS["01"], "cpu", "a"),
        run.key_of(NOTEBOOKS["00"], "gpu", "a"),
        run.key_of(NOTEBOOKS["00"], "cpu", "b"),
    }
    assert len(keys) == 4
    assert run.key_of(NOTEBOOKS["00"], "cpu", "a") in keys


def test_the_package_digest_is_stable():
    assert run.package_digest() == run.package_digest()


def test_a_blank_run_wants_every_exercise_blank(made_up, tmp_path):
    good, bad = run.run(["00", "02"], profile="cpu", blank=True, jobs=2, root=tmp_path)
    assert good.ok
    assert good.claims == ()
    assert "02.one is passed" in bad.problem
    assert (tmp_path / "cpu-blank" / "00_made.json").is_file()


def test_an_interruption_keeps_what_is_finished_and_says_so(made_up, tmp_path, monkeypatch):
    def interrupt(job, say, stop):
        if "01_made" in job.target:
            raise KeyboardInterrupt
        return "quick failure"

    monkeypatch.setattr(run, "execute_job", interrupt)
    with pytest.raises(run.Interrupted, match=r"Finished labs: 00\. The same command goes on"):
        run.run(profile="cpu", root=tmp_path)
    assert not (tmp_path / "cpu" / "01_made.json").exists()
    assert not (tmp_path / "cpu" / "02_made.json").exists()


def test_a_full_disk_is_named(made_up, tmp_path, monkeypatch):
    error = f"OSError: [Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}"
    monkeypatch.setattr(run, "execute_job", lambda *_: error)
    (only,) = run.run(["00"], profile="cpu", root=tmp_path)
    assert "free some space" in only.problem


def test_a_notebook_that_cannot_start_is_told_not_raised(tmp_path):
    events = []
    job = run.Job(str(tmp_path / "missing.ipynb"), str(tmp_path / "out.ipynb"), "cpu")
    error = run.execute_job(job, events.append, run.threading.Event())
    assert error.startswith("FileNotFoundError")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"numbers": ["77"]}, ValueError, "no lab '77'"),
        ({"jobs": 0}, ValueError, "jobs is 0"),
        ({"profile": "tpu"}, ValueError, "'tpu'"),
        ({"blank": True, "update": True}, ValueError, "cannot go with blank"),
    ],
)
def test_bad_usage_is_refused_before_anything_runs(made_up, tmp_path, arguments, error, words):
    with pytest.raises(error, match=words):
        run.run(**arguments, root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_gpu_that_is_not_there_is_refused_with_an_alternative(made_up, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unavailable, match="Instead"):
        run.run(profile="gpu", root=tmp_path)


def test_the_report_shows_everything_once(done):
    root, _ = done
    page = (root / "report.html").read_text()
    assert "1 of 3 notebooks ran as they should" in page
    assert f'<img alt="loads &amp; &lt;biases&gt;" src="data:image/png;base64,{PIXEL}">' in page
    assert page.count("<img") == 1
    assert "a &lt;test&gt;" in page
    assert 'href="cpu/00_made.ipynb"' in page
    assert "first line" in page
    assert "<code>import os, sys, labkit</code>" in page
    assert "http" not in page


def test_a_damaged_result_counts_as_none(done, tmp_path):
    root, _ = done
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "00_made.json").write_text("{")
    (tmp_path / "cpu" / "01_made.json").write_text('{"cells": []}')
    assert report.results(tmp_path) == []
    assert result.load(tmp_path / "nothing.json") is None
    assert len(report.results(root)) == 3


def test_a_result_survives_the_way_to_disk_and_back(tmp_path):
    made = result.Result(
        "00", "00_x", "cpu", False, "k", "", 1.5, (result.CellTime(2, 0.5, "x"),), (MEASURED,), {"a": "b"}
    )
    result.keep(made, tmp_path / "00_x.json")
    assert result.load(tmp_path / "00_x.json") == made
    assert dataclasses.replace(made, problem="no").ok is False


def test_a_committed_notebook_is_the_same_at_every_run_and_keeps_its_pictures(done, tmp_path):
    root, _ = done
    path = solutions.renew(root / "cpu" / "00_made.ipynb", "00_made", tmp_path)
    text = path.read_text()
    made = nbformat.read(path, as_version=4)
    assert [cell.source for cell in made.cells] == [cell.source for cell in NOTEBOOKS["00"].cells]
    assert [cell.id for cell in made.cells] == [cell.id for cell in NOTEBOOKS["00"].cells]
    outputs = [output for cell in made.cells for output in cell.get("outputs", ())]
    assert len(outputs) == 4
    assert outputs[1].data["image/png"].strip() == PIXEL
    assert WIDGET not in outputs[1].data
    assert outputs[1].metadata["image/png"]["alt"] == "loads & <biases>"
    assert run.CLAIM in outputs[2].data
    for volatile in ("papermill", "injected", "iopub", "start_time", "labkit-run-", str(solutions.PACKAGE.parent)):
        assert volatile not in text.replace(json.dumps(WHERE), "")


def test_prose_is_renewed_without_running_but_code_is_not(done, tmp_path):
    solutions.renew(done[0] / "cpu" / "00_made.ipynb", "00_made", tmp_path)
    path = tmp_path / "00_made.ipynb"
    before = nbformat.read(path, as_version=4)
    fresh = copy.deepcopy(NOTEBOOKS["00"])
    fresh.cells[0].source = "# Another title"
    assert solutions.reword(fresh, "00_made", tmp_path)
    after = nbformat.read(path, as_version=4)
    assert after.cells[0].source == "# Another title"
    assert [cell.get("outputs") for cell in after.cells] == [cell.get("outputs") for cell in before.cells]
    fresh.cells[-1].source += "\n1"
    assert not solutions.reword(fresh, "00_made", tmp_path)
    assert nbformat.read(path, as_version=4) == after
    assert not solutions.reword(fresh, "no_such", tmp_path)


def test_update_renews_only_what_went_well(made_up, done, tmp_path, monkeypatch):
    root = shutil.copytree(done[0], tmp_path / "runs")
    into = tmp_path / "solutions"
    into.mkdir()
    monkeypatch.setattr(solutions, "folder", lambda: into)
    monkeypatch.setattr(run, "execute_job", lambda *_: "not now")
    run.run(["00", "01"], profile="cpu", update=True, root=root)
    assert [path.name for path in into.iterdir()] == ["00_made.ipynb"]


def test_paths_of_the_machine_are_made_plain():
    home, here = os.path.expanduser("~"), solutions.PACKAGE.parent
    assert solutions.plain_paths(f"{home}/x and {home}stead") == f"~/x and {home}stead"
    assert solutions.plain_paths(f'File "{here}/labkit/a.py"') == 'File "./labkit/a.py"'
    assert solutions.plain_paths("/tmp/ipykernel_12/345.py:1: Warning") == "…/cell.py:1: Warning"


def test_update_needs_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(solutions, "PACKAGE", tmp_path / "labkit")
    with pytest.raises(ValueError, match="work in a checkout"):
        solutions.folder()
