"""A server from its start to its end: it listens while the model loads, and ends when what runs has ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Generator
from typing import Any

import uvicorn

from labkit.serve.engine import Backend
from labkit.serve.server.app import create_app
from labkit.serve.server.connection import connections
from labkit.serve.server.settings import Settings

log = logging.getLogger(__name__)
LEAVE_SECONDS = 5  # for answers that are written when everything else has ended


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at once, so that a port which is taken shows before a model is loaded.

    Args:
        port: 0 takes any that is free.

    Raises ValueError if the port is taken or may not be used, or the host is not this machine.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}; give 0 to 65535, 0 for any that is free")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        opened = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{host!r} with port {port} is no address: {error}") from None
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(2048)
    except OSError as error:
        opened.close()
        words = f"{host}:{port} cannot be used: {error.strerror}. Choose another with --port, or --port 0 for any"
        raise ValueError(words) from None
    opened.setblocking(False)
    return opened


class Server(uvicorn.Server):
    """uvicorn's, which leaves signals to `serve`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(
    backend: Backend,
    tokenizer: Any,
    settings: Settings,
    opened: socket.socket,
    *,
    drain_seconds: float = 30.0,
    on_ready: Callable[[], object] | None = None,
    stop: asyncio.Event | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; then refuse what is new, finish what runs, and return.

    Args:
        backend: not started yet; it is started while the server answers 503, and closed at the end.
        opened: as `listen` gave it.
        drain_seconds: how long answers may go on after the signal; a second signal ends at once.
        on_ready: called once requests are accepted.
        stop: ends the server when it is set, in place of the signals.

    Returns how many answers were cut off. Raises what `backend.start` raises.
    """
    app = create_app(backend, tokenizer, settings)
    config = uvicorn.Config(
        app,
        http=connections(settings.header_seconds, settings.write_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",  # what goes wrong is told by our own layers
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=LEAVE_SECONDS,
        timeout_keep_alive=30,
    )
    server = Server(config)
    ending = Ending(backend, server, drain_seconds)
    tasks = [asyncio.create_task(ending.after(stop))] if stop else []
    for each in () if stop else (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, ending.begin)
    serving = asyncio.create_task(server.serve([opened]))
    loading = asyncio.create_task(_load(backend, on_ready))
    try:
        await asyncio.wait((serving, loading), return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and not loading.cancelled() and loading.exception() is not None:
            server.should_exit = True
            await serving
            raise loading.exception()
        await serving
    finally:
        for task in (loading, *tasks):
            task.cancel()
        await asyncio.gather(loading, *tasks, return_exceptions=True)
        await backend.close()
    return ending.cut


async def _load(backend: Backend, on_ready: Callable[[], object] | None) -> None:
    await backend.start()
    if on_ready is not None:
        on_ready()


class Ending:
    """How a server ends: once asked it drains, asked again it stops."""

    def __init__(self, backend: Backend, server: uvicorn.Server, seconds: float) -> None:
        self.cut = 0
        self._backend, self._server, self._seconds = backend, server, seconds
        self._draining: asyncio.Task[None] | None = None

    async def after(self, stop: asyncio.Event) -> None:
        """Begin when this is set."""
        await stop.wait()
        self.begin()

    def begin(self) -> None:
        """A signal has come."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        else:
            self._server.should_exit = self._server.force_exit = True

    async def _drain(self) -> None:
        try:
            self.cut = await self._backend.drain(self._seconds)
        except Exception:
            log.exception("draining failed; the server ends all the same")
        self._server.should_exit = True
