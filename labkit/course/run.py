"""`labkit run`: execute the notebooks of the labs, side by side, and keep what they said.

Each lab becomes `runs/<profile>/NN_name.ipynb` (executed) and `NN_name.json` (how it went: times, environment, claims,
exercise verdicts). The JSON is written last and in one step, so an interrupted lab simply has none and is run again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from labkit.core.runtime import data_path, resolve_profile
from labkit.course.execute import Job
from labkit.course.result import Result, cell_times, collect, exercise_problem, failing_cell, keep, load
from labkit.course.say import CLAIM, VERDICT

PACKAGE = Path(__file__).resolve().parents[1]
DISK_FULL = "the disk is full: free some space and run again; what is finished is kept"


class Interrupted(RuntimeError):
    """Ctrl-C: the message says what is finished, and that running again goes on from there."""


def runs_folder(profile: str, blank: bool, root: Path = Path("runs")) -> Path:
    """Where the results of one kind of run lie."""
    return root / (f"{profile}-blank" if blank else profile)


def source_of(lab: Any, blank: bool) -> Any:
    """The notebook to execute: made from its master, or, where that cannot be done, the student notebook as shipped."""
    import nbformat

    from labkit.course import desk, release

    if not blank:
        return release.solved_notebook(lab.number)
    if desk.checkout() and find_spec("nbgrader"):
        return release.student_notebook(lab.number)
    return nbformat.read(desk.shipped(lab.stem), as_version=4)


def package_digest() -> str:
    """A digest of every file that a notebook's outcome can depend on: labkit's sources and the course's data."""
    digest = hashlib.sha256()
    data = data_path("claims.yaml").parent
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.js"), *PACKAGE.rglob("*.css"), *data.rglob("*")]
    for path in sorted(file for file in files if file.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def key_of(notebook: Any, profile: str, package: str) -> str:
    """What a result depends on, as one digest: the cells, the profile, labkit, Python and torch."""
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    parts = [cells, profile, package, platform.python_version(), metadata.version("torch")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def environment(profile: str) -> dict[str, str]:
    """What the run stood on: versions, and the name of the device."""
    import torch

    versions = {name: metadata.version(name) for name in ("torch", "transformers", "numpy")}
    device = torch.cuda.get_device_name() if profile == "gpu" else f"{platform.machine()}, {os.cpu_count()} cores"
    return {"python": platform.python_version(), **versions, "system": platform.system(), "device": device}


def execute_job(job: Job, say: Callable[[dict[str, Any]], None], stop: threading.Event) -> str:
    """Run a job in its own process, pass on what it tells, and return its error ("" if it ended well)."""
    error = "the process ended without a word; perhaps it ran out of memory"
    with tempfile.TemporaryDirectory(prefix="labkit-job-") as folder, tempfile.TemporaryFile("w+") as noise:
        command = [sys.executable, "-m", "labkit.course.execute", str(job.save(Path(folder) / "job.json"))]
        path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=noise, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        watcher = threading.Thread(target=_end_when, args=(stop, process), daemon=True)
        watcher.start()
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line) if line.startswith('{"event"') else {"event": "noise"}
            say(event)
            if event["event"] in ("done", "failed", "broken"):
                error = event.get("error", "")
        process.wait()
    return error


def _end_when(stop: threading.Event, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        if stop.wait(0.2):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
            return


@dataclass(frozen=True)
class Runner:
    """Runs labs of one kind: `profile` ("cpu" or "gpu"), blank or solved, into `folder`."""

    profile: str
    blank: bool
    folder: Path
    package: str
    environment: dict[str, str]
    stop: threading.Event = field(default_factory=threading.Event)

    def path(self, stem: str, suffix: str) -> Path:
        """A file of one lab's result."""
        return self.folder / f"{stem}{suffix}"

    def __call__(self, lab: Any, fresh: bool, say: Callable[[dict[str, Any]], None]) -> Result | None:
        """The result of a lab, kept or new; None if it was interrupted."""
        import nbformat

        notebook = source_of(lab, self.blank)
        key = key_of(notebook, self.profile, self.package)
        kept = load(self.path(lab.stem, ".json"))
        if not fresh and kept and kept.ok and kept.key == key and self.path(lab.stem, ".ipynb").is_file():
            say({"event": "kept"})
            return kept
        self.path(lab.stem, ".json").unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="labkit-source-") as source:
            start = Path(source) / f"{lab.stem}.ipynb"
            nbformat.write(notebook, start)
            began = time.monotonic()
            target = self.path(lab.stem, ".ipynb")
            error = execute_job(Job(str(start), str(target.resolve()), self.profile), say, self.stop)
        if self.stop.is_set():
            return None
        result = self.judge(lab, key, error, time.monotonic() - began)
        keep(result, self.path(lab.stem, ".json"))
        return result

    def judge(self, lab: Any, key: str, error: str, seconds: float) -> Result:
        """What the executed notebook and the process's last word amount to."""
        import nbformat

        target = self.path(lab.stem, ".ipynb")
        identity = (lab.number, lab.stem, self.profile, self.blank)
        if os.strerror(errno.ENOSPC) in error:
            error = f"{error} ({DISK_FULL})"
        if not target.is_file():
            return Result(
                lab.number, lab.stem, self.profile, self.blank, key, error or "wrote nothing", round(seconds, 1)
            )
        notebook = nbformat.read(target, as_version=4)
        verdicts = {verdict["exercise"]: verdict["status"] for verdict in collect(notebook, VERDICT)}
        where = failing_cell(notebook)
        problem = f"cell {where}: {error}" if error and where else error
        if problem:
            problem += f" (the partly executed copy: {target})"
        return Result(
            *identity,
            key,
            problem or exercise_problem(verdicts, [exercise.id for exercise in lab.exercises], self.blank),
            round(seconds, 1),
            cell_times(notebook),
            () if self.blank else tuple(collect(notebook, CLAIM)),
            verdicts,
            self.environment,
        )


def run(
    numbers: Sequence[str | int] = (),
    *,
    profile: str = "auto",
    jobs: int = 1,
    blank: bool = False,
    update: bool = False,
    fresh: bool = False,
    root: Path = Path("runs"),
) -> list[Result]:
    """Execute labs and return their results, in order; writes `root/report.html` too.

    Args:
        numbers: the labs, such as ("00", "01"), and other notebooks ("gallery"); none means all.
        profile: "cpu", "gpu", or "auto".
        jobs: how many notebooks run at a time.
        blank: run the student notebooks, where no exercise is attempted, instead of the solved ones.
        update: renew the committed `solutions/NN_name.ipynb` of every lab that went well.
        fresh: run again what is already there.
        root: the folder that everything is written to.

    Raises ValueError for an unknown lab or an option that makes no sense, Unavailable for a GPU that is not there,
    OSError for a folder that cannot be written, and Interrupted on Ctrl-C.
    """
    from labkit.course import labs, report, solutions

    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; give 1 or more")
    if update and blank:
        raise ValueError("update renews the solved notebooks, so it cannot go with blank; leave one of them out")
    chosen = [labs.lab(number) for number in numbers or labs.notebooks()]
    chosen = list({lab.number: lab for lab in chosen}.values())
    if update:
        solutions.folder()
    resolved = resolve_profile(profile)
    runner = Runner(resolved, blank, runs_folder(resolved, blank, root), package_digest(), environment(resolved))
    runner.folder.mkdir(parents=True, exist_ok=True)
    results = _all(runner, chosen, jobs, fresh)
    for result in results:
        if update and result.ok:
            solutions.renew(runner.path(result.stem, ".ipynb"), result.stem)
    report.write(root)
    return results


def _all(runner: Runner, chosen: Sequence[Any], jobs: int, fresh: bool) -> list[Result]:
    done: dict[str, Result] = {}
    with progress_bars([lab.stem for lab in chosen]) as say, ThreadPoolExecutor(jobs) as pool:
        work = [pool.submit(runner, lab, fresh, lambda event, stem=lab.stem: say(stem, event)) for lab in chosen]
        try:
            for each in as_completed(work):
                if (result := each.result()) is not None:
                    done[result.number] = result
                    say(result.stem, {"event": "judged", "ok": result.ok, "seconds": result.seconds})
        except BaseException as error:
            with _deaf():
                runner.stop.set()
                pool.shutdown(cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                finished = ", ".join(sorted(done)) or "none"
                raise Interrupted(
                    f"interrupted. Finished labs: {finished}. The same command goes on from there"
                ) from None
            raise
    return [done[lab.number] for lab in chosen]


@contextmanager
def _deaf() -> Iterator[None]:
    """A second Ctrl-C does not cut the tidying short; it takes seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def progress_bars(stems: Sequence[str]) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """One bar a notebook; gives the function that takes the events of each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[state]}"), console=Console(stderr=True)) as bars:
        tasks = {stem: bars.add_task(stem, total=None, start=False, state="waiting") for stem in stems}

        def say(stem: str, event: dict[str, Any]) -> None:
            task, kind = tasks[stem], event["event"]
            if kind == "cells":
                bars.start_task(task)
                bars.update(task, total=event["total"], state="running")
            elif kind == "cell":
                bars.advance(task)
            elif kind == "kept":
                bars.update(task, state="unchanged since the last run")
            elif kind == "judged":
                bars.update(task, state=f"{'✓' if event['ok'] else '✗'} {event['seconds']:.1f} s")
                bars.stop_task(task)

        yield say
