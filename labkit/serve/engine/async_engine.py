"""The engine in a thread of its own, for asyncio: a `Backend` in one process."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Sequence

from labkit.serve.engine.backend import Health, Info, Stream, Unavailable
from labkit.serve.engine.delta import Delta, StepReport
from labkit.serve.engine.engine import Engine
from labkit.serve.engine.params import SamplingParams
from labkit.serve.engine.request import Request
from labkit.serve.scheduler import Full, Load


class AsyncEngine:
    """Serves an engine to one event loop.

    Args:
        make: the engine, or what makes one; called by `start`, off the loop.

    If the engine fails as a whole, every stream ends with "error" and `health` says why; nobody replaces it here (see
    `serve.worker`).
    """

    def __init__(self, make: Engine | Callable[[], Engine]) -> None:
        self._make = make
        self._engine: Engine | None = None
        self._info: Info | None = None
        self._load: Load | None = None
        self._streams: dict[str, Stream] = {}
        self._ids = itertools.count()
        self._wake = threading.Condition()  # guards what follows; the thread waits on it
        self._coming: list[Request] = []
        self._leaving: list[str] = []
        self._closing = False
        self._reports: list[StepReport] = []
        self._listeners: list[Callable[[StepReport], None]] = []
        self._thread: threading.Thread | None = None
        self._draining, self._dead = False, "it has not been started"
        self._idle = asyncio.Event()
        self._idle.set()

    # --- the backend

    @property
    def info(self) -> Info:
        """What is served. Raises `Unavailable` before `start`."""
        if self._info is None:
            raise Unavailable("the engine has not been started")
        return self._info

    async def start(self) -> None:
        """Make the engine, off the loop, and start its thread."""
        if self._thread is not None:
            raise RuntimeError("the engine was started before; make a new one")
        self._loop = asyncio.get_running_loop()
        self._engine = self._make if isinstance(self._make, Engine) else await asyncio.to_thread(self._make)
        self._info, self._load, self._dead = self._engine.info, self._engine.load(), ""
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams, *, priority: int = 0, salt: str = "") -> Stream:
        """See `Backend`."""
        if self._draining or self._dead:
            raise Unavailable(self.health().reason)
        id = str(next(self._ids))
        request = self._engine.prepare(id, prompt_ids, params, priority=priority, salt=salt)
        with self._wake:
            self._need_room(request)
            self._coming.append(request)
            self._wake.notify()
        stream = self._streams[id] = Stream(id, params.n, self._cancel)
        self._idle.clear()
        return stream

    def load(self) -> Load:
        """See `Backend`; what was submitted since the last step counts as waiting."""
        if self._load is None:
            raise Unavailable("the engine has not been started")
        return self._load

    def health(self) -> Health:
        """See `Backend`."""
        reason = self._dead or ("it is shutting down" if self._draining else "")
        return Health(alive=not self._dead, ready=not reason, draining=self._draining, reason=reason)

    def subscribe(self, listener: Callable[[StepReport], None]) -> None:
        """See `Backend`."""
        self._listeners.append(listener)

    async def drain(self, seconds: float) -> int:
        """See `Backend`."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            left = list(self._streams.values())
            for stream in left:
                stream.cancel()
            return len(left)
        return 0

    async def close(self) -> None:
        """See `Backend`."""
        self._draining = True
        for stream in list(self._streams.values()):
            stream.cancel()
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._dead = self._dead or "it was closed"

    # --- on the loop

    def _need_room(self, request: Request) -> None:
        limits, load = self._engine.limits, self._load
        waiting = load.waiting + len(self._coming)
        tokens = load.waiting_tokens + sum(_tokens(one) for one in self._coming) + _tokens(request)
        if waiting >= limits.max_waiting or (waiting and tokens > limits.max_waiting_tokens):
            raise Full(f"{waiting} requests wait; try again later")

    def _cancel(self, id: str) -> None:
        self._forget(id)
        with self._wake:
            self._leaving.append(id)
            self._wake.notify()

    def _forget(self, id: str) -> None:
        self._streams.pop(id, None)
        if not self._streams:
            self._idle.set()

    def _hand(self, news: list[Delta], reports: list[StepReport]) -> None:
        for delta in news:
            stream = self._streams.get(delta.id)
            if stream is not None:
                stream.feed(delta)
                if stream.ended:
                    self._forget(delta.id)
        for report in reports:
            for listener in self._listeners:
                listener(report)

    def _fall(self, why: str) -> None:
        self._dead = why
        for stream in list(self._streams.values()):
            stream.end("error", why)
            self._forget(stream.id)

    # --- in the thread

    def _work(self) -> None:
        engine = self._engine
        engine.observers.append(self._see)
        try:
            while self._take(engine):
                news = engine.step()
                with self._wake:
                    self._load = engine.load()
                reports, self._reports = self._reports, []
                if news or reports:
                    self._call(self._hand, news, reports)
        except Exception as error:
            self._call(self._fall, f"the engine failed: {type(error).__name__}: {error}")

    def _see(self, report: StepReport) -> None:
        if self._listeners:
            self._reports.append(report)

    def _take(self, engine: Engine) -> bool:
        """Bring in who comes, let go who leaves; wait while there is nothing to do; False once closing."""
        with self._wake:
            while not (self._closing or self._coming or self._leaving or engine.busy):
                self._wake.wait()
            for request in self._coming:
                engine.enter(request, insist=True)
            for id in self._leaving:
                engine.cancel(id)
            self._coming, self._leaving = [], []
            self._load = engine.load()
            return not self._closing

    def _call(self, function: Callable, *arguments) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is gone, and with it everybody who would listen
            self._closing = True


def _tokens(request: Request) -> int:
    return len(request.prompt) + request.params.max_tokens
