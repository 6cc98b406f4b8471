"""The parts of README.md that are generated: badges, the table of labs, the tree. `python -m labkit.course.readme`.

Each part stands between `<!-- name -->` and `<!-- /name -->`. The tree's words are the first sentences of the modules'
own docstrings, so that a module is described in one place.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

PARTS = ("badges", "labs", "tree")
PLACES = {
    "notebooks": "the labs, for learners: generated, no outputs",
    "solutions": "`NN_name.py`, the masters, the only place a lab is edited; `NN_name.ipynb`, solved and executed",
    "data": "the claims, the map of the course and a small trained model, each with its origin",
    "docs": "the log of the kernels: every version, what was expected of it and what came; what the server understands",
    "tests": "mirror labkit/; near_misses/ holds wrong answers that each check must reject",
}


def badges(root: Path) -> str:
    """The badges, made from the project's one address; none for an address without GitHub's services."""
    from labkit.course.address import colab_badge, repository

    address = repository(root)
    if not colab_badge(address, "00_start"):
        return f"[{address}]({address})"
    flows = (f"[![{name} tests]({address}/actions/workflows/{name}.yml/badge.svg)]" for name in ("cpu", "gpu", "colab"))
    linked = (f"{flow}({address}/actions)" for flow in flows)
    return "\n".join([*linked, colab_badge(address, "00_start")])


def labs_table(root: Path) -> str:
    """One row a lab, then one for each other notebook: what it is, how long it takes, what it wants, what it audits."""
    from labkit.course import labs
    from labkit.course.address import colab_badge, repository

    address = repository(root)
    rows = ["| lab | minutes | hardware | exercises | claims | |", "|---|---:|---|---:|---|---|"]
    for number in labs.notebooks():
        lab = labs.lab(number)
        title = lab.title if lab.is_extra else f"{lab.number} · {lab.title}"
        link = f"[{title}](notebooks/{lab.stem}.ipynb)"
        claims = ", ".join(str(claim) for claim in lab.claims) or "–"
        badge = colab_badge(address, lab.stem)
        rows.append(f"| {link} | {lab.minutes} | {lab.hardware} | {len(lab.exercises) or '–'} | {claims} | {badge} |")
    return "\n".join(rows)


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, without its full stop. Raises ValueError if there is none."""
    words = " ".join((ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")[0].split())
    if not words:
        raise ValueError(f"{path} has no docstring; its first sentence is its line in the README's tree")
    return re.split(r"(?<=[\w`)\]])(?<!\bal)\.(?=\s|$)", words)[0]  # "et al." ends no sentence


def tree(root: Path) -> str:
    """The folders, and every public module of labkit, each with its first sentence."""
    lines = [(f"{name}/", words.replace("`", "")) for name, words in PLACES.items() if (root / name).is_dir()]
    lines.append(("labkit/", first_sentence(root / "labkit" / "__init__.py")))
    for room in sorted(path.parent for path in (root / "labkit").glob("*/__init__.py")):
        lines.append((f"  {room.name}/", first_sentence(room / "__init__.py")))
        inside = {path.stem: path for path in room.glob("[!_]*.py")}
        inside |= {f"{path.parent.name}/": path for path in room.glob("*/__init__.py")}
        lines += [(f"    {name}", first_sentence(path)) for name, path in sorted(inside.items())]
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(["```", *(f"{name:<{width}}{words}" for name, words in lines), "```"])


MAKERS: dict[str, Callable[[Path], str]] = {"badges": badges, "labs": labs_table, "tree": tree}


def renewed(text: str, root: Path) -> str:
    """The README's text with every generated part made anew.

    Raises ValueError if a part's markers are missing or stand twice.
    """
    for name in PARTS:
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"README.md needs '<!-- {name} -->' and '<!-- /{name} -->', once each and on own lines")
        made = MAKERS[name](root)
        text = pattern.sub(lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text)
    return text


def write(root: Path) -> bool:
    """Renew `README.md` in a checkout; returns whether it changed."""
    path = root / "README.md"
    before = path.read_text("utf-8")
    after = renewed(before, root)
    if after != before:
        path.write_text(after, "utf-8")
    return after != before


def main() -> None:
    """Renew the README of the checkout that labkit runs from."""
    from labkit.course.desk import checkout

    root = checkout()
    if root is None:
        raise SystemExit("README.md is in a checkout of the course, and labkit runs from an installed wheel")
    print("README.md: renewed" if write(root) else "README.md: up to date")


if __name__ == "__main__":
    main()
