"""`labkit registry`: what it says, where it looks, and that its help is true."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labkit.course import cli

COMMANDS = ("push", "pull", "list", "alias", "rollback", "gc")


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / ".gitattributes").write_text("")
    return folder


@pytest.fixture
def labkit(capsys, monkeypatch):
    def call(*arguments: object) -> str:
        status, out, err = run(*arguments)
        assert status == 0, err
        return out

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["labkit", "registry", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    call.run = run
    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(command):
    told = CliRunner().invoke(cli.app, ["registry", command, "--help"])
    assert told.exit_code == 0
    assert "Example: labkit registry" in told.output
    assert "LABKIT_STORE" in told.output


def test_help_lists_exactly_the_commands_that_exist():
    (group,) = (each for each in cli.app.registered_groups if each.name == "registry")
    assert tuple(each.name or each.callback.__name__ for each in group.typer_instance.registered_commands) == COMMANDS


def test_a_version_from_push_to_rollback(labkit, model, tmp_path):
    said = labkit("push", "m", model, "--alias", "prod", "--note", "the first")
    assert "published m@v1: 1 file" in said
    assert "left out, as their names begin with '.': .gitattributes" in said
    assert "m@prod names v1" in said
    (model / "config.json").write_text("[]")
    labkit("push", "m", model)
    assert "m@prod names v2 (before: v1)" in labkit("alias", "m", "prod", "--expect", "v1")
    assert "m@canary names v2 (before: nothing)" in labkit("alias", "m@prod", "canary", "--expect", "")
    assert "m@prod names v1 (before: v2)" in labkit("rollback", "m", "prod")
    folder = Path(labkit("pull", "m@prod").strip())
    assert folder.is_relative_to(Path(os.environ["LABKIT_HOME"]) / "models")
    assert (folder / "config.json").read_text() == "{}"
    shown = labkit("list").splitlines()
    assert ["← prod" in line for line in shown] == [True, False]
    assert ["← canary" in line for line in shown] == [False, True]
    assert "the first" in shown[0]
    assert "names nothing any more" in labkit("alias", "m", "canary", "--remove")
    assert "would remove v2; 1 shards" in labkit("gc", "m", "--keep", "0", "--dry-run")
    assert "removed v2; 1 shards" in labkit("gc", "m", "--keep", "0")
    assert [line[:4] for line in labkit("list", "m").splitlines()] == ["m@v1"]


def test_the_store_is_that_of_the_option_or_of_the_environment(labkit, model, tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_STORE", str(tmp_path / "environment"))
    labkit("push", "m", model)
    labkit("push", "n", model, "--store", tmp_path / "option")
    assert (tmp_path / "environment/m").is_dir()
    assert (tmp_path / "option/n").is_dir()
    monkeypatch.delenv("LABKIT_STORE")
    assert "is empty; publish with: labkit registry push NAME FOLDER" in labkit("list")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("list", "nix"), 2, "there is no version of nix"),
        (("pull", "m@prod"), 2, "there is no alias prod"),
        (("pull", "../m"), 2, "a model cannot be called '../m'"),
        (("push", "m", "/nowhere"), 2, "there is no folder /nowhere"),
        (("push", "m", "{model}", "--alias", "v1"), 2, "an alias cannot be called 'v1'"),
        (("alias", "m@v1", "prod", "--remove"), 2, "give the model's name alone, 'm'"),
        (("alias", "m@v1", "prod", "--expect", "v9"), 1, "m@prod names nothing, not v9"),
        (("rollback", "m", "prod"), 2, "has named nothing before"),
        (("gc", "m", "--grace", "0.1"), 2, "1800 seconds or more"),
        (("gc", "nix"), 2, "there is no model nix"),
        (("list", "--store", "http://x"), 2, "is no store; give s3://"),
    ],
    ids=str,
)
def test_an_error_is_a_sentence(labkit, model, arguments, status, words):
    labkit("push", "m", model)
    got, out, err = labkit.run(*(str(each).format(model=model) for each in arguments))
    assert (got, out) == (status, "")
    assert words in err
    assert "Traceback" not in err


def test_a_damaged_version_is_shown_and_the_others_too(labkit, model, tmp_path):
    for _ in range(2):
        labkit("push", "m", model, "--store", tmp_path / "store")
    (tmp_path / "store/m/versions/v1.json").write_text("{")
    status, out, err = labkit.run("list", "--store", tmp_path / "store")
    assert status == 0
    assert "✗ the manifest of m@v1" in err
    assert out.startswith("m@v2")
