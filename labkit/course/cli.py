"""The command `labkit`. Each command says what it did and where it wrote; heavy imports wait until one is chosen.

Exit status: 0 all is well, 1 something failed, 2 the command was not understood or cannot be done on this machine,
130 interrupted.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer

from labkit.course import bench, export, registry
from labkit.course import serve as server

app = typer.Typer(
    help="Mixture-of-Experts from scratch: open, run, check and grade the labs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

EXTRAS = {
    "jupyterlab": "lab", "jupytext": "lab", "papermill": "lab", "nbclient": "lab", "ipykernel": "lab",
    "nbgrader": "grade", "onnx": "serve", "onnxruntime": "serve",
    "fastapi": "serve", "uvicorn": "serve", "prometheus_client": "serve", "boto3": "fleet",
}  # fmt: skip

Numbers = Annotated[
    list[str] | None, typer.Argument(metavar="[NN]...", help="Lab numbers, or gallery; none means all.")
]


@app.command(epilog="Example: labkit doctor")
def doctor() -> None:
    """Show versions and what this machine can do; what it cannot comes with a reason and an alternative."""
    from labkit.core import runtime

    typer.echo(repr(runtime.doctor()))


@app.command(epilog="Example: labkit lab 01")
def lab(
    number: Annotated[str, typer.Argument(metavar="[NN]", help="The lab to open, or gallery.")] = "00",
    no_open: Annotated[bool, typer.Option("--no-open", help="Only lay the notebook out; start nothing.")] = False,
) -> None:
    """Open JupyterLab at a lab. A notebook that you have worked in is never overwritten."""
    from labkit.course import desk, labs

    path, new = desk.lay_out(labs.lab(number).stem, Path.cwd())
    typer.echo(f"{'copied the lab to' if new else 'the lab is'} {path}")
    if not no_open:
        raise typer.Exit(desk.open_in_jupyterlab(path))


@app.command(epilog="Example: labkit run 01 02 --profile cpu --jobs 2")
def run(
    numbers: Numbers = None,
    profile: Annotated[str, typer.Option(help="auto, cpu (small) or gpu (the real experiment).")] = "auto",
    jobs: Annotated[int, typer.Option(help="How many notebooks run at a time.")] = 1,
    blank: Annotated[bool, typer.Option("--blank", help="Run the student notebooks, nothing attempted.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Renew the notebooks committed in solutions/.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what is already there.")] = False,
) -> None:
    """Execute notebooks, resuming after an interruption, and write runs/report.html."""
    from labkit.course.run import run as run_labs

    results = run_labs(numbers or (), profile=profile, jobs=jobs, blank=blank, update=update, fresh=fresh)
    for result in results:
        typer.echo(f"{'✓' if result.ok else '✗'} {result.stem:<20} {result.seconds:7.1f} s  {result.problem}".rstrip())
    failed = sum(not result.ok for result in results)
    typer.echo(f"{len(results) - failed} of {len(results)} as they should be; see {Path('runs') / 'report.html'}")
    if update and failed < len(results):
        typer.echo("renewed in solutions/: " + ", ".join(f"{r.stem}.ipynb" for r in results if r.ok))
    raise typer.Exit(1 if failed else 0)


@app.command(epilog="Example: labkit release 01        or, to look only: labkit release --check")
def release(
    numbers: Numbers = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a notebook is out of date.")] = False,
) -> None:
    """Make the student notebooks from their masters in solutions/; bring the prose of the executed ones up to date."""
    from labkit.course import labs, solutions
    from labkit.course import release as maker

    chosen = [labs.lab(number) for number in numbers or labs.notebooks()]
    if not check:
        for each in chosen:
            typer.echo("wrote " + ", ".join(str(path) for path in maker.release(each.number)))
            if not solutions.reword(maker.solved_notebook(each.number), each.stem):
                typer.echo(
                    f"  its code has changed since it was executed: labkit run {each.number} --update (on a GPU)"
                )
        return
    stale = [each.stem for each in chosen if maker.stale(each.number)]
    if stale:
        typer.echo(f"out of date: {', '.join(stale)}. Renew with: labkit release", err=True)
        raise typer.Exit(1)
    typer.echo(f"{len(chosen)} student notebooks are up to date")


@app.command(epilog="Example: labkit train my-model --profile cpu")
def train(
    folder: Annotated[Path, typer.Argument(help="Where the model is written; it must not hold one.")],
    profile: Annotated[str, typer.Option(help="auto, cpu (a tiny one) or gpu (that of data/checkpoints).")] = "auto",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, if not the recipe's.")] = None,
) -> None:
    """Train the course's model: corpus, tokenizer, training, baselines and card. A stopped run goes on where it was."""
    from labkit.course.recipe import make

    make(folder, profile, say=typer.echo, **({} if steps is None else {"steps": steps}))


@app.command(epilog="Example: labkit progress")
def progress() -> None:
    """Show which exercises you have passed."""
    from labkit.course import labs
    from labkit.course import progress as book
    from labkit.show.cards import Card

    done = book.read()["exercises"]
    rows = [("exercise", "title", "status", "hints")]
    for number in labs.numbers():
        for exercise in labs.lab(number).exercises:
            entry = done.get(exercise.id, {})
            rows.append((exercise.id, exercise.title, entry.get("status", "–"), str(entry.get("hints", 0))))
    passed = sum(row[2] == "passed" for row in rows)
    typer.echo(
        str(Card("info", f"{passed} of {len(rows) - 1} exercises passed", (f"kept in {book.home()}",), table=rows))
    )


@app.command(epilog="Example: labkit claims")
def claims(
    runs: Annotated[Path, typer.Option(help="The folder that `labkit run` wrote.")] = Path("runs"),
) -> None:
    """Show the claims ledger: what is claimed, which lab audits it, and what the runs here found."""
    from labkit.course import claims as book

    if not runs.is_dir() and runs != Path("runs"):
        raise FileNotFoundError(f"there is no folder {runs}; name the one that `labkit run` wrote")
    measured = book.read_runs(runs) if runs.is_dir() else {}
    typer.echo(str(book.ledger(measured)))
    for number, each in measured.items():
        for one in each:
            typer.echo(f"  claim {number}, {one.measure}: {one.verdict}. {one}")
    if not measured:
        typer.echo(f"  nothing measured in {runs} yet; measure with: labkit run")


@app.command(epilog="Example: labkit assign 01 02 --course ~/moe-course")
def assign(
    numbers: Annotated[list[str], typer.Argument(metavar="NN...", help="Lab numbers.")],
    course: Annotated[Path, typer.Option(help="The folder of the nbgrader course; made if it is not there.")],
) -> None:
    """Lay labs out as a ready nbgrader course."""
    from labkit.course.assign import assign as lay_out

    for path in lay_out(numbers, course):
        typer.echo(f"wrote {path}")


@app.command(epilog="Example: labkit grade submitted/01_router.ipynb --json")
def grade(
    notebook: Annotated[Path, typer.Argument(help="The learner's notebook.")],
    unsafe: Annotated[bool, typer.Option("--unsafe", help="Run it without a sandbox.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    timeout: Annotated[int, typer.Option(help="Seconds that a cell or an answer may take.")] = 60,
    feedback: Annotated[Path | None, typer.Option(help="Where to write the learner's feedback, as HTML.")] = None,
) -> None:
    """Grade a learner's notebook in a sandbox; only the learner's own functions count."""
    from labkit.course.grade import grade as mark

    report = mark(notebook, unsafe=unsafe, timeout=timeout, feedback=feedback)
    typer.echo(report.json() if as_json else str(report))
    if feedback and not as_json:
        typer.echo(f"wrote {feedback}")


app.command(epilog=bench.EXAMPLE)(bench.bench)
app.command(epilog=export.EXAMPLE)(export.export)
app.command(epilog=server.EXAMPLE)(server.serve)
app.add_typer(registry.app, name="registry", epilog=registry.EXAMPLE)


def _install(extra: str) -> str:
    from labkit.course.master import checkout

    if checkout() is not None:
        return "In this checkout, `make setup-test` installs everything."
    wanted = " ".join(sorted({name for name, group in EXTRAS.items() if group == extra}))
    return f"Install it with: {sys.executable} -m pip install {wanted}"


def explain(error: Exception) -> tuple[str, int]:
    """An expected error as the words and the exit status that the command line gives; others are raised again."""
    from labkit.core.runtime import Unavailable

    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise error
        return f"{error.name} is not installed. {_install(extra)}", 2
    if type(error).__name__ == "Interrupted":
        return str(error), 130
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full: free some space and run again; what is finished is kept", 1
    return str(error), 2 if isinstance(error, (ValueError, Unavailable, FileNotFoundError)) else 1


def main() -> None:
    """Run the command line; an error that we expect is a sentence, not a traceback."""
    try:
        app()
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError) as error:
        words, status = explain(error)
        typer.echo(f"labkit: {words}", err=True)
        sys.exit(status)


if __name__ == "__main__":
    main()
