"""A fleet for a notebook: in a process of its own, told over its standard input what to do, and hurt on demand.

Ray, its replicas and the notebook are then processes of their own, as they would be elsewhere; and what Ray writes goes
to a file beside the store instead of into the notebook.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, Queue
from types import SimpleNamespace
from typing import Any

PATIENCE = 480.0  # seconds, for whatever is asked
NEEDS = ("ray", "fastapi", "uvicorn", "prometheus_client")


def missing() -> list[str]:
    """What a fleet needs and is not installed here."""
    return [name for name in NEEDS if find_spec(name) is None]


class Fleeted:
    """A fleet that starts at once, in the background.

    Args:
        store: the registry's folder or address; model: "name@alias".
        cache: a folder for what is pulled.
        log: a file for what Ray and the replicas write.
        plan: fields of `labkit.serve.fleet.plan.Plan`.

    `wait` gives the url once it is ready. Everything it does raises RuntimeError with the fleet's own words when the
    fleet refuses. It ends with `close`, and with the process that made it.
    """

    def __init__(self, store: str, model: str, *, cache: str, log: Path, **plan: Any) -> None:
        asked = json.dumps({"store": str(store), "model": model, "cache": str(cache), **plan})
        self.log = Path(log)
        with open(self.log, "ab") as words:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "labkit.course.fleeted", asked],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, text=True, bufsize=1,
            )  # fmt: skip
        self._told: Queue[dict[str, Any]] = Queue()
        threading.Thread(target=_listen, args=(self._process.stdout, self._told), daemon=True).start()
        self.url = ""

    @property
    def pid(self) -> int:
        """Of the fleet's process."""
        return self._process.pid

    def wait(self) -> str:
        """The url, once requests are accepted."""
        if not self.url:
            self.url = str(self._hear())
        return self.url

    def replicas(self) -> list[SimpleNamespace]:
        """Those that are there, in the order of their ids: see `labkit.serve.fleet.fleet.Replicated`."""
        return [SimpleNamespace(**one) for one in self._do("replicas")]

    def kill(self, id: str) -> None:
        """End a replica's process with signal 9."""
        self._do("kill", id)

    def slow(self, id: str, seconds: float) -> None:
        """Let each step of a replica's engine take so many seconds more."""
        self._do("slow", id, seconds)

    def route(self, policy: str) -> None:
        """Another policy from now on."""
        self._do("route", policy)

    def fill(self, room: int | None) -> None:
        """Let only so many more bytes of a version fit on the disk of the fleet; None: it is mended."""
        self._do("fill", room)

    def rollout(self, ref: str | None = None) -> str:
        """Follow the alias, or another one; returns the version served."""
        return str(self._do("rollout", ref))

    def close(self) -> None:
        """End it; may be called twice."""
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self._process.stdin.close()  # a cell was run twice: the first fleet is told to end

    def _do(self, what: str, *args: Any) -> Any:
        self.wait()
        self._process.stdin.write(json.dumps([what, *args]) + "\n")
        return self._hear()

    def _hear(self) -> Any:
        try:
            told = self._told.get(timeout=PATIENCE)
        except Empty:
            raise TimeoutError(f"the fleet said nothing for {PATIENCE:.0f} s; see {self.log}") from None
        if "error" in told:
            raise RuntimeError(told["error"])
        if "done" not in told:
            last = self.log.read_text("utf-8", errors="replace").splitlines()[-5:]
            raise RuntimeError("\n".join((f"the fleet has ended with {self._process.wait(10)}:", *last)))
        return told["done"]


def _listen(lines: Iterator[str], told: Queue[dict[str, Any]]) -> None:
    for line in lines:
        with contextlib.suppress(ValueError):  # not ours: a library's own words
            told.put(json.loads(line))
    told.put({"ended": True})


# ------------------------------------------------------------------------------------------------- in the other process


def _commands(fleet: Any) -> dict[str, Callable[..., Any]]:
    def replicas() -> list[dict[str, Any]]:
        return [dataclasses.asdict(one) for one in fleet.replicas()]

    return {
        "replicas": replicas,
        **{name: getattr(fleet, name) for name in ("kill", "slow", "fill", "route", "rollout")},
    }


def _serve(asked: dict[str, Any], orders: Iterator[str], tell: Callable[[dict[str, Any]], None]) -> None:
    from labkit.serve.fleet.cluster import slim_here
    from labkit.serve.fleet.fleet import Fleet

    fleet = Fleet(asked.pop("store"), asked.pop("model"), **asked)
    with slim_here():
        fleet.start()
    with contextlib.closing(fleet):
        tell({"done": fleet.url})
        known = _commands(fleet)
        for line in orders:
            what, *args = json.loads(line)
            try:
                tell({"done": known[what](*args)})
            except Exception as error:
                tell({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    words = sys.stdout
    sys.stdout = sys.stderr  # what libraries print goes to the log
    _serve(json.loads(sys.argv[1]), sys.stdin, lambda told: print(json.dumps(told), file=words, flush=True))
