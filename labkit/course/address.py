"""The project's address, which stands in one place (`[project.urls]`), and what is made from it for Colab."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from labkit.course.master import checkout

COLAB = """\
# In Colab this installs labkit, once, and leaves alone what Colab brings. Anywhere else it does nothing.
import importlib.util
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("labkit") is None:
    %pip install -q --upgrade-strategy only-if-needed "labkit @ git+{address}"
"""


def repository(root: Path | None = None) -> str:
    """The address of the repository: from pyproject.toml in a checkout, else from the installed package.

    Raises ValueError where neither names one.
    """
    root = root or checkout()
    if root is not None and (root / "pyproject.toml").is_file():
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8")).get("project", {})
        urls = project.get("urls", {})
    else:
        lines = metadata.metadata("labkit").get_all("Project-URL") or []
        urls = dict(line.split(", ", 1) for line in lines)
    if "Repository" not in urls:
        raise ValueError("the project names no address; write Repository = … under [project.urls] in pyproject.toml")
    return str(urls["Repository"]).removesuffix("/").removesuffix(".git")


def colab_source(address: str) -> str:
    """The source of the first code cell of a notebook."""
    return COLAB.format(address=address).rstrip()


def colab_badge(address: str, stem: str) -> str:
    """The badge that opens a notebook in Colab, as markdown; empty for an address that Colab cannot open."""
    parts = urlsplit(address)
    if parts.netloc != "github.com":
        return ""
    page = f"https://colab.research.google.com/github{parts.path}/blob/main/notebooks/{stem}.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({page})"
