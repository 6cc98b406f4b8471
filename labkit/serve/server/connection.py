"""A connection of uvicorn that waits for no client without end, and refuses what is no HTTP in the usual shape."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from labkit.serve.server.errors import ApiError


def connections(header_seconds: float) -> type[H11Protocol]:
    """The class of connections that close if the head of a request takes longer than so many seconds."""

    class Patient(Connection):
        seconds = header_seconds

    return Patient


class Connection(H11Protocol):
    """uvicorn's own, with a limit on the time that a request's head takes to arrive.

    Between requests uvicorn's keep-alive limit holds; this one runs from the first byte (or from the beginning of the
    connection) until the head is there.
    """

    seconds = 20.0
    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
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
