"""One replica: the whole server of one version of a model, in a process that Ray watches and replaces.

The engine runs in this process, in a thread of its own. Who supervises is Ray: a second supervisor inside (as
`serve.worker` is) would only hide from it that a replica is ill.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from labkit.serve.fleet.plan import Plan
from labkit.serve.fleet.seats import Member


class Replica:
    """What Ray Serve makes as often as it was asked to.

    Args:
        plan: as data.
        version: the one to serve, whatever the alias says by now.
    """

    async def __init__(self, plan: dict[str, Any], version: str) -> None:
        import ray
        from ray import serve

        from labkit.serve.engine.async_engine import AsyncEngine
        from labkit.serve.registry import open_registry
        from labkit.serve.server import Settings, Text, create_app

        self._plan = Plan.read(plan)
        self._brake = Brake()
        folder = await asyncio.to_thread(
            open_registry(self._plan.store).pull, self._plan.name, version, self._plan.cache
        )
        self._backend = AsyncEngine(partial(engine, self._plan, str(folder), self._brake))
        await self._backend.start()
        settings = Settings(name=self._plan.name, keys=_keys())
        self._app = create_app(self._backend, Text.from_folder(folder), settings)
        node = ray.util.get_node_ip_address()
        host = self._plan.metrics_host or node
        self._open, port = await _listen(self._app, host)
        id = serve.get_replica_context().replica_id.unique_id
        self._me = Member(id, os.getpid(), node, self._plan.name, version, f"{host}:{port}")

    async def answer(self, to: str, scope: dict[str, Any], body: bytes) -> AsyncIterator[tuple[Any, ...]]:
        """What the server answers: first (id, status, headers), then (part of the body,) as they come.

        Args:
            to: the id of this replica; another one, if that one is gone.
            scope: of ASGI, what of it is plain data; body: of the request.
        """
        out: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        left = asyncio.Event()
        work = asyncio.create_task(_call(self._app, scope, body, out, left))
        try:
            while (message := await out.get()) is not None:
                if message["type"] == "http.response.start":
                    yield self._me.id, message["status"], list(message.get("headers", ()))
                elif message.get("body"):
                    yield (message["body"],)
            await work
        finally:
            left.set()
            if not work.done():
                await asyncio.wait((work,), timeout=1)
                work.cancel()

    async def tell(self, to: str) -> tuple[Member, dict[str, int]]:
        """Who answers here, and how busy it is."""
        load = self._backend.load()
        return self._me, {"running": load.running, "waiting": load.waiting}

    async def slow(self, to: str, seconds: float) -> bool:
        """For drills: from now on every step of the engine takes so many seconds more. False if this is another one."""
        if to == self._me.id:
            self._brake.seconds = seconds
        return to == self._me.id

    def check_health(self) -> None:
        """Asked by Ray again and again; raises if the engine has failed, and Ray replaces this replica."""
        health = self._backend.health()
        if not health.alive:
            raise RuntimeError(health.reason)


class Brake:
    """Slows an engine down: it is called after every step, and sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, report: Any) -> None:
        if self.seconds:
            time.sleep(self.seconds)


def engine(plan: Plan, folder: str, brake: Brake) -> Any:
    """The engine of a replica."""
    from labkit.serve.server.model import Model, build

    made = build(
        Model(
            folder, plan.device, plan.dtype, max_sequences=plan.max_sequences, max_waiting=plan.max_waiting,
            num_blocks=plan.num_blocks,
        )
    )  # fmt: skip
    made.observers.append(brake)
    return made


async def _call(
    app: Any, scope: dict[str, Any], body: bytes, out: asyncio.Queue[dict[str, Any] | None], left: asyncio.Event
) -> None:
    """Run one request through the application; None at the end, however it ends."""
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        if (part := next(parts, None)) is not None:
            return part
        await left.wait()
        return {"type": "http.disconnect"}

    try:
        await app({**scope, "type": "http", "asgi": {"version": "3.0"}}, receive, out.put)
    finally:
        out.put_nowait(None)


async def _listen(app: Any, host: str) -> tuple[Any, int]:
    """Serve /metrics, /health and /ready of this replica alone, on a port that is free; who listens, and the port."""
    import uvicorn

    from labkit.serve.server.guard import OPEN
    from labkit.serve.server.launch import Server, listen

    async def looking(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] in OPEN:
            await app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    opened = listen(host, 0)
    config = uvicorn.Config(looking, ws="none", lifespan="off", log_config=None, log_level="critical", access_log=False)
    task = asyncio.create_task(Server(config).serve([opened]))
    return task, opened.getsockname()[1]


def _keys() -> tuple[str, ...]:
    from labkit.serve.server.keys import read_keys

    return read_keys()
