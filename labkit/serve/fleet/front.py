"""The thin front: it takes what clients ask, chooses a replica, and answers for the fleet as a whole.

Ray Serve runs it as the application that HTTP reaches; the replicas are another application, so that a new version of
the model replaces them and leaves the front alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from labkit.serve.fleet.ledger import Ledger, targets
from labkit.serve.fleet.policies import Asked, policy
from labkit.serve.fleet.relay import Lost, Relay
from labkit.serve.fleet.seats import Member, Seats, asked_of
from labkit.serve.server.body import Gone, read_body
from labkit.serve.server.errors import ApiError, JsonResponse, unavailable
from labkit.serve.server.guard import ASKING
from labkit.serve.server.settings import Settings
from labkit.serve.server.stream import unless_gone

MODEL_APP, FRONT_APP = "model", "front"
LOOK_SECONDS = 0.5
TELL_SECONDS = 10.0
TEXT = "text/plain; version=0.0.4; charset=utf-8"
log = logging.getLogger("ray.serve")


class Front:
    """What Ray Serve calls with every request.

    Args:
        retries, wait_seconds: see `Plan`.
        app: the application of the replicas.
    """

    def __init__(self, retries: int, wait_seconds: float, app: str = MODEL_APP) -> None:
        from ray import serve

        self._app, self._wanted, self._settings = app, 0, Settings()
        self._handle = serve.get_app_handle(app)
        self._seats = Seats(policy("round_robin"))  # until it is told another, before the first request
        self._ledger = Ledger(self._seats, lambda: self._wanted)
        self._relay = Relay(self._seats, self._ledger, self._ask, retries, wait_seconds)
        self._looking: asyncio.Task[None] | None = None

    def reconfigure(self, told: dict[str, Any]) -> None:
        """Ray tells the policy, at the start and whenever it is another; who is there stays known."""
        self._seats.policy = policy(told["policy"], told["seed"])

    async def __call__(self, request: Request) -> Response:
        """An answer, which Ray Serve then sends."""
        self._look()
        path = request.url.path
        try:
            if path in ("/health", "/ready"):
                return self._state(path == "/ready")
            if path == "/metrics":
                return Response(self._ledger.text(), media_type=TEXT)
            if path == "/targets":
                return JsonResponse(targets(self._seats.members, request.headers.get("host", "")))
            body = b""
            if path in ASKING and request.method == "POST":
                body = await read_body(request.headers, request.receive, self._settings)
            return Passing(self._relay, body, asked_of(body) if body else Asked())
        except ApiError as error:
            return error.response()
        except Gone:
            return Response(status_code=499)

    async def members(self) -> list[dict[str, Any]]:
        """Who is there, and how busy: from here, and by the replica's own count."""
        await self._see()
        there = []
        for member in self._seats.members:
            told = await self._tell(member.id)
            load = told[1] if told else {}
            there.append({**asdict(member), "in_flight": self._seats.under_way(member.id), **load})
        return there

    async def slow(self, id: str, seconds: float) -> bool:
        """For drills: see `Replica.slow`."""
        return await self._handle.slow.remote(id, seconds)

    async def note(self, outcome: str) -> None:
        """A rollout has ended so."""
        self._ledger.rollouts.labels(outcome).inc()

    def check_health(self) -> None:
        """Asked by Ray; the first time it begins the looking."""
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            self._look()

    # --- who is there

    def _look(self) -> None:
        if self._looking is None or self._looking.done():
            loop = asyncio.get_running_loop()
            # In a context of its own, so that Ray does not take what it calls for calls of the first request.
            self._looking = loop.create_task(self._keep_looking(), context=contextvars.Context())

    async def _keep_looking(self) -> None:
        while True:
            try:
                await self._see()
            except Exception:
                log.exception("the front could not see who is there; it looks again")
            await asyncio.sleep(LOOK_SECONDS)

    async def _see(self) -> None:
        """Ask Ray who runs, and those who are new who they are."""
        running, self._wanted, leaving = await asyncio.to_thread(running_replicas, self._app)
        if not leaving and len(running) < self._wanted:  # those whom a request met dead are no members any more
            self._ledger.deaths.inc(len({member.id for member in self._seats.members} - set(running)))
        known = {member.id: member for member in self._seats.members}
        for id in running:  # one after another: Ray's router mixes up calls that one request makes at once
            if id not in known and (told := await self._tell(id)):
                known[id] = told[0]
        self._seats.seat(known[id] for id in running if id in known)

    async def _tell(self, id: str) -> tuple[Member, dict[str, int]] | None:
        from ray.exceptions import RayError

        try:
            told = await asyncio.wait_for(self._handle.tell.remote(id), TELL_SECONDS)
        except (RayError, TimeoutError):
            return None
        return told if told[0].id == id else None

    async def _ask(self, id: str, scope: dict[str, Any], body: bytes) -> AsyncIterator[tuple[Any, ...]]:
        """What a replica answers; raises `Lost`."""
        from ray.exceptions import ActorUnavailableError, RayActorError
        from ray.serve.exceptions import BackPressureError

        answer = self._handle.options(stream=True).answer.remote(id, scope, body)
        whole = False
        try:
            async for piece in answer:
                yield piece
            whole = True
        except ActorUnavailableError as error:
            raise Lost(type(error).__name__, dead=False) from None
        except RayActorError as error:
            raise Lost(type(error).__name__, dead=True) from None
        except BackPressureError:
            raise unavailable("too many requests wait for a replica", "fleet_full", 1) from None
        finally:
            if not whole:
                answer.cancel()

    def _state(self, ready: bool) -> Response:
        if ready and not self._seats.members:
            raise unavailable("no replica is ready", "not_ready", 1)
        return JsonResponse({"status": "ok", "replicas": len(self._seats.members), "wanted": self._wanted})


class Passing(Response):
    """A response that comes from a replica."""

    def __init__(self, relay: Relay, body: bytes, asked: Asked) -> None:
        super().__init__()
        self._relay, self._body, self._asked = relay, body, asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(Gone):
            await unless_gone(receive, self._relay(scope, self._body, self._asked, send))


def running_replicas(app: str) -> tuple[list[str], int, bool]:
    """The ids of an application's replicas that run, how many there should be, and whether Ray is ending some.

    It is what Ray's dashboard asks, too.
    """
    from ray.serve.context import _get_global_client

    told = _get_global_client().get_serve_details()["applications"].get(app)
    if told is None:
        return [], 0, True
    deployments = told["deployments"].values()
    running = [one["replica_id"] for each in deployments for one in each["replicas"] if one["state"] == "RUNNING"]
    leaving = any(each["status"] in ("UPDATING", "DOWNSCALING") for each in deployments)
    return running, sum(each["target_num_replicas"] for each in deployments), leaving
