"""A request's body: counted while it arrives, never waited for without end, read strictly."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.types import Receive

from labkit.serve.server import strict_json
from labkit.serve.server.asked import Asked, understand
from labkit.serve.server.errors import ApiError, refused
from labkit.serve.server.settings import Settings

Kind = TypeVar("Kind", bound=Asked)
_CLOSE = {"Connection": "close"}


class Gone(Exception):
    """The client has left; there is nobody to answer."""


async def read_body(headers: Headers, receive: Receive, settings: Settings) -> bytes:
    """What a client sends.

    Raises ApiError: 415 for another kind of body, 413 for one that is too large, 408 for one that comes too slowly;
    `Gone` if the client leaves.
    """
    _check_kind(headers)
    try:
        async with asyncio.timeout(settings.body_seconds):
            return await _read(headers, receive, settings.max_body_bytes)
    except TimeoutError:
        message = f"the body did not arrive within {settings.body_seconds:g} seconds"
        raise ApiError(408, message, code="body_timeout", headers=_CLOSE) from None


def understood(kind: type[Kind], data: bytes, max_depth: int) -> Kind:
    """A body as what it asks. Raises ApiError (400) for one that is not strict JSON, or asks for what is unknown."""
    try:
        body = strict_json.read(data, max_depth)
    except ValueError as error:
        raise refused(str(error), code="invalid_json") from None
    return understand(kind, body)


def _check_kind(headers: Headers) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        given = f"is {kind!r}" if kind else "is missing"
        raise ApiError(415, f"the Content-Type {given}; send application/json", code="unsupported_media_type")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "the body is compressed; send it as it is", code="unsupported_media_type")


async def _read(headers: Headers, receive: Receive, most: int) -> bytes:
    declared = headers.get("content-length", "")
    size, parts = 0, []
    too_large = declared.isdecimal() and int(declared[:20]) > most
    async for part in _parts(receive):
        size += len(part)
        if too_large or size > most:
            if size > 8 * most:  # so much is thrown away, so that an honest client reads the answer
                break
            too_large = True
            parts.clear()
        else:
            parts.append(part)
    if too_large:
        message = f"the body has more than {most} bytes; send less, or ask for it in several requests"
        raise ApiError(413, message, code="body_too_large", headers=_CLOSE)
    return b"".join(parts)


async def _parts(receive: Receive):
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return
