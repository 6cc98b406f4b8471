"""`runs/report.html`: one page with every notebook's outcome, its slowest cells, its claims and all of its pictures."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from labkit.course.claims import Measured
from labkit.course.result import Result, load

SLOWEST = 5
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8886; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; } figure img { max-width: 100%; background: white; }
figcaption { font-size: .9rem; opacity: .8; } .problem { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def results(root: Path) -> list[Result]:
    """Every result kept under `root`, by kind of run and lab."""
    found = [load(path) for path in sorted(root.glob("*/*.json"))]
    return [result for result in found if result is not None]


def write(root: Path) -> Path:
    """Write `report.html` from the results under `root`, in one step, and return its path."""
    target = root / "report.html"
    part = root / "report.html.part"
    part.write_text(page(root, results(root)), "utf-8")
    part.replace(target)
    return target


def page(root: Path, found: Sequence[Result]) -> str:
    """The whole page as HTML; pictures are embedded, the executed notebooks are linked."""
    passed = sum(result.ok for result in found)
    summary = f"{passed} of {len(found)} notebooks ran as they should, {sum(r.seconds for r in found):.1f} s in all."
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>labkit run</title><style>{STYLE}</style></head><body><h1>labkit run</h1><p>{summary}</p>",
        table(("notebook", "run", "outcome", "seconds", "exercises"), [overview(result) for result in found]),
        *(section(root, result) for result in found),
        "</body></html>",
    ]
    return "\n".join(parts)


def overview(result: Result) -> tuple[str, ...]:
    """One row of the first table, as HTML cells."""
    wanted = "blank" if result.blank else "passed"
    right = sum(status == wanted for status in result.verdicts.values())
    outcome = "✓ well" if result.ok else "✗ failed"
    link = f'<a href="#{kind(result)}-{result.stem}">{html.escape(result.stem)}</a>'
    return link, kind(result), outcome, f"{result.seconds:.1f}", f"{right} of {len(result.verdicts)} {wanted}"


def kind(result: Result) -> str:
    """The folder of a result: "cpu", "gpu", "cpu-blank", …"""
    return f"{result.profile}-blank" if result.blank else result.profile


def section(root: Path, result: Result) -> str:
    """Everything about one notebook."""
    name = f"{kind(result)}/{result.stem}"
    parts = [f'<h2 id="{kind(result)}-{result.stem}">{html.escape(name)}</h2>']
    if (root / f"{name}.ipynb").is_file():
        parts.append(f'<p><a href="{html.escape(name)}.ipynb">the executed notebook</a></p>')
    if result.problem:
        parts.append(f'<p class="problem">✗ {html.escape(result.problem)}</p>')
    if result.environment:
        stood_on = ", ".join(f"{name} {value}" for name, value in result.environment.items())
        parts.append(f"<p>{html.escape(stood_on)}</p>")
    slowest = sorted(result.cells, key=lambda cell: -cell.seconds)[:SLOWEST]
    rows = [(str(c.cell), f"{c.seconds:.2f}", f"<code>{html.escape(c.code)}</code>") for c in slowest]
    parts.append("<h3>Slowest cells</h3>" + table(("cell", "seconds", "first line"), rows) if rows else "")
    rows = [claim_row(claim) for claim in result.claims]
    parts.append("<h3>Claims</h3>" + table(("claim", "measure", "verdict", "found"), rows) if rows else "")
    pictures = list(figures(root / f"{name}.ipynb"))
    parts.append("<h3>Pictures</h3>" + "\n".join(pictures) if pictures else "")
    return "\n".join(part for part in parts if part)


def claim_row(claim: dict[str, Any]) -> tuple[str, ...]:
    """A measurement as HTML cells."""
    found = Measured(**claim)
    return tuple(html.escape(cell) for cell in (str(found.claim), found.measure, found.verdict, str(found)))


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of cells that are HTML already."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def figures(path: Path) -> Iterator[str]:
    """Every PNG in a notebook's outputs, embedded, with its description."""
    import nbformat

    if not path.is_file():
        return
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells, 1):
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                alt = html.escape(description(output) or f"picture without a description, cell {number}")
                data = "".join(output["data"]["image/png"].split())
                image = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
                yield f"<figure>{image}<figcaption>{alt}</figcaption></figure>"


def description(output: Any) -> str:
    """The alt text that a picture travels with: in its metadata, else in its plain text; "" if there is none."""
    alt = output.get("metadata", {}).get("image/png", {}).get("alt") or output["data"].get("text/plain", "")
    return "" if alt.startswith("<") else alt
