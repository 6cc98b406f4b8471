"""One request through the fleet: to a replica, to another one if that dies, and what comes back to the client.

Nothing is sent to the client until there is something to send that cannot be taken back: the whole answer, or the first
event of a stream. Until then a request whose replica dies is sent again; after that the stream ends with an error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import Scope, Send

from labkit.serve.fleet.ledger import Ledger
from labkit.serve.fleet.policies import Asked, NobodyReady
from labkit.serve.fleet.seats import Seats
from labkit.serve.server.errors import ApiError, unavailable
from labkit.serve.server.stream import event

AGAIN = (503,)  # a replica that accepts nothing has done nothing: another one may
log = logging.getLogger("ray.serve")
PAUSE = 0.05  # seconds between two looks for a replica


class Lost(Exception):
    """A replica died, or cannot be reached; `dead` if it will not come back."""

    def __init__(self, words: str, dead: bool) -> None:
        super().__init__(words)
        self.dead = dead


Ask = Callable[[str, dict[str, Any], bytes], AsyncIterator[tuple[Any, ...]]]


class Relay:
    """How requests travel.

    Args:
        seats: who is there.
        ledger: the books.
        ask: one replica, by its id; yields what `Replica.answer` does and raises `Lost`.
        retries: how often a request is sent again.
        wait_seconds: for a replica, when there is none.
    """

    def __init__(self, seats: Seats, ledger: Ledger, ask: Ask, retries: int, wait_seconds: float) -> None:
        self._seats, self._ledger, self._ask = seats, ledger, ask
        self._retries, self._wait = retries, wait_seconds

    async def __call__(self, scope: Scope, body: bytes, asked: Asked, send: Send) -> None:
        """Answer one request, whatever happens."""
        trip = Trip(send)
        began = time.monotonic()
        self._ledger.in_flight.inc()
        outcome = "left"
        try:
            outcome = await self._travel(trip, plain(scope), body, asked)
        except ApiError as error:
            outcome = await trip.fail(error)
        except Exception:
            log.exception("a request failed in the front or in a replica")
            words = "the fleet failed on this request; it goes on with others"
            outcome = await trip.fail(ApiError(500, words, code="internal"))
        finally:
            self._ledger.in_flight.dec()
            self._ledger.requests.labels(trip.replica, outcome).inc()
            self._ledger.seconds.observe(time.monotonic() - began)

    async def _travel(self, trip: Trip, scope: dict[str, Any], body: bytes, asked: Asked) -> str:
        tried: set[str] = set()
        for left in range(self._retries, -1, -1):
            id = await self._take(asked, tried)
            tried.add(id)
            try:
                return await self._once(trip, id, scope, body, bool(left))
            except Lost as error:
                if error.dead and self._seats.bury(trip.replica):
                    self._ledger.deaths.inc()
                if trip.begun or not left:
                    raise self._gave_up(trip, error) from None
                self._ledger.retries.labels("died").inc()
            except Elsewhere:
                self._ledger.retries.labels("unavailable").inc()
            finally:
                self._seats.give(id)
        raise AssertionError("the last try returns or raises")

    async def _once(self, trip: Trip, id: str, scope: dict[str, Any], body: bytes, more: bool) -> str:
        """Ask one replica; how it ended."""
        trip.replica = id
        pieces = self._ask(id, scope, body)
        try:
            trip.replica, status, headers = await anext(pieces)
            if status in AGAIN and more and len(self._seats.members) > 1:
                raise Elsewhere
            await trip.begin(status, headers)
            async for (part,) in pieces:
                await trip.add(part)
            await trip.end()
        finally:
            await pieces.aclose()
        return "answered" if status < 400 else "refused" if status < 500 or status == 503 else "failed"

    async def _take(self, asked: Asked, tried: set[str]) -> str:
        """A replica; waits for one when there is none. Raises ApiError (503) when none comes."""
        waited = 0.0
        while True:
            try:
                return self._seats.take(asked, tried)
            except NobodyReady:
                if waited >= self._wait:
                    raise unavailable("no replica is ready; the fleet starts others", "no_replica", 1) from None
            await asyncio.sleep(PAUSE)
            waited += PAUSE

    def _gave_up(self, trip: Trip, error: Lost) -> ApiError:
        if trip.begun:
            words = f"the replica that answered was lost, and with it the rest of this answer ({error}); ask again"
            return ApiError(502, words, code="replica_lost")
        words = f"{self._retries + 1} replicas were lost with this request ({error}); it is not sent to another one"
        return ApiError(502, words, code="replicas_lost")


class Elsewhere(Exception):
    """A replica accepts nothing just now."""


class Trip:
    """What one client has got so far: nothing, until it can no longer be taken back.

    Args:
        send: of ASGI.
    """

    def __init__(self, send: Send) -> None:
        self.replica, self.begun = "", False
        self._send, self._streams = send, False
        self._start: dict[str, Any] = {}
        self._parts: list[bytes] = []

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The head of an answer; an earlier one, of which nothing was sent, is forgotten."""
        self._start = {"type": "http.response.start", "status": status, "headers": list(headers)}
        kept = MutableHeaders(scope=self._start)
        kept["x-labkit-replica"] = self.replica
        self._parts = []
        self._streams = kept.get("content-type", "").startswith("text/event-stream")

    async def add(self, part: bytes) -> None:
        """More of its body."""
        if not self._streams:
            self._parts.append(part)
            return
        if not self.begun:
            self.begun = True
            await self._send(self._start)
        await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def end(self) -> None:
        """All of it is there."""
        if not self.begun:
            self.begun = True
            await self._send(self._start)
        await self._send({"type": "http.response.body", "body": b"".join(self._parts), "more_body": False})

    async def fail(self, error: ApiError) -> str:
        """End with an error, as an answer of its own or as the last event; what became of the request."""
        if self.begun:
            await self._send({"type": "http.response.body", "body": event(error.body()), "more_body": False})
            return "broken"
        answer: Response = error.response()
        await self._send({"type": "http.response.start", "status": error.status, "headers": answer.raw_headers})
        await self._send({"type": "http.response.body", "body": answer.body, "more_body": False})
        return "refused" if error.status in (429, 503) else "failed"


def plain(scope: Scope) -> dict[str, Any]:
    """What of a request is plain data, and travels to another process."""
    kept = ("http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers", "client")
    return {key: scope[key] for key in kept if key in scope}
