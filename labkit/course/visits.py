"""Visitors of a server: they come when they come, and what became of each is written down."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

How = Literal["answered", "refused", "broken", "lost"]


@dataclass(frozen=True)
class Visit:
    """One request and its end.

    Args:
        sent, first, end: seconds since the first visitor; `first` when the first piece of the answer came, or `end`.
        how: answered whole; refused with a status and a reason; broken off, with a reason, when it had begun; or lost:
            the connection ended and nobody said why.
        says: the reason.
        streams: whether it was asked for as a stream.
    """

    sent: float
    first: float
    end: float
    how: How
    says: str = ""
    streams: bool = False


def judged(status: int, text: str, streams: bool) -> tuple[How, str]:
    """What became of a request, from all that came back.

    >>> judged(200, 'data: {"choices": []}\\n\\ndata: [DONE]\\n\\n', True)
    ('answered', '')
    >>> judged(200, 'data: {"error": {"message": "gone"}}\\n\\n', True)
    ('broken', 'gone')
    >>> judged(200, 'data: {"choices": []}\\n\\n', True)
    ('lost', 'the stream ended in the middle')
    """
    try:
        if status >= 400:
            return "refused", f"{status}: {json.loads(text)['error']['message']}"
        if not streams:
            return ("answered", "") if json.loads(text)["choices"] else ("lost", "no answer in the answer")
        events = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
        failed = [json.loads(event)["error"]["message"] for event in events if event.startswith('{"error"')]
    except (ValueError, KeyError, TypeError):
        return "lost", f"{status}: {text[:80]!r}"
    if failed:
        return "broken", failed[0]
    return ("answered", "") if events and events[-1] == "[DONE]" else ("lost", "the stream ended in the middle")


async def _visit(client: Any, url: str, body: dict[str, Any], began: float) -> Visit:
    import httpx

    sent, first, text, status = time.perf_counter() - began, None, b"", 0
    try:
        async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
            status = response.status_code
            async for chunk in response.aiter_raw():
                first = first or time.perf_counter() - began
                text += chunk
        how, says = judged(status, text.decode(errors="replace"), body.get("stream", False))
    except httpx.HTTPError as error:
        how, says = "lost", f"{type(error).__name__}: {error}"
    end = time.perf_counter() - began
    return Visit(sent, first or end, end, how, says, body.get("stream", False))


async def _all(
    url: str, bodies: Sequence[dict[str, Any]], gaps: Sequence[float], seconds: float, over: threading.Event
) -> list[Visit]:
    import httpx

    limits, began, tasks = httpx.Limits(max_connections=None), time.perf_counter(), []
    async with httpx.AsyncClient(timeout=seconds, limits=limits) as client:
        due = 0.0
        for body, gap in zip(bodies, gaps, strict=True):
            due += gap
            await asyncio.sleep(max(0.0, due - (time.perf_counter() - began)))
            if over.is_set():
                break
            tasks.append(asyncio.create_task(_visit(client, url, body, began)))
        return sorted(await asyncio.gather(*tasks), key=lambda visit: visit.sent)


def visit(
    url: str,
    bodies: Sequence[dict[str, Any]],
    rate: float,
    *,
    seed: int = 0,
    seconds: float = 60.0,
    during: Callable[[], Any] | None = None,
    at: float = 0.0,
    as_long: bool = False,
) -> list[Visit]:
    """Send requests in a Poisson process that does not ask how the server is doing, and say what became of each.

    Args:
        url: of a server or a fleet; bodies: of the requests to /v1/completions, in their order.
        rate: per second; seconds: after which a client gives up.
        during: called once, from a thread of its own, `at` seconds after the first; what it raises is raised here.
        as_long: nobody comes any more when `during` has returned.

    Works where an event loop is running, as in a notebook.
    """
    draw, found, failed, over = random.Random(seed), [], [], threading.Event()

    def run() -> None:
        gaps = [0.0, *(draw.expovariate(rate) for _ in bodies[1:])]
        found.extend(asyncio.run(_all(url, bodies, gaps, seconds, over)))

    def act() -> None:
        try:
            during()
        except Exception as error:
            failed.append(error)
        if as_long:
            over.set()

    threads = [threading.Thread(target=run)]
    if during is not None:
        threads.append(threading.Timer(at, act))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found


def counted(visits: Sequence[Visit]) -> dict[str, int]:
    """How many were sent, and how they ended.

    >>> counted([Visit(0, 1, 2, "answered"), Visit(0, 1, 2, "broken", "gone")])
    {'sent': 2, 'answered': 1, 'refused': 0, 'broken': 1, 'lost': 0}
    """
    ends = Counter(visit.how for visit in visits)
    return {"sent": len(visits), **{how: ends[how] for how in ("answered", "refused", "broken", "lost")}}
