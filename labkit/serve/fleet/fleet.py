"""A fleet on this machine: two replicas or twenty, started, watched, hurt and renewed from one object."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from labkit.serve.fleet.cluster import Cluster
from labkit.serve.fleet.plan import Plan
from labkit.serve.fleet.seats import Member

PATIENCE = 180.0  # seconds for replicas to start

Progress = Callable[[float, str], object]


@dataclass(frozen=True)
class Replicated(Member):
    """A replica as it is now, beside what a `Member` says.

    Args:
        in_flight: requests that the front has sent it; running, waiting: sequences in its engine.
    """

    in_flight: int = 0
    running: int = 0
    waiting: int = 0


class RolloutRefused(RuntimeError):
    """A version that does not come whole out of the registry: the one before goes on."""


class Fleet:
    """Replicas of a model behind one address, while a `with` block lasts.

    Args:
        store: where the registry is; model: "name@alias" or "name@version".
        host, port: of the address; 0: a port that is free.
        on_progress: called with a share, 0 to 1, and what is being done.
        plan: fields of `Plan`.

    Raises what the registry raises for a model that is not there or not whole, and RuntimeError if the replicas do not
    start.
    """

    def __init__(
        self,
        store: str,
        model: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        on_progress: Progress = lambda share, what: None,
        **plan: Any,
    ) -> None:
        from labkit.serve.registry import default_cache, open_registry

        here = {"metrics_host": "127.0.0.1", "cache": str(default_cache()), **plan}
        self.plan = Plan(open_registry(str(store)).uri, model, **here)
        self._tell = on_progress
        self._version = ""
        self._room: int | None = None
        self._handle: Any = None
        self._cluster = Cluster(max(self.plan.replicas, self.plan.most or 0) + max(2, self.plan.surge), host, port)

    @property
    def url(self) -> str:
        """Where requests go."""
        from labkit.serve.server.greeting import address

        return address(self._cluster.host, self._cluster.port)

    @property
    def version(self) -> str:
        """What is served, or being brought in."""
        return self._version

    def start(self) -> Fleet:
        """Pull the model, start Ray and the replicas; returns when they accept requests."""
        from labkit.serve.fleet import app

        try:
            self._tell(0.02, f"pulling {self.plan.model}")
            self._version = self._pull()
            self._tell(0.1, "starting Ray")
            self._cluster.start()
            self._tell(0.4, f"starting {self.plan.replicas} replicas of {self.plan.name} {self._version}")
            run({"model": app.replicas(self.plan, self._version), "front": app.front(self.plan.told())})
            self._until(lambda: len(self.replicas()) >= self.plan.replicas, "the replicas did not become ready")
            self._tell(1.0, "ready")
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End all of it at once; may be called twice."""
        if self._handle is not None:
            with contextlib.suppress(Exception):  # whatever is wrong with it, it ends with the rest
                self._handle.shutdown()
            self._handle = None
        self._cluster.stop()

    def drain(self) -> None:
        """Accept nothing more, and wait until what runs has been answered, for `drain_seconds` at most."""
        from ray import serve

        serve.delete("front")

    def __enter__(self) -> Fleet:
        return self.start()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    # --- looking

    def replicas(self) -> list[Replicated]:
        """Those that are there."""
        told = self._front().members.remote().result(timeout_s=30)
        return sorted((Replicated(**one) for one in told), key=lambda one: one.id)

    def status(self) -> dict[str, Any]:
        """The version, how many replicas there are and should be, and Ray's word for the state."""
        from ray import serve

        told = serve.status().applications["model"]
        there = self.replicas()
        return {
            "model": self.plan.name, "version": self._version, "state": told.status.value, "replicas": len(there),
            "wanted": self.plan.replicas, "versions": sorted({one.version for one in there}),
        }  # fmt: skip

    def targets(self) -> list[dict[str, Any]]:
        """What Prometheus scrapes, as its http_sd wants it; `GET /targets` says the same."""
        import json
        from urllib.request import urlopen

        with urlopen(f"{self.url}/targets", timeout=30) as answer:
            return json.load(answer)

    # --- hurting

    def kill(self, id: str) -> None:
        """End a replica at once, as a machine's failure would (SIGKILL). Raises ValueError if it is not there."""
        os.kill(self._known(id).pid, signal.SIGKILL)

    def slow(self, id: str, seconds: float) -> None:
        """Let every step of a replica's engine take so many seconds more. Raises ValueError if it is not there."""
        self._known(id)
        if not self._front().slow.remote(id, float(seconds)).result(timeout_s=30):
            raise ValueError(f"replica {id} has gone meanwhile")

    def fill(self, room: int | None) -> None:
        """Let only so many more bytes of each version fit on this machine's disk; None: it is mended."""
        self._room = room

    # --- renewing

    def rollout(self, ref: str | None = None) -> str:
        """Follow the alias: pull and verify what it names now, then replace the replicas one after another.

        Args:
            ref: another alias or version to follow from now on.

        Returns the version that is served. Raises `RolloutRefused` if the new one is not whole or there is no room for
        it; the old one goes on. Raises RuntimeError if its replicas do not start; the old version is then brought back.
        """
        before = self.plan, self._version
        if ref is not None:
            self.plan = replace(self.plan, model=f"{self.plan.name}@{ref}")
        try:
            self._version = self._pull()
        except Exception as error:
            self.plan, self._version = before
            self._note("refused")
            words = f"{self.plan.name}@{ref or self.plan.ref} is refused: {error}; {self._version} goes on"
            raise RolloutRefused(words) from error
        if self._version == before[1]:
            return self._version
        try:
            self._deploy()
            self._until(self._renewed, f"the replicas of {self._version} did not become ready")
        except RuntimeError as error:
            words = f"{self.plan.name} {self._version} does not start: {error}; {before[1]} is brought back"
            self.plan, self._version = before
            self._note("failed")
            self._deploy()
            raise RuntimeError(words) from error
        self._note("done")
        return self._version

    def route(self, policy: str) -> None:
        """Another policy from now on; the front and the replicas stay."""
        from labkit.serve.fleet import app

        self.plan = replace(self.plan, policy=policy)
        run({"front": app.front(self.plan.told())})

    def scale(self, count: int, most: int | None = None) -> None:
        """So many replicas from now on; returns when they are there. Those that go finish what they have.

        Args:
            most: up to so many while requests wait (see `Plan`).
        """
        self.plan = replace(self.plan, replicas=count, most=most)
        self._deploy()
        self._until(lambda: count <= len(self.replicas()) <= (most or count), f"there are not {count} replicas")

    # --- inside

    def _pull(self) -> str:
        """The version that is asked for, whole and verified on this machine."""
        from labkit.serve.registry import SmallDisk, open_registry
        from labkit.serve.server.model import Model

        registry = open_registry(self.plan.store)
        version = registry.version(self.plan.name, self.plan.ref).id
        disk = {} if self._room is None else {"write": SmallDisk(self._room)}
        Model(str(registry.pull(self.plan.name, version, self.plan.cache, **disk)))  # it raises if this is no model
        return version

    def _renewed(self) -> bool:
        there = self.replicas()
        return len(there) >= self.plan.replicas and {one.version for one in there} == {self._version}

    def _deploy(self) -> None:
        from labkit.serve.fleet import app

        run({"model": app.replicas(self.plan, self._version)})

    def _front(self) -> Any:
        from ray import serve

        if self._handle is None:
            self._handle = serve.get_app_handle("front")
        return self._handle

    def _note(self, outcome: str) -> None:
        with contextlib.suppress(Exception):
            self._front().note.remote(outcome).result(timeout_s=5)

    def _known(self, id: str) -> Replicated:
        there: Sequence[Replicated] = self.replicas()
        found = next((one for one in there if one.id == id), None)
        if found is None:
            raise ValueError(f"there is no replica {id!r}; there are {', '.join(one.id for one in there) or 'none'}")
        return found

    def _until(self, true: Callable[[], bool], words: str) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            if time.monotonic() > end:
                raise RuntimeError(f"{words} within {PATIENCE:g} s: {self.status()}")
            time.sleep(0.2)


def run(applications: Mapping[str, Any]) -> None:
    """Deploy and wait until they run. Raises RuntimeError, with Ray's words, if one does not.

    Args:
        applications: by their names; HTTP reaches the front.
    """
    from ray import serve

    prefixes = {"front": "/"}
    serve.run_many([serve.RunTarget(made, name, prefixes.get(name)) for name, made in applications.items()])
