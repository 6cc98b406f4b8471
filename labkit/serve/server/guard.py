"""The outermost layer: who may come in, how many at once, and that every fault has an answer in the right shape."""

from __future__ import annotations

import itertools
import logging
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labkit.serve.engine import Backend
from labkit.serve.server.body import Gone
from labkit.serve.server.errors import ApiError, full, unavailable
from labkit.serve.server.keys import Keys
from labkit.serve.server.metrics import Metrics
from labkit.serve.server.settings import Settings

log = logging.getLogger(__name__)
OPEN = ("/health", "/ready", "/metrics", "/openapi.json")
ASKING = ("/v1/completions", "/v1/chat/completions")


def route_of(path: str) -> str:
    """A path as the metrics name it: of few values, whatever clients invent."""
    if path in OPEN or path in ASKING or path == "/v1/models":
        return path
    return "/v1/models/{model}" if path.startswith("/v1/models/") else "other"


class Guard:
    """An ASGI layer around the whole application.

    Args:
        app: what it guards.
        backend: asked whether it is ready.
        settings: keys and limits.
        metrics: told of every request.
    """

    def __init__(self, app: ASGIApp, backend: Backend, settings: Settings, metrics: Metrics) -> None:
        self.app, self.backend, self.settings, self.metrics = app, backend, settings, metrics
        self.keys = Keys(settings.keys)
        self._prefix, self._numbers = secrets.token_hex(4), itertools.count(1)
        self._asking = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1002})
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, began = 0, time.monotonic()
        scope["request_id"] = id = f"{self._prefix}-{next(self._numbers)}"

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = id
            await send(message)

        try:
            await self._let_in(scope, receive, noting)
        except Gone:
            status = status or 499  # as nginx counts clients who left
        except ApiError as error:
            await error.response()(scope, receive, noting)
        except Exception:
            log.exception("request %s failed", id)
            if not status:
                error = ApiError(500, "the server failed on this request; it goes on with others", code="internal")
                await error.response()(scope, receive, noting)
        finally:
            route, status = route_of(scope["path"]), status or 499
            self.metrics.requests.labels(route, str(status)).inc()
            log.info("%s %s %s %d %.3f s", id, scope["method"], route, status, time.monotonic() - began)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path not in OPEN and self.keys:
            scope["caller"] = self._caller(Headers(scope=scope))
        if path not in ASKING or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        self._need_ready()
        if self._asking >= self.settings.max_concurrency:
            raise full(f"{self._asking} requests are being answered; try again later", self.settings.retry_seconds)
        self._asking += 1
        self.metrics.in_flight.set(self._asking)
        try:
            await self.app(scope, receive, send)
        finally:
            self._asking -= 1
            self.metrics.in_flight.set(self._asking)

    def _caller(self, headers: Headers) -> int:
        """The number of the caller's key. Raises ApiError (401) without a right one."""
        holder = self.keys.holder(headers.get("authorization"))
        if holder is None:
            words = "the API key is missing or wrong; send it as: Authorization: Bearer KEY"
            raise ApiError(401, words, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return holder

    def _need_ready(self) -> None:
        health = self.backend.health()
        if not health.ready or health.draining:
            raise not_ready(health.draining, health.alive, health.reason, self.settings.retry_seconds)


def not_ready(draining: bool, alive: bool, reason: str, retry_seconds: int) -> ApiError:
    """Why nothing is accepted (503)."""
    if draining:
        return unavailable("the server is about to end; ask another one", "draining", retry_seconds)
    if not alive:
        return unavailable(f"the engine has failed: {reason or 'no reason is known'}", "failed", retry_seconds)
    return unavailable(f"not ready yet: {reason or 'the model is loading'}", "not_ready", retry_seconds)
