"""A `Backend` whose engine lives in a child process, and that outlives it.

Everything here happens on one event loop. What was on its way at a child's death is heard first; then its requests are
given to the next child with what they have produced so far: no token is lost, and none comes twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from labkit.serve.engine.backend import Health, Info, Stream, Unavailable
from labkit.serve.engine.delta import Delta, StepReport
from labkit.serve.engine.params import SamplingParams
from labkit.serve.scheduler.limits import Limits
from labkit.serve.scheduler.step import Load
from labkit.serve.worker.admission import admit, need_room
from labkit.serve.worker.flight import Flight, Request
from labkit.serve.worker.loads import Loads
from labkit.serve.worker.messages import Message, unpack_delta, unpack_load
from labkit.serve.worker.policy import Policy
from labkit.serve.worker.reports import Reports
from labkit.serve.worker.spec import Progress, Spec
from labkit.serve.worker.supervisor import Phase, Supervisor


class Worker:
    """An engine in a process of its own, replaced when it dies or hangs.

    Args:
        spec: how the child builds it.
        policy: how long is waited, and how often tried again.
        on_progress: called on the event loop with a share (0 to 1) and a text while a child loads.
    """

    def __init__(self, spec: Spec, policy: Policy | None = None, *, on_progress: Progress | None = None) -> None:
        self._supervisor = Supervisor(spec, policy or Policy(), self)
        self._tell = on_progress
        self._flight, self._count = Flight(), 0
        self._info: Info | None = None
        self._limits: Limits | None = None
        self._loads = Loads()
        self._reports = Reports()
        self._listeners: list[Callable[[StepReport], None]] = []
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def info(self) -> Info:
        """What is served. Raises `Unavailable` before `start` has returned."""
        if self._info is None:
            raise Unavailable(f"the worker is {self._supervisor.why()}; await start() first")
        return self._info

    @property
    def pid(self) -> int | None:
        """Process id of the child, if there is one."""
        return self._supervisor.pid

    async def start(self) -> None:
        """Load the engine; returns when it is ready.

        Raises what building it raised (of its own type if this process knows it, else RuntimeError; with its own
        message), and RuntimeError if the child dies meanwhile, or the worker was started before.
        """
        await self._supervisor.start()

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams, *, priority: int = 0, salt: str = "") -> Stream:
        """A request, from now on under way, whatever happens to the child.

        What only the engine can find wrong with it (such as a schema that it cannot read) ends its stream with "error".
        Raises ValueError for what can never be answered, `Full` when too many wait, `Unavailable` when nothing is
        accepted.
        """
        if self._draining or not self._supervisor.accepts:
            raise Unavailable(f"nothing is accepted; the worker is {self._standing()}")
        prompt = admit(self.info, self._limits, prompt_ids, params)
        if isinstance(priority, bool) or not isinstance(priority, int) or not isinstance(salt, str):
            raise ValueError(f"priority is {priority!r} and salt {salt!r}; give a whole number and a text")
        need_room(self._limits, self.load(), len(prompt) + params.max_tokens)
        if params.seed is None and not params.greedy:
            params = replace(params, seed=secrets.randbits(62))  # the next child must draw what this one would have
        self._count += 1
        stream = Stream(str(self._count), params.n, self._cancel)
        self._flight.add(Request(self._count, prompt, params, stream, priority, salt))
        self._settle()
        return stream

    def load(self) -> Load:
        """How busy, when last heard of; what is counted, counted over all children."""
        return self._loads.told(*self._flight.waiting())

    def health(self) -> Health:
        """Alive or on the way back, ready, and why not."""
        phase = self._supervisor.phase
        alive = phase not in (Phase.FAILED, Phase.CLOSED)
        ready = phase is Phase.READY and not self._draining
        reason = "" if ready else self._standing()
        return Health(alive, ready, self._draining, self._supervisor.restarts, reason)

    def subscribe(self, listener: Callable[[StepReport], None]) -> None:
        """Call this with the report of every step, on the event loop."""
        self._listeners.append(listener)
        if len(self._listeners) == 1 and self._supervisor.phase is Phase.READY:
            self._supervisor.send(("report",))

    async def drain(self, seconds: float) -> int:
        """Refuse what is new, wait for what runs; how many were cut off after so many seconds."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        late = self._flight.open
        for request in late:
            request.stream.cancel()
        return len(late)

    async def close(self) -> None:
        """End the child; requests that still run end with "cancelled"."""
        for request in self._flight.open:
            request.stream.end("cancelled")
            self._flight.remove(request.id)
        self._idle.set()
        await self._supervisor.close()

    def _standing(self) -> str:
        return "draining" if self._draining and self._supervisor.phase is Phase.READY else self._supervisor.why()

    # --- requests

    def _settle(self) -> None:
        """Something came or went: send what is due."""
        if self._supervisor.phase is Phase.READY:
            for request in self._flight.due():
                self._supervisor.send(request.command())
            self._supervisor.expect(bool(self._flight.sent))
        if self._flight.busy:
            self._idle.clear()
        else:
            self._idle.set()

    def _cancel(self, id: str) -> None:
        """The client has left."""
        if id in self._flight.sent and self._supervisor.phase is Phase.READY:
            self._supervisor.send(("cancel", id))
        else:
            self._flight.remove(id)
        self._settle()

    def _take(self, delta: Delta) -> None:
        request = self._flight.sent.get(delta.id)
        if request is None or request.stream.ended:
            return  # cancelled meanwhile
        request.take(delta)
        if request.stream.ended:
            self._flight.remove(request.id)
            if delta.finish_reason != "error":
                self._supervisor.well()

    # --- what the supervisor tells

    def on_progress(self, share: float, what: str) -> None:
        """A child loads."""
        if self._tell is not None:
            self._guarded(self._tell, share, what)

    def on_ready(self, info: Info, limits: Limits | None) -> None:
        """A child has loaded: it gets what is under way."""
        self._info, self._limits = info, limits
        self._loads.ready(info.num_blocks)
        if self._listeners:
            self._supervisor.send(("report",))
        self._settle()

    def on_news(self, message: Message) -> None:
        """A child has made a step, let go of a request, or refused one."""
        match message:
            case ("step", taken, load, deltas, reports):
                self._loads.heard(unpack_load(load))
                self._flight.read(taken)
                for packed in deltas:
                    self._take(unpack_delta(packed))
                for report in map(self._reports.unpack, reports):
                    for listener in self._listeners:
                        self._guarded(listener, report)
            case ("gone", id):
                self._flight.remove(id)
            case ("refused", id, why):
                if request := self._flight.sent.get(id):
                    request.stream.end("error", why)
                    self._flight.remove(id)
        self._settle()

    def on_death(self, reason: str) -> bool:
        """A child has ended; what it had is given to the next one, but not what killed it. Whether that was found."""
        self._loads.died()
        killers = self._flight.died()
        for request in killers:
            request.stream.end("error", f"{reason}, for the third time with this request in it, now alone")
        self._settle()
        return bool(killers)

    def on_given_up(self, reason: str) -> None:
        """No other child comes."""
        for request in self._flight.open:
            request.stream.end("error", f"given up: {reason}")
            self._flight.remove(request.id)
        self._settle()

    def _guarded(self, call: Callable[..., None], *args: Any) -> None:
        """Call somebody else's function; what it raises is told to the event loop, and stops nothing here."""
        try:
            call(*args)
        except Exception as error:
            loop = asyncio.get_running_loop()
            loop.call_exception_handler({"message": f"{call!r} failed", "exception": error})
