"""One request's answers while they are made: several streams read as one, and ended together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from labkit.serve.engine import Backend, Delta, SamplingParams, Stream, Unavailable
from labkit.serve.scheduler import Full
from labkit.serve.server.errors import full, refused, unavailable


class Run:
    """The answers to the prompts of one request.

    Everything that comes is taken from the backend at once, so that nobody is held back by a slow reader; what waits to
    be read is bounded instead.

    Args:
        streams: one for each prompt; n: continuations of each. Answer k of prompt p has the number p × n + k.
        most_unread: pieces that may wait to be read; None: any number.
        observe: called with the number and the piece when it comes.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        n: int = 1,
        most_unread: int | None = None,
        observe: Callable[[int, Delta], object] | None = None,
    ) -> None:
        self.streams, self.n = tuple(streams), n
        self.overrun = False
        self._most, self._observe = most_unread, observe
        self._pieces: deque[tuple[int, Delta]] = deque()
        self._news = asyncio.Event()
        self._open = len(self.streams)
        self._tasks = [asyncio.create_task(self._follow(at, stream)) for at, stream in enumerate(self.streams)]

    async def _follow(self, at: int, stream: Stream) -> None:
        try:
            async for delta in stream:
                number = at * self.n + delta.index
                if self._observe is not None:
                    self._observe(number, delta)
                if self._most is not None and len(self._pieces) >= self._most:
                    self.overrun = True
                    self._pieces.clear()
                    self.cancel()
                self._pieces.append((number, delta))
                self._news.set()
        finally:
            self._open -= 1
            self._news.set()

    async def read(self) -> list[tuple[int, Delta]]:
        """All that is new, with the number of its answer; waits for something, and is empty at the end."""
        while not self._pieces and self._open:
            self._news.clear()
            await self._news.wait()
        pieces = list(self._pieces)
        self._pieces.clear()
        return pieces

    def cancel(self) -> None:
        """End what still runs, as when nobody wants it any more: the backend frees what it holds at once."""
        for stream in self.streams:
            stream.cancel()


def submit(
    backend: Backend,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    salt: str = "",
    retry_seconds: int = 1,
) -> list[Stream]:
    """All prompts of a request, or none of them.

    Args:
        params: of each prompt.
        salt: only requests with the same one share cached prompts.

    Raises ApiError: 400 for what can never be answered, 429 when the backend is full, 503 when it accepts nothing.
    """
    streams: list[Stream] = []
    try:
        for prompt, each in zip(prompts, params, strict=True):
            streams.append(backend.submit(prompt, each, salt=salt))
    except BaseException as error:
        for stream in streams:
            stream.cancel()
        if isinstance(error, ValueError):
            raise refused(str(error)) from None
        if isinstance(error, Full):
            raise full(str(error), retry_seconds) from None
        if isinstance(error, Unavailable):
            raise unavailable(str(error), "unavailable", retry_seconds) from None
        raise
    return streams
