"""Where the student notebooks lie, and laying one out for a learner without touching what is theirs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from labkit.course.master import checkout

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(stem: str) -> Path:
    """The student notebook of a lab, in the checkout or in the wheel. Raises FileNotFoundError if it is not there."""
    root = checkout(PACKAGE.parent)
    path = (root or PACKAGE) / "notebooks" / f"{stem}.ipynb"
    if not path.is_file():
        advice = f"make it with: labkit release {stem.split('_')[0]}" if root else "install labkit again"
        raise FileNotFoundError(f"there is no notebook {path.name} in {path.parent}; {advice}")
    return path


def lay_out(stem: str, folder: Path) -> tuple[Path, bool]:
    """The notebook to work in, and whether it is new.

    In a checkout that is the one in `notebooks/`. From a wheel it is a copy in `folder`; one that is there already is
    the learner's work and stays as it is.
    """
    source = shipped(stem)
    if checkout(PACKAGE.parent):
        return source, False
    target = folder / source.name
    if target.exists():
        return target, False
    shutil.copyfile(source, target)
    return target, True


def open_in_jupyterlab(notebook: Path) -> int:
    """Start JupyterLab at a notebook and wait until it is closed; returns its exit status.

    Raises ModuleNotFoundError without JupyterLab.
    """
    import jupyterlab  # noqa: F401 (fails here, with its name, rather than in the other process)

    folder = str(notebook.parent.resolve())
    at = f"--LabApp.default_url=/lab/tree/{quote(notebook.name)}"  # so that the printed address opens the lab too
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}", at]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    try:
        return subprocess.call(command, cwd=folder)
    except KeyboardInterrupt:
        return 0
