"""The README's generated parts are current, and its words about the repository are true."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from labkit.course import cli, readme

ROOT = Path(__file__).parents[2]
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]
RUNBOOK = r"runbook_url: (\S+)"
SKELETON = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in readme.PARTS)


@pytest.fixture
def small(tmp_path):
    """A checkout with one room."""
    (tmp_path / "labkit" / "core" / "inner").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://github.com/someone/something"\n')
    for name, words in (("", "The kit."), ("core/", "The base. More."), ("core/inner/", "Inside `x`. More.")):
        (tmp_path / "labkit" / f"{name}__init__.py").write_text(f'"""{words}"""\n')
    (tmp_path / "labkit" / "core" / "config.py").write_text('"""What is decided, e.g in\nconfig.py. And more."""\n')
    (tmp_path / "labkit" / "core" / "_private.py").write_text("")
    (tmp_path / "README.md").write_text(SKELETON)
    return tmp_path


def test_the_readme_is_current():
    text = (ROOT / "README.md").read_text("utf-8")
    assert readme.renewed(text, ROOT) == text, "renew it with: python -m labkit.course.readme"


def test_renewing_twice_changes_nothing_and_says_so(small):
    assert readme.write(small) is True
    assert readme.write(small) is False


def test_the_tree_takes_its_words_from_the_modules(small):
    lines = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in readme.tree(small).splitlines()[1:-1]]
    assert lines == [
        ["notebooks/", readme.PLACES["notebooks"]],
        ["labkit/", "The kit"],
        ["core/", "The base"],
        ["config", "What is decided, e.g in config.py"],
        ["inner/", "Inside `x`"],
    ]


def test_a_module_without_a_docstring_is_named(small):
    (small / "labkit" / "core" / "silent.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"silent\.py has no docstring"):
        readme.tree(small)


@pytest.mark.parametrize("broken", [SKELETON.replace("<!-- /tree -->", ""), SKELETON * 2])
def test_missing_or_doubled_markers_are_refused(broken, small):
    with pytest.raises(ValueError, match=r"needs '<!-- \w+ -->'"):
        readme.renewed(broken, small)


def test_badges_come_from_the_one_address(small):
    assert "https://github.com/someone/something/actions/workflows/cpu.yml/badge.svg" in readme.badges(small)
    assert ADDRESS not in readme.badges(small)


def test_an_address_elsewhere_gets_a_link_and_no_badges(small):
    (small / "pyproject.toml").write_text('[project.urls]\nRepository = "https://example.org/x"\n')
    assert readme.badges(small) == "[https://example.org/x](https://example.org/x)"


def test_every_badge_has_its_workflow():
    named = re.findall(r"workflows/(\w+\.yml)/badge", readme.badges(ROOT))
    assert named
    assert all((ROOT / ".github" / "workflows" / name).is_file() for name in named)


def test_the_readme_names_exactly_the_commands_that_exist():
    text = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `labkit (\w+)", text, re.MULTILINE)
    groups = [group.name for group in cli.app.registered_groups]
    assert sorted(rows) == sorted([command.callback.__name__ for command in cli.app.registered_commands] + groups)


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_address_stands_in_one_place_by_hand():
    path = ADDRESS.removeprefix("https://")
    copies = []
    for file in tracked():
        if file.suffix in (".ipynb", ".png", ".safetensors") or file.name == "pyproject.toml":
            continue
        text = file.read_text("utf-8", errors="replace")
        if file.name == "README.md":
            text = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", "", text, flags=re.DOTALL)
        if file.is_relative_to(ROOT / "deploy"):  # Prometheus reads them as they are; held to the address below
            text = re.sub(RUNBOOK, "", text)
        if path in text:
            copies.append(str(file.relative_to(ROOT)))
    assert copies == []


def test_every_runbook_stands_at_the_address():
    texts = [file.read_text("utf-8") for file in (ROOT / "deploy").rglob("*") if file.suffix in (".yml", ".yaml")]
    addresses = [address for text in texts for address in re.findall(RUNBOOK, text)]
    assert addresses
    assert {address.split("/blob/")[0] for address in addresses} == {ADDRESS}


def test_main_renews_the_checkout(monkeypatch, capsys):
    monkeypatch.setattr(readme, "write", lambda root: root == ROOT)
    readme.main()
    assert "renewed" in capsys.readouterr().out
    assert sys.modules["labkit.course.readme"] is readme
