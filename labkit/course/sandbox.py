"""A Python kernel in a bubblewrap sandbox: no network, nothing to write outside, no answers to read.

Inside, the file system is read-only; home folders, the checkout, the course, `/run` (its sockets) and temporary
folders are empty. What Python and labkit need is bound back in, without the lab modules, which hold the references.
The one folder shared with the outside holds the kernel's sockets and is deleted with it. Limits: memory, processes,
file size. What is not limited: the number of files written to that folder while the kernel lives.
"""

from __future__ import annotations

import queue
import shutil
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from labkit.course.master import checkout

MEMORY_BYTES = 8 * 2**30
SCRATCH_BYTES = 256 * 2**20
MAX_TEXT = 128 * 2**20
START_SECONDS = 120
INSTALL = (
    "grading runs a learner's code, and wants bubblewrap to keep it in: install it (Debian, Ubuntu: "
    "`sudo apt install bubblewrap`; Fedora: `sudo dnf install bubblewrap`), or pass unsafe=True (`--unsafe`) for code "
    "that you would run on this machine anyway"
)
LAUNCH = """\
import resource as r, runpy, sys
for what, limit in ((r.RLIMIT_DATA, {memory}), (r.RLIMIT_FSIZE, {size}), (r.RLIMIT_NPROC, 4096), (r.RLIMIT_CORE, 0)):
    hard = r.getrlimit(what)[1]
    r.setrlimit(what, (limit, limit) if hard == r.RLIM_INFINITY or hard > limit else (hard, hard))
runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
"""


class SandboxError(RuntimeError):
    """No sandbox can be made here, or no kernel starts in it; the message says what to do."""


@dataclass(frozen=True)
class Reply:
    """What a cell did: how it ended, what it printed, and its error if it raised one."""

    status: Literal["ok", "error", "timeout", "dead", "flood"]
    text: str = ""
    error_type: str = ""
    error: str = ""


def sandbox_missing() -> str:
    """Why no sandbox can be made on this machine; empty if one can."""
    if not shutil.which("bwrap"):
        return f"there is no bubblewrap on this machine; {INSTALL}"
    tried = subprocess.run(
        ["bwrap", "--ro-bind", "/", "/", "--unshare-all", "--dev", "/dev", "--proc", "/proc", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode == 0:
        return ""
    return f"bubblewrap may not make a sandbox here ({tried.stderr.strip()}); {INSTALL}"


def sandbox_command(shared: Path, hidden: Sequence[Path] = ()) -> list[str]:
    """The bubblewrap command that a kernel's own command follows.

    Args:
        shared: the one folder that is the same inside and outside.
        hidden: folders that are empty inside, besides those that always are.
    """
    package = Path(__file__).resolve().parents[1]
    empty = _outermost_first([*hidden, *_always_hidden()])
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    command += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    for path in empty:
        command += ["--size", str(SCRATCH_BYTES), "--tmpfs", str(path)]
    for path in _outermost_first([*_python_folders(), package, *_data_folders(package)]):
        if any(path.is_relative_to(folder) for folder in empty):
            command += ["--ro-bind", str(path), str(path)]
    answers = package / "course" / "labs"
    command += ["--tmpfs", str(answers), "--remount-ro", str(answers)]
    for path in empty:
        if path != Path("/tmp") and not shared.is_relative_to(path):
            command += ["--remount-ro", str(path)]
    command += ["--dir", "/tmp/home", "--bind", str(shared), str(shared), "--chdir", "/tmp/home"]
    for name, value in _environment(package).items():
        command += ["--setenv", name, value]
    return command


def _environment(package: Path) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp/home",
        "LABKIT_HOME": "/tmp/home/labkit",
        "TMPDIR": "/tmp",
        "PYTHONPATH": str(package.parent),
        "LANG": "C.UTF-8",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "JUPYTER_PLATFORM_DIRS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _always_hidden() -> list[Path]:
    folders = [Path(name) for name in ("/tmp", "/var/tmp", "/run", "/home", "/root", "/mnt", "/media", "/srv")]
    root = checkout()
    return [*folders, Path(tempfile.gettempdir()), Path.home(), *([root] if root else [])]


def _python_folders() -> list[Path]:
    folders = [sys.prefix, sys.base_prefix, sys.exec_prefix, site.getusersitepackages(), *site.getsitepackages()]
    return [Path(folder) for folder in [*folders, str(Path(sys.executable).resolve().parents[1])]]


def _data_folders(package: Path) -> list[Path]:
    root = package.parent
    return [root / "data", root / "pyproject.toml"] if (root / "pyproject.toml").is_file() else []


def _outermost_first(paths: Sequence[Path]) -> list[Path]:
    real = {path.resolve() for path in paths if path.exists()}
    return sorted((path for path in real if path != Path("/")), key=lambda path: (len(path.parts), str(path)))


class Session:
    """A kernel that runs cells, one after another, each for a limited time. Use it as a context manager.

    Args:
        hidden: folders that are empty inside.
        unsafe: start the kernel without a sandbox, and without its limits.

    Raises SandboxError if there is no sandbox to be had or the kernel does not start.
    """

    def __init__(self, hidden: Sequence[Path] = (), unsafe: bool = False) -> None:
        import zmq
        from jupyter_client.kernelspec import KernelSpec
        from jupyter_client.manager import KernelManager

        if not unsafe and (missing := sandbox_missing()):
            raise SandboxError(missing)
        self._folder = Path(tempfile.mkdtemp(prefix="labkit-")).resolve()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        context = zmq.Context()
        context.setsockopt(zmq.MAXMSGSIZE, MAX_TEXT)
        transport = "tcp" if unsafe else "ipc"
        self._manager = KernelManager(
            transport=transport, connection_file=str(self._folder / "kernel.json"), context=context
        )
        limited = ["-c", LAUNCH.format(memory=MEMORY_BYTES, size=SCRATCH_BYTES)]
        wall = [] if unsafe else sandbox_command(self._folder, hidden)
        start = ["-m", "ipykernel_launcher"] if unsafe else limited
        argv = [*wall, sys.executable, *start, "-f", "{connection_file}", "--HistoryManager.enabled=False"]
        self._manager._kernel_spec = KernelSpec(argv=argv, display_name="labkit-sandbox", language="python")
        self._client: Any = None
        self._start()

    def _start(self) -> None:
        try:
            self._manager.start_kernel(stdout=subprocess.DEVNULL, stderr=self._errors)
            self._client = self._manager.client()
            self._client.start_channels()
            self._client.wait_for_ready(timeout=START_SECONDS)
        except RuntimeError as error:
            self._errors.seek(0)
            said = self._errors.read()[-2000:].decode("utf-8", "replace").strip()
            self.close()
            raise SandboxError(f"no kernel started in the sandbox: {error}. It said: {said or 'nothing'}") from error

    def run(self, code: str, timeout: float) -> Reply:
        """Run one cell for at most `timeout` seconds. After "timeout", "dead" or "flood" the session is of no use."""
        message_id = self._client.execute(code, store_history=False, allow_stdin=False)
        texts: list[str] = []
        size, raised = 0, ("", "")
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = self._client.get_iopub_msg(timeout=min(left, 0.5))
                kind, content = message["msg_type"], message["content"]
                ours = message["parent_header"].get("msg_id") == message_id
                text = str(content.get("text", "")) if kind == "stream" and content.get("name") == "stdout" else ""
            except queue.Empty:
                if not self._manager.is_alive():
                    return Reply("dead")
                continue
            except Exception:  # a message that is none: the learner's code holds the sockets, too
                return Reply("dead")
            size += len(text)
            if size > MAX_TEXT:
                return Reply("flood")
            if not ours:
                continue
            texts.append(text)
            if kind == "error":
                raised = (str(content.get("ename", "Error")), str(content.get("evalue", ""))[:2000])
            if kind == "status" and content.get("execution_state") == "idle":
                return Reply("error" if raised[0] else "ok", "".join(texts), *raised)
        return Reply("timeout")

    def close(self) -> None:
        """Kill the kernel and delete the folder shared with it."""
        if self._client is not None:
            self._client.stop_channels()
        if self._manager.has_kernel:
            self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()
        self._manager.context.destroy(linger=0)
        self._errors.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
