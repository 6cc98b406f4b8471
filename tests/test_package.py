"""The wheel carries everything a learner needs: built once, installed somewhere else, used from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.notebook


def python(*arguments: str, cwd: Path, **environment: str) -> str:
    """What a fresh interpreter says; its errors become this test's failure."""
    variables = {**os.environ, **environment}
    ended = subprocess.run([sys.executable, *arguments], cwd=cwd, env=variables, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from this checkout without a network."""
    folder = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    (made,) = folder.glob("labkit-*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder that the wheel was installed into."""
    target = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(target))
    python("-m", "pip", "install", *options, str(wheel), cwd=target)
    return target


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """An empty folder, as a learner's."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def test_the_wheel_holds_package_data_and_notebooks_and_nothing_private(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "labkit/data/claims.yaml" in names
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"labkit/notebooks/{notebook.name}" in names
    for source in (*(ROOT / "labkit").rglob("*.py"), *(ROOT / "labkit").rglob("*.js")):
        assert str(source.relative_to(ROOT)) in names
    for part in filter(Path.is_file, (ROOT / "deploy").rglob("*")):
        assert f"labkit/{part.relative_to(ROOT)}" in names
    assert not [name for name in names if name.startswith(("tests/", "solutions/")) or "__pycache__" in name]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_data_is_found_without_a_checkout(installed, empty):
    code = "from labkit.core.runtime import data_path; from labkit.course.claims import claims; "
    code += "print(data_path('claims.yaml')); print(len(claims()))"
    path, count = python("-c", code, cwd=empty, PYTHONPATH=str(installed)).split()
    assert Path(path) == installed / "labkit" / "data" / "claims.yaml"
    assert count == "15"


def test_the_files_of_a_fleet_are_found_without_a_checkout(installed, empty):
    code = "from labkit.serve.fleet.deployed import deployed; print(deployed())"
    assert Path(python("-c", code, cwd=empty, PYTHONPATH=str(installed)).strip()) == installed / "labkit" / "deploy"


def test_a_lab_is_laid_out_once_and_kept(installed, empty):
    if not (ROOT / "notebooks" / "00_start.ipynb").is_file():
        pytest.fail("notebooks/00_start.ipynb is missing; make it with: labkit release")
    command = ("-m", "labkit.course.cli", "lab", "--no-open", "00")
    assert "copied the lab to" in python(*command, cwd=empty, PYTHONPATH=str(installed))
    (notebook,) = empty.iterdir()
    assert notebook.read_bytes() == (ROOT / "notebooks" / "00_start.ipynb").read_bytes()
    notebook.write_text("my work")
    assert "the lab is" in python(*command, cwd=empty, PYTHONPATH=str(installed))
    assert notebook.read_text() == "my work"


def test_a_blank_notebook_runs_from_the_wheel_alone(installed, empty):
    told = python(
        "-m", "labkit.course.cli", "run", "00", "--blank", "--profile", "cpu", cwd=empty, PYTHONPATH=str(installed)
    )
    assert "1 of 1 as they should be" in told
    assert (empty / "runs" / "cpu-blank" / "00_start.ipynb").is_file()
