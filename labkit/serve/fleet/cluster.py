"""A Ray of our own on this machine: quiet, private, small, and gone with the process that started it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from labkit.core.environ import environment

OBJECT_STORE_BYTES = 80 << 20  # Ray's least is 75 MB; our messages are small
TRIES = 5
LEFT_OUT = ("pandas", "rfc3987_syntax")  # see `slim`
PLACE = "/tmp"  # the paths of Ray's sockets must be short
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "10",
}


class Cluster:
    """Ray and Ray Serve, from `start` to `stop`.

    Args:
        cpus: that Ray hands out; they are numbers in a book, not cores.
        host, port: where HTTP is heard; 0: a port that is free.
    """

    def __init__(self, cpus: int, host: str = "127.0.0.1", port: int = 0) -> None:
        self.cpus, self.host = cpus, host
        self.port = port or free_port(host)
        self._folder = ""

    def start(self) -> None:
        """Raises RuntimeError if this process is connected to a Ray already, or if Ray does not start."""
        with environment(QUIET):
            ray, serve = _ray()
            if ray.is_initialized():
                raise RuntimeError("this process is connected to Ray already; call ray.shutdown() first")
            for left in range(TRIES - 1, -1, -1):
                try:
                    self._init(ray)
                    break
                except Exception as error:  # Ray gives its parts 15 s, a busy machine may not
                    self._sweep()
                    if not left:
                        raise RuntimeError(f"Ray did not start, {TRIES} times: {error}") from error
            serve.start(proxy_location="HeadOnly", http_options={"host": self.host, "port": self.port})

    def _init(self, ray: Any) -> None:
        forget_the_dead()
        self._folder = tempfile.mkdtemp(prefix=f"lk{os.getpid()}-", dir=PLACE)
        with kept_signals(), slim(self._folder):
            ray.init(
                address="local",
                num_cpus=self.cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                namespace="labkit",
                _temp_dir=self._folder,
            )

    def stop(self) -> None:
        """End everything that was started; may be called twice."""
        if not self._folder:
            return
        _ray()[0].shutdown()
        self._sweep()

    def _sweep(self) -> None:
        """Nothing of it stays: no process, no folder."""
        for pid in processes(self._folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = ""


def _ray() -> tuple[Any, Any]:
    """Ray and Ray Serve, who say nothing of what goes well."""
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed; a fleet needs it: pip install 'labkit[fleet,serve]'", name=error.name
        ) from None
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    return ray, serve


def forget_the_dead() -> None:
    """Remove the folders of clusters whose process was killed before it could."""
    for folder in Path(PLACE).glob("lk*-*"):
        pid = folder.name[2:].partition("-")[0]
        if pid.isdecimal() and folder.stat().st_uid == os.getuid() and not lives(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def lives(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def processes(folder: str) -> list[int]:
    """Ids of those whose command line names a folder; none where /proc is not there to say."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if folder.encode() in each.read_bytes():
                found.append(int(each.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def free_port(host: str) -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as opened:
        opened.bind((host, 0))
        return opened.getsockname()[1]


@contextlib.contextmanager
def slim(folder: str) -> Any:
    """What Ray starts meanwhile does without packages that take each of its processes seconds to load.

    jsonschema loads rfc3987_syntax if it can, which compiles a grammar each time: two of the three seconds that
    `import ray` takes where that is installed (Jupyter brings it). It is only needed to check IRIs, which nobody does.
    Ray Serve loads pandas if it can, to send tables, of which a fleet has none: half of `import ray.serve`.
    """
    empty = Path(folder) / "slim"
    empty.mkdir()
    for name in LEFT_OUT:
        (empty / f"{name}.py").write_text('raise ImportError("left out, see labkit.serve.fleet.cluster.slim")\n')
    paths = [str(empty), *filter(None, [os.environ.get("PYTHONPATH")])]
    with environment({"PYTHONPATH": os.pathsep.join(paths)}):
        yield


@contextlib.contextmanager
def slim_here() -> Any:
    """What is imported meanwhile does without them as well: for a process that only runs a fleet."""
    absent = [name for name in LEFT_OUT if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # None: `import` says that it is not there
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)


@contextlib.contextmanager
def kept_signals() -> Any:
    """Ray takes SIGTERM for itself when it starts; give it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
