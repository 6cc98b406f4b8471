"""Imports only point down, and `import labkit` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "labkit"

BELOW: dict[str, set[str]] = {
    "core": set(),
    "kernels": {"core"},
    "nn": {"core", "kernels"},
    "train": {"core", "kernels", "nn"},
    "serve": {"core", "kernels", "nn"},
    "field": {"core", "kernels", "nn", "train", "serve"},
    "show": {"core"},
    "course": {"core", "kernels", "nn", "train", "serve", "field", "show"},
}
HEAVY = ("torch", "triton", "transformers", "fastapi", "anywidget", "ipywidgets", "matplotlib", "numpy", "IPython")
WITHOUT_TORCH = ("config", "presets", "cost", "names", "runtime")


def imported(path: Path, package: Path = PACKAGE) -> set[str]:
    """Every labkit module that a file imports, also inside functions, as dotted names."""
    module = path.relative_to(package.parent).with_suffix("").parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(module[: len(module) - node.level]) if node.level else []
            stem = ".".join(base + ([node.module] if node.module else []))
            found |= {f"{stem}.{alias.name}" for alias in node.names} | {stem}
    return {name for name in found if name.split(".")[0] == "labkit"}


def violations(package: Path = PACKAGE) -> list[str]:
    """Imports that point up or sideways, as sentences."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        if len(parts) == 1:
            if parts[0] != "__init__.py":
                wrong.append(f"{parts[0]} lies in no room; the rooms are {', '.join(BELOW)}")
            continue  # labkit/__init__ re-exports lazily, from anywhere
        room = parts[0]
        if room not in BELOW:
            wrong.append(f"{'/'.join(parts)}: {room} is not a room of DESIGN; the rooms are {', '.join(BELOW)}")
            continue
        for name in imported(path, package):
            target = name.split(".")[1] if "." in name else ""
            if target in BELOW and target != room and target not in BELOW[room]:
                wrong.append(
                    f"{'/'.join(parts)} imports {name}: {room} may import {', '.join(sorted(BELOW[room])) or 'no room'}"
                )
    return wrong


def test_imports_only_point_down():
    assert violations() == []


def test_train_and_serve_never_meet_and_nothing_below_imports_course():
    assert "serve" not in BELOW["train"]
    assert "train" not in BELOW["serve"]
    assert not any("course" in below for below in BELOW.values())


@pytest.mark.parametrize(
    ("file", "source", "named"),
    [
        ("core/a.py", "from labkit.nn.router import Router\n", "labkit.nn.router"),
        ("core/a.py", "from ..show import style\n", "labkit.show"),
        ("show/a.py", "def f():\n    import labkit.train.data\n", "labkit.train.data"),
        ("train/a.py", "from labkit import serve\n", "labkit.serve"),
        ("nn/a.py", "from labkit.course import progress\n", "labkit.course"),
        ("show/widgets/__init__.py", "from ...nn import router\n", "labkit.nn"),
        ("attic/a.py", "", "attic is not a room"),
        ("helpers.py", "", "helpers.py lies in no room"),
    ],
)
def test_a_wrong_import_is_found(tmp_path, file, source, named):
    path = tmp_path / "labkit" / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    (found, *_) = violations(tmp_path / "labkit")
    assert named in " ".join([found, *_])


def test_downward_and_same_room_imports_are_fine(tmp_path):
    path = tmp_path / "labkit" / "nn" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import torch\nfrom . import router\nfrom ..core import config\nfrom labkit.kernels import reference\n"
    )
    assert violations(tmp_path / "labkit") == []


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after one statement."""
    here = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})"
    code = f"{here}; {statement}; print(*{{m.split('.')[0] for m in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_import_labkit_is_light():
    started = time.perf_counter()
    loaded = loaded_by("import labkit")
    print(f"a fresh interpreter with `import labkit`: {time.perf_counter() - started:.2f} s")
    assert loaded & set(HEAVY) == set()


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_arithmetic_needs_no_torch(name):
    assert loaded_by(f"import labkit.core.{name}") & {"torch", "triton", "transformers"} == set()


def test_the_command_line_answers_before_torch_is_loaded():
    assert loaded_by("import labkit.course.cli") & {"torch", "transformers", "IPython", "matplotlib"} == set()
