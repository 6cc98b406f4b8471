"""Server-sent events, and work that ends when its client leaves.

The framing is that of the HTML standard (server-sent events): each event is a line `data: …` and an empty line. The
last one is `[DONE]`; after an error there is none, so that nobody takes half an answer for a whole one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from labkit.serve.server.body import Gone
from labkit.serve.server.errors import ApiError, encoded

Value = TypeVar("Value")
DONE = b"data: [DONE]\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(content: object) -> bytes:
    """One event.

    >>> event({"text": "a\\nb"})
    b'data: {"text":"a\\\\nb"}\\n\\n'
    """
    return b"data: " + encoded(content) + b"\n\n"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Value]) -> Value:
    """What `work` returns; it is cancelled and `Gone` is raised as soon as the client leaves.

    Args:
        receive: of the request, its body read to the end: what comes now is the news that the client has left.
    """
    doing = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((doing, watching), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise Gone
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Events as they come, until the end, an error, or the client's leaving.

    Args:
        events: bytes, each one event or more; an ApiError that it raises becomes the last event.
        close: called once, however it ends.
        write_seconds: how long a client may take to accept one of them.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], object], write_seconds: float) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._events, self._close, self._seconds = events, close, write_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._write(send))
        finally:
            self._close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for data in self._events:
                await self._send(send, data)
            await self._send(send, DONE)
        except ApiError as error:
            await self._send(send, event(error.body()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, data: bytes) -> None:
        """Raises `Gone` if the client does not read."""
        try:
            async with asyncio.timeout(self._seconds):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            raise Gone from None
