"""A real server on a free port, in a thread with an event loop of its own, beside the test's clients."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from labkit.serve.engine import Backend
from labkit.serve.server.launch import listen, serve
from labkit.serve.server.settings import Settings


class Served:
    """A server that runs while a `with` block lasts.

    Args:
        backend, tokenizer, settings: see `launch.serve`.
        wait: until requests are accepted.
    """

    def __init__(self, backend: Backend, tokenizer: Any, settings: Settings | None = None, wait: bool = True) -> None:
        self.backend = backend
        self._arguments = (tokenizer, settings or Settings())
        self._wait, self._ready = wait, threading.Event()

    def __enter__(self) -> Served:
        opened = listen("127.0.0.1", 0)
        self.port = opened.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._client = httpx.Client(base_url=self.url, timeout=60, verify=False)
        begun = threading.Event()

        async def live() -> None:
            self.loop, self._end = asyncio.get_running_loop(), asyncio.Event()
            begun.set()
            await serve(
                self.backend, *self._arguments, opened, drain_seconds=5, on_ready=self._ready.set, stop=self._end
            )

        self._thread = threading.Thread(target=asyncio.run, args=(live(),), daemon=True)
        self._thread.start()
        begun.wait(10)
        if self._wait:
            assert self._ready.wait(120), "the server did not become ready"
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not end"

    def on_loop(self, work: Callable[[], Any]) -> Any:
        """Do something where the server lives."""

        async def do() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(do(), self.loop).result(10)

    def open_connections(self) -> int:
        """How many clients' sockets the server has open."""
        mine = f":{self.port:04X}"
        lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
        return sum(line[1].endswith(mine) and line[3] == "01" for line in lines)

    def post(self, path: str, body: object = None, **more: Any) -> httpx.Response:
        """One request; `body` as JSON, or `content` as it is."""
        return self._client.post(path, **({} if body is None else {"json": body}), **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        """One request."""
        return self._client.get(path, **more)

    def raw(self, data: bytes, seconds: float = 5.0, size: int = 1 << 20) -> bytes:
        """What comes back for these bytes, until the server closes or is silent for so many seconds."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as wire:
            parts = []
            try:
                wire.sendall(data)
                while part := wire.recv(size):
                    parts.append(part)
            except (TimeoutError, ConnectionError):
                pass
            return b"".join(parts)
