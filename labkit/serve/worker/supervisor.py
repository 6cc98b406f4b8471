"""Keeps one child running: started, watched, and replaced when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from enum import Enum
from functools import partial
from typing import Any, Protocol

from labkit.serve.engine.backend import Unavailable
from labkit.serve.worker.link import Link
from labkit.serve.worker.messages import Message
from labkit.serve.worker.policy import Policy
from labkit.serve.worker.spec import Spec
from labkit.serve.worker.watch import Watch


class Phase(Enum):
    """Where a supervisor is."""

    NEW = "not started"
    LOADING = "loading"
    READY = "ready"
    PAUSED = "being replaced"
    FAILED = "given up"
    CLOSED = "closed"


class Owner(Protocol):
    """Who is told; always on the event loop."""

    def on_progress(self, share: float, what: str) -> None:
        """A child loads."""

    def on_ready(self, info: Any, limits: Any) -> None:
        """A child has loaded, and can be sent to."""

    def on_news(self, message: Message) -> None:
        """A child says something that is not about itself."""

    def on_death(self, reason: str) -> bool:
        """A child has ended, and everything that it said has been told; whether what killed it is known and gone."""

    def on_given_up(self, reason: str) -> None:
        """No other one comes."""


class Supervisor:
    """One child after the other.

    Args:
        spec: how each builds its engine.
        policy: how long is waited, and how often tried again.
        owner: who is told.
    """

    def __init__(self, spec: Spec, policy: Policy, owner: Owner) -> None:
        self.spec, self.policy, self.owner = spec, policy, owner
        self.phase, self.reason = Phase.NEW, ""
        self.restarts = self._failures = 0
        self._link: Link | None = None
        self._error: Exception | None = None
        self._gone = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def pid(self) -> int | None:
        """Process id of the child, if there is one."""
        return self._link.pid if self._link is not None else None

    @property
    def accepts(self) -> bool:
        """Whether there is a child, or will be one again."""
        return self.phase in (Phase.READY, Phase.PAUSED) or (self.phase is Phase.LOADING and self.restarts > 0)

    def why(self) -> str:
        """The phase, and its reason."""
        return f"{self.phase.value}: {self.reason}" if self.reason else self.phase.value

    async def start(self) -> None:
        """Load; returns when the first child is ready. Raises what it raised, or RuntimeError if it died."""
        if self.phase is not Phase.NEW:
            raise RuntimeError(f"this worker is {self.phase.value}; make a new one to start")
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        self._ticked = self._loop.time()
        self._spawn()
        self._tick()
        try:
            await self._started
        finally:
            if self.phase is Phase.LOADING:
                await self.close()

    def send(self, message: Message) -> None:
        """Say something to the child. Only while it is ready."""
        self._link.send(message)

    def well(self) -> None:
        """The child has done what it is there for: failures are no longer in a row."""
        self._failures = 0

    async def close(self) -> None:
        """Ask the child to end, and end it."""
        ready, self.phase = self.phase is Phase.READY, Phase.CLOSED
        for timer in self._timers.values():
            timer.cancel()
        if (link := self._link) is None:
            return
        if not self._started.done():
            self._started.set_exception(Unavailable("the worker was closed while it loaded"))
        if ready:
            link.send(("stop",))
            await self._wait_for_the_end()
        link.kill()
        await self._wait_for_the_end()

    async def _wait_for_the_end(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), self.policy.grace)

    # --- the life of a child

    def _spawn(self) -> None:
        self.phase, self._loaded = Phase.LOADING, self._loop.time()
        self._watch = Watch(self.policy)
        self._link = Link(self.spec, self.policy.beat, partial(self._loop.call_soon_threadsafe, self._hear))
        self._link.start()

    def _respawn(self) -> None:
        self.restarts += 1
        self._spawn()

    def _tick(self) -> None:
        if self.phase in (Phase.FAILED, Phase.CLOSED):
            return
        self._timers["tick"] = self._loop.call_later(self.policy.beat, self._tick)
        now = self._loop.time()
        seconds, self._ticked = now - self._ticked, now
        if self.phase is Phase.READY and now - self._loaded > self.policy.calm:
            self.well()
        if self.phase not in (Phase.LOADING, Phase.READY) or self._link.failure:
            return
        if failure := self._watch.tick(seconds):
            self._link.failure = failure
            self._link.kill()
            # A process that waits inside of a driver may outlive its killing: go on without it.
            ended = [("ended", "did not end when it was killed")]
            self._timers["kill"] = self._loop.call_later(self.policy.grace, self._hear, self._link, ended)

    def expect(self, working: bool) -> None:
        """Whether the child has something to do, so that standing still means that it hangs."""
        self._watch.working = working

    # --- what it says

    def _hear(self, link: Link, messages: list[Message]) -> None:
        for message in messages:
            if link is not self._link:
                return  # another one has taken its place
            self._watch.heard()
            handler = getattr(self, f"_on_{message[0]}", None)
            if handler is not None:
                handler(*message[1:])
            else:
                self.owner.on_news(message)

    def _on_beat(self, turns: int) -> None:
        self._watch.turned(turns)

    def _on_progress(self, share: float, what: str) -> None:
        self._watch.moved()
        self.reason = f"{share:.0%}, {what}"
        self.owner.on_progress(share, what)

    def _on_ready(self, info: Any, limits: Any) -> None:
        if self.phase is not Phase.LOADING:
            return  # closed meanwhile
        self.phase, self.reason, self._loaded = Phase.READY, "", self._loop.time()
        self._watch.ready()
        self.owner.on_ready(info, limits)
        if not self._started.done():
            self._started.set_result(None)

    def _on_failed(self, module: str, name: str, text: str, where: str) -> None:
        self._link.failure = f"failed with {name}: {text}"
        self._error = raised(module, name, text)
        logging.getLogger(__name__).error("the worker failed\n%s", where)

    def _on_ended(self, how: str) -> None:
        reason, self._link = f"the worker {self._link.failure or how}", None
        if self.phase is Phase.CLOSED:
            self._gone.set()
            return
        logging.getLogger(__name__).warning("%s", reason)
        self.phase, self.reason = Phase.PAUSED, reason
        self._failures = 0 if self.owner.on_death(reason) else self._failures + 1
        if not self._started.done():
            self.phase = Phase.FAILED
            self._started.set_exception(self._error or RuntimeError(f"{reason} while it loaded"))
        elif self._failures > self.policy.max_failures:
            self.phase = Phase.FAILED
            self.owner.on_given_up(reason)
        else:
            self._timers["respawn"] = self._loop.call_later(self.policy.delay(self._failures), self._respawn)


def raised(module: str, name: str, text: str) -> Exception:
    """An exception of the child, made anew: of its own type if this process knows it.

    >>> raised("builtins", "ValueError", "no such model"), raised("driver", "CudaError", "no memory")
    (ValueError('no such model'), RuntimeError('CudaError: no memory'))
    """
    kind = getattr(sys.modules.get(module), name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):
            return kind(text)
    return RuntimeError(f"{name}: {text}")
