"""Where the files for running a fleet lie: rules, dashboards, manifests."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]


def deployed(package: Path = PACKAGE) -> Path:
    """The folder `deploy` of a checkout, or the copy of it in the installed wheel.

    Args:
        package: where labkit lies.

    Raises FileNotFoundError if this labkit has neither.

    >>> sorted(path.name for path in (deployed() / "monitoring").glob("rules*.yml"))
    ['rules.yml', 'rules_slo_test.yml', 'rules_test.yml']
    """
    checkout = [package.parent / "deploy"] if (package.parent / "pyproject.toml").is_file() else []
    folders = [*checkout, package / "deploy"]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"there is no {' and no '.join(map(str, folders))}; install labkit again")
