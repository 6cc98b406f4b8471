"""One notebook, executed in a process of its own: `python -m labkit.course.execute JOB.json`.

The process says on standard output, one JSON object a line, how many cells there are, which one is done, and how it
ended. The kernel is this same interpreter, works in an empty folder, and keeps its progress in a folder that is thrown
away, so that a run never touches the learner's own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CELL_SECONDS = 1800
SAVE_SECONDS = 10


@dataclass(frozen=True)
class Job:
    """What to execute: the notebook at `source`, to be written to `target` with `profile` as its parameter."""

    source: str
    target: str
    profile: str

    def save(self, path: Path) -> Path:
        """Write the job where the process can read it."""
        path.write_text(json.dumps(asdict(self)), "utf-8")
        return path


def kernel_environment(scratch: Path) -> dict[str, str]:
    """Environment variables that give a kernel this interpreter, this labkit and a private home.

    Args:
        scratch: a folder that is thrown away; a kernel specification named "python3" is written into it.
    """
    spec = scratch / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    path = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    jupyter = [str(scratch / "jupyter"), *filter(None, [os.environ.get("JUPYTER_PATH")])]
    return {
        "LABKIT_HOME": str(scratch / "home"),
        "JUPYTER_PATH": os.pathsep.join(jupyter),
        "PYTHONPATH": os.pathsep.join(path),
        "IPYTHONDIR": str(scratch / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def tell(event: str, **values: Any) -> None:
    """One line for the process that started this one."""
    print(json.dumps({"event": event, **values}), flush=True)


def save_sparingly() -> None:
    """Let papermill write the notebook every few seconds and at its end, whatever ended it.

    By itself it writes before and after every cell, text included: in a long notebook a third of the time.
    """
    from papermill.engines import NotebookExecutionManager

    save = NotebookExecutionManager.save

    def now_and_then(self: NotebookExecutionManager, **named: Any) -> None:
        waited = (self.now() - self.last_save_time).total_seconds()
        if self.end_time is not None or waited >= SAVE_SECONDS:
            save(self, **named)

    NotebookExecutionManager.save = now_and_then


def execute(job: Job, scratch: Path) -> None:
    """Execute the notebook with papermill and tell what happens; an error in a cell is told, not raised."""
    os.environ.update(kernel_environment(scratch))
    os.environ.pop("LABKIT_GRADE", None)
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    cells = [cell for cell in nbformat.read(job.source, as_version=4).cells if cell.cell_type == "code"]
    tell("cells", total=len(cells) + 1)  # papermill adds one, with the parameters
    work = scratch / "work"
    work.mkdir()
    save_sparingly()
    try:
        papermill.execute_notebook(
            job.source,
            job.target,
            parameters={"profile": job.profile},
            kernel_name="python3",
            progress_bar=False,
            cwd=str(work),
            execution_timeout=CELL_SECONDS,
            store_widget_state=False,
            on_cell_complete=lambda cell, cell_index: tell("cell", index=cell_index),
        )
    except PapermillExecutionError as error:
        tell("failed", error=first_line(f"{error.ename}: {error.evalue}"))
    else:
        tell("done")


def first_line(text: str) -> str:
    """The first line of an error, which is the one that names it."""
    return next((line for line in text.strip().splitlines() if line.strip()), "no message")


def main(arguments: list[str]) -> int:
    """Execute the job in a file; whatever goes wrong is told in one line."""
    with tempfile.TemporaryDirectory(prefix="labkit-run-", ignore_cleanup_errors=True) as scratch:
        try:
            execute(Job(**json.loads(Path(arguments[0]).read_text("utf-8"))), Path(scratch))
        except KeyboardInterrupt:
            return 130
        except Exception as error:
            tell("broken", error=first_line(f"{type(error).__name__}: {error}"))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
