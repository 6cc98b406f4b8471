"""Files that tools read: the conda environment, workflows, make, the licence. They parse, and they agree."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_conda_users_get_exactly_the_base_and_lab_requirements():
    made = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    python, pip, through_pip = made["dependencies"]
    assert made["name"] == "labkit"
    assert (python, pip) == (f"python{PROJECT['requires-python']}", "pip")
    assert through_pip["pip"] == [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["lab"], "-e ."]


def test_nothing_is_pinned_from_above():
    extras = (need for group in PROJECT["optional-dependencies"].values() for need in group)
    bounded = [need for need in (*PROJECT["dependencies"], *extras) if re.search(r"<|==|~=|!=", need.split(";")[0])]
    assert bounded == []


def test_there_are_three_workflows():
    assert [path.name for path in WORKFLOWS] == ["colab.yml", "cpu.yml", "gpu.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_well_formed(path):
    flow = yaml.safe_load(path.read_text("utf-8"))
    assert flow["name"] == path.stem
    assert flow[True]  # "on" is a boolean in YAML 1.1
    assert flow["permissions"] == {"contents": "read"}
    for job in flow["jobs"].values():
        assert job["runs-on"]
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/checkout@v4"))


def commands(name: str) -> str:
    """Everything that a workflow runs."""
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text("utf-8"))
    return "\n".join(step.get("run", "") for job in flow["jobs"].values() for step in job["steps"])


def test_the_oldest_versions_tested_are_the_lower_bounds():
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", need).groups() for need in PROJECT["dependencies"])
    told = dict(re.findall(r"^\s*([\w-]+)==([\d.]+?)(?:\.\*)?$", commands("cpu"), re.MULTILINE))
    assert told["torch"] == bounds["torch"]
    assert told["transformers"] == bounds["transformers"]
    assert told["anywidget"] == bounds["anywidget"]


def test_every_version_that_colab_ships_is_allowed_and_compared():
    shipped = dict(re.findall(r"^\s*([\w-]+)==([\d.]+?)(?:\.\*)?$", commands("colab"), re.MULTILINE))
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", need).groups() for need in PROJECT["dependencies"])
    assert {"torch", "transformers", "numpy", "ipywidgets", "ipython", "anywidget"} == set(shipped)
    for name, version in shipped.items():
        assert [int(part) for part in version.split(".")] >= [int(part) for part in bounds[name].split(".")]
    assert commands("colab").count("diff before.txt after.txt") == 2


@pytest.mark.parametrize(("name", "words"), [("cpu", "make test"), ("gpu", "labkit run --profile gpu"),
                                             ("gpu", "pytest -o addopts= --nbval-lax solutions/*.ipynb"),
                                             ("colab", "labkit run --blank")])  # fmt: skip
def test_a_workflow_does_what_it_is_for(name, words):
    assert words in commands(name)


def test_ci_is_one_executable_that_calls_make_test():
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()
    assert path.read_text().rstrip().endswith("make test")
    assert 'LABKIT_REQUIRE="${LABKIT_REQUIRE-browser,sandbox,colab,prometheus}"' in path.read_text()


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment, "MAKEFLAGS": ""},
    )


def test_make_alone_lists_its_targets():
    told = make()
    assert told.returncode == 0
    assert all(f"  {target}" in told.stdout for target in ("lab", "test", "clean"))


def test_make_installs_once_and_again_when_the_requirements_change(tmp_path):
    binary = tmp_path / "venv" / "bin"
    binary.mkdir(parents=True)
    calls = tmp_path / "calls"
    (binary / "python").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    (binary / "python").chmod(0o755)

    def installs() -> list[str]:
        return [line for line in calls.read_text().splitlines() if line.startswith("-m pip install ")]

    assert make("setup-test", f"VENV={tmp_path / 'venv'}").returncode == 0
    labkit, colab, peers = installs()
    assert labkit.endswith(" -c constraints.txt -e .[test]")
    assert f"--no-deps --target {tmp_path / 'venv' / 'colab-widgets'} ipywidgets==" in colab
    assert f"--no-deps --target {tmp_path / 'venv' / 'peers'} torchao==" in peers
    assert make("setup-test", "setup-lab", f"VENV={tmp_path / 'venv'}").returncode == 0
    assert len(installs()) == 3
    for stamp in (tmp_path / "venv").glob(".labkit-*"):
        os.utime(stamp, (0, 0))
    assert make("setup-lab", f"VENV={tmp_path / 'venv'}").returncode == 0
    assert len(installs()) == 4


def test_make_installs_the_widgets_that_colab_ships():
    shipped = dict(re.findall(r"^\s*([\w-]+)==([\d.]+)$", commands("colab"), re.MULTILINE))
    installed = dict(re.findall(r"(\w+)==([\d.]+)", (ROOT / "Makefile").read_text("utf-8")))
    for name in ("ipywidgets", "anywidget"):
        assert installed[name] == shipped[name]


def test_make_refuses_a_wrong_python_and_half_an_environment(tmp_path):
    told = make("setup-lab", f"VENV={tmp_path / 'new'}", "PYTHON=/nope")
    assert told.returncode == 2
    assert "PYTHON=/nope is no Python 3.11" in told.stdout
    assert not (tmp_path / "new").exists()
    binary = tmp_path / "half" / "bin"
    binary.mkdir(parents=True)
    (binary / "python").write_text("#!/bin/sh\nexit 1\n")
    (binary / "python").chmod(0o755)
    told = make("setup-lab", f"VENV={tmp_path / 'half'}")
    assert told.returncode == 2
    assert "make clean" in told.stdout


def test_make_without_a_new_python_says_what_to_do(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("make", "sh", "sed", "awk", "rm", "touch"):
        found = next(Path(f) / tool for f in ("/usr/bin", "/bin") if (Path(f) / tool).exists())
        (tools / tool).symlink_to(found)
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3").chmod(0o755)
    told = make("setup-lab", f"VENV={tmp_path / 'venv'}", PATH=str(tools))
    assert told.returncode != 0
    assert "No Python 3.11 or newer" in told.stdout
    assert not (tmp_path / "venv").exists()


def test_the_licence_covers_code_and_text():
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "MIT License" in text
    assert "the Mixture-of-Experts from scratch authors" in text
    assert "https://creativecommons.org/licenses/by/4.0/" in text
    assert PROJECT["license"] == "MIT AND CC-BY-4.0"


def test_pre_commit_downloads_nothing():
    made = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert [repo["repo"] for repo in made["repos"]] == ["local"]
    assert all(hook["language"] == "system" for hook in made["repos"][0]["hooks"])
