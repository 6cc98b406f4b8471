"""A connection of uvicorn that waits for no client without end, and refuses what is no HTTP in the usual shape."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from labkit.serve.server.errors import ApiError


def connections(header_seconds: float, write_seconds: float) -> type[H11Protocol]:
    """The class of connections that wait so long for the head of a request, and for a client to take its answer."""

    class Patient(Connection):
        seconds, leave_seconds = header_seconds, write_seconds

    return Patient


class Leaving:
    """A transport that, once closed, does not wait for ever until its client has taken what was written.

    Args:
        transport: of asyncio.
        seconds: after which what is left is thrown away.
    """

    def __init__(self, transport: Any, seconds: float) -> None:
        self._transport, self._seconds = transport, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """No more is written; the client has some seconds to read the rest."""
        if not self._transport.is_closing():
            asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)
        self._transport.close()


class Connection(H11Protocol):
    """uvicorn's own, with a limit on the time that a request's head takes to arrive, and an answer to be taken.

    Between requests uvicorn's keep-alive limit holds; that on the head runs from the first byte (or from the beginning
    of the connection) until the head is there.
    """

    seconds, leave_seconds = 20.0, 30.0
    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(Leaving(transport, self.leave_seconds))
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head is None and self.conn.their_state is h11.IDLE:
            self._wait_for_head()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self._refuse(ApiError(400, f"{msg} This server speaks HTTP/1.1.", code="invalid_http"))

    def _wait_for_head(self) -> None:
        self._head = self.loop.call_later(self.seconds, self._too_late)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _too_late(self) -> None:
        self._head = None
        self._refuse(ApiError(408, f"no request arrived within {self.seconds:g} seconds", code="head_timeout"))

    def _refuse(self, error: ApiError) -> None:
        """Answer in place of the application, where no answer has begun, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            answer = error.response()
            answer.headers["connection"] = "close"
            for event in (
                h11.Response(
                    status_code=error.status, headers=answer.raw_headers, reason=HTTPStatus(error.status).phrase
                ),
                h11.Data(data=answer.body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self.transport.close()
