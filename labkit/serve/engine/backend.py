"""What a server asks of whoever answers: an engine in a thread, a worker in its own process, or a test's stand-in."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from labkit.serve.engine.delta import Delta, StepReport
from labkit.serve.engine.params import SamplingParams
from labkit.serve.scheduler.step import Load


class Unavailable(RuntimeError):
    """Nothing is accepted now: still loading, shutting down, or dead for good."""


@dataclass(frozen=True)
class Info:
    """What is served.

    Args:
        name: of the model.
        vocab_size, num_layers: of it; max_context: tokens of prompt and answer together.
        num_experts: of each sparse layer; sparse_layers: their numbers, in the order of `StepReport.experts`.
        eos_token_ids: that end an answer.
        num_blocks, block_size, max_sequences: of the cache, and how many run at once.
    """

    name: str
    vocab_size: int
    max_context: int
    num_layers: int
    num_experts: int
    sparse_layers: tuple[int, ...]
    eos_token_ids: tuple[int, ...]
    num_blocks: int
    block_size: int
    max_sequences: int


@dataclass(frozen=True)
class Health:
    """How a backend is: `alive` (or on the way back), `ready` to accept, `draining`; `restarts` so far, and why it is
    not ready."""

    alive: bool
    ready: bool
    draining: bool = False
    restarts: int = 0
    reason: str = ""


class Stream:
    """The news of one request, as an asynchronous iterator of `Delta`; it ends after the last one of every index.

    Lives on one event loop; whoever feeds it from another thread does so by `loop.call_soon_threadsafe`.

    Args:
        id: of the request; n: how many continuations end before it ends.
        on_cancel: called with the id, at most once, if the client leaves before the end.

    >>> stream = Stream("7", n=1)
    >>> stream.feed(Delta("7", text="Hi", finish_reason="stop"))
    >>> async def read(): return [delta.text async for delta in stream]
    >>> asyncio.run(read())
    ['Hi']
    """

    def __init__(self, id: str, n: int = 1, on_cancel: Callable[[str], object] | None = None) -> None:
        self.id = id
        self._open = dict.fromkeys(range(n))
        self._deltas: deque[Delta] = deque()
        self._news = asyncio.Event()
        self._on_cancel = on_cancel

    @property
    def ended(self) -> bool:
        """Whether no more is fed; what was fed may still have to be read."""
        return not self._open

    def feed(self, delta: Delta) -> None:
        """Add news; those of an index that has ended are too late and left out."""
        if delta.index not in self._open:
            return
        if delta.finish_reason is not None:
            del self._open[delta.index]
        self._deltas.append(delta)
        self._news.set()

    def end(self, reason: str, error: str | None = None) -> None:
        """Finish every index that is still open."""
        for index in tuple(self._open):
            self.feed(Delta(self.id, index, finish_reason=reason, error=error))

    def cancel(self) -> None:
        """The client has left: every open index ends with "cancelled" at once, and the backend is told."""
        if self._open:
            self.end("cancelled")
            if self._on_cancel is not None:
                self._on_cancel(self.id)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Delta:
        while not self._deltas:
            if not self._open:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._deltas.popleft()


class Backend(Protocol):
    """Answers requests; all methods are called on one event loop."""

    @property
    def info(self) -> Info:
        """What is served; known once `start` has returned."""

    async def start(self) -> None:
        """Load, and return when ready."""

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        salt: str = "",
    ) -> Stream:
        """A request, from now on under way.

        Raises ValueError for what can never be answered, `Full` when too many wait, `Unavailable` (both RuntimeErrors)
        when nothing is accepted.
        """

    def load(self) -> Load:
        """How busy, when last heard of."""

    def health(self) -> Health:
        """Alive, ready, and why not."""

    def subscribe(self, listener: Callable[[StepReport], None]) -> None:
        """Call this with the report of every step, on the event loop."""

    async def drain(self, seconds: float) -> int:
        """Refuse what is new, wait for what runs; how many were cut off after so many seconds."""

    async def close(self) -> None:
        """Free everything; requests that still run end with "cancelled"."""
