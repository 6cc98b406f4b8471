"""How workers share the tests out: whole files, but notebooks one by one and near misses by lab, longest first."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("sharing", Path(__file__).parent / "conftest.py")


@pytest.fixture(scope="module")
def sharing():
    """The conftest of all tests, as a module of our own; what it does to the environment is undone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LABKIT_HOME")
        patch.setenv("MPLBACKEND", "Agg")
        module = importlib.util.module_from_spec(SPEC)
        SPEC.loader.exec_module(module)
        yield module


def test_units(sharing):
    assert sharing.unit_of("tests/nn/test_moe.py::test_it[a::b]") == "tests/nn/test_moe.py"
    assert sharing.unit_of("labkit/core/cost.py::labkit.core.cost.flops") == "labkit/core/cost.py"
    whole, blank = (f"tests/notebooks/test_{name}.py::test_{name}[03]" for name in ("solved", "blank"))
    assert [sharing.unit_of(whole), sharing.unit_of(blank)] == [whole, blank]
    near = "tests/course/test_near_misses.py"
    assert {sharing.unit_of(f"{near}::{test}[09.gather]") for test in ("test_a", "test_b")} == {f"{near} 09"}
    assert sharing.unit_of(f"{near}::test_near_misses_name_only_exercises_that_exist") == near


def test_the_longest_unit_comes_first_and_a_file_keeps_its_order(sharing):
    quick = [f"tests/core/test_config.py::test_{i}" for i in range(9)]
    browser = [f"tests/show/test_tiles_browser.py::test_{i}" for i in range(4)]
    lab = ["tests/notebooks/test_solved.py::test_solved[03]"]
    given = [*quick, *browser, *lab]
    assert [given[place] for place in sharing.longest_first(given)] == [*browser, *lab, *quick]


def test_every_pattern_fits_a_file(sharing):
    files = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/**/test_*.py")]
    for pattern in (*sharing.SECONDS, *sharing.APART, sharing.BY_LAB):
        assert any(fnmatch(file, pattern) for file in files), pattern


def test_workers_get_units_longest_first(tmp_path):
    for name in ("core/test_quick", "show/test_slow_browser"):
        path = tmp_path / "tests" / f"{name}.py"
        path.parent.mkdir(parents=True)
        path.write_text("def test_one(): pass\ndef test_two(): pass\n")
    (tmp_path / "tests" / "conftest.py").write_bytes((Path(__file__).parent / "conftest.py").read_bytes())
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-v", "-n", "1", "--dist", "loadscope", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"PASSED tests/(\w+)/test_\w+\.py::(\w+)", done.stdout) == [
        ("show", "test_one"), ("show", "test_two"), ("core", "test_one"), ("core", "test_two"),
    ]  # fmt: skip
