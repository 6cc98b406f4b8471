"""One request goes wrong in every way we know, and its neighbours' answers stay what they are alone.

`LABKIT_OVERLOAD` (seconds) makes the overload as long as you like; `LABKIT_DISCONNECTS` says how many clients leave.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time

import httpx
import pytest
from scripted_backend import POISON, TEXT, Scripted, expected
from server_thread import Served

from labkit.serve.engine import SamplingParams
from labkit.serve.server.settings import Settings

OVERLOAD = float(os.environ.get("LABKIT_OVERLOAD", "3"))
DISCONNECTS = int(os.environ.get("LABKIT_DISCONNECTS", "1000"))
JSON = {"content-type": "application/json"}
NEIGHBOURS = 6


def ask(number, **more):
    return {"model": "scripted", "prompt": f"neighbour {number}", "seed": number, "max_tokens": 40, **more}


def right(number, max_tokens=40):
    return expected(f"neighbour {number}", SamplingParams(temperature=1.0, seed=number, max_tokens=max_tokens))


class Neighbours:
    """Requests under way, some whole and some streamed, while something else happens."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def __enter__(self) -> Neighbours:
        self.answers: dict[int, str] = {}
        self.threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(NEIGHBOURS)]
        for thread in self.threads:
            thread.start()
        end = time.monotonic() + 10
        while len(self.served.backend.held) < NEIGHBOURS and time.monotonic() < end:
            time.sleep(0.002)
        return self

    def _ask(self, number: int) -> None:
        if number % 2:
            self.answers[number] = self.served.post("/v1/completions", ask(number)).json()["choices"][0]["text"]
            return
        events = self.served.post("/v1/completions", ask(number, stream=True)).text.split("\n\n")[:-2]
        self.answers[number] = "".join(json.loads(each[6:])["choices"][0]["text"] for each in events)

    def __exit__(self, *error: object) -> None:
        for thread in self.threads:
            thread.join(60)
        assert self.answers == {number: right(number) for number in range(NEIGHBOURS)}
        assert self.served.backend.held == {}
        assert self.served.backend.free == self.served.backend.num_blocks


@pytest.fixture(scope="module")
def served():
    with Served(Scripted(pause=0.004), TEXT, Settings(max_body_bytes=100_000)) as server:
        yield server


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (json.dumps(ask(0, prompt="word " * 3000)), 400),
        (json.dumps(ask(0, prompt="x" * 200_000)), 413),
        (json.dumps(ask(0, prompt=[5] * 20_000)), 400),
        (b"", 400),
        (b"{", 400),
        (json.dumps(ask(0, prompt={"a": 1})), 400),
        (json.dumps(ask(0, max_tokens=[])), 400),
        (json.dumps(ask(0, max_tokens=0)), 400),
        (json.dumps(ask(0, max_tokens=10**9)), 400),
        (b'{"model": "scripted", "prompt": "\xff\xfe"}', 400),
        (b"[" * 50_000, 400),
        (json.dumps(ask(0, prompt="a" + TEXT.decode([POISON]))), 500),
    ],
    ids=["over-long prompt", "over-long body", "over-long ids", "empty body", "broken JSON", "wrong type", "list for a "
         "number", "max_tokens 0", "max_tokens 10**9", "invalid UTF-8", "nesting", "NaN logits"],
)  # fmt: skip
def test_a_request_that_fails_fails_alone(served, content, status):
    with Neighbours(served):
        for _ in range(3):
            answer = served.post("/v1/completions", content=content, headers=JSON)
            assert answer.status_code == status, answer.text
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_thousand_clients_leave_in_the_middle(served):
    backend = served.backend
    before = backend.cancelled

    async def leave(number: int, places: asyncio.Semaphore) -> None:
        body = json.dumps(ask(number, max_tokens=400, stream=True, ignore_eos=True)).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        )
        async with places:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(head.encode() + b"\r\n\r\n" + body)
            await reader.readuntil(b"data: ")
            await asyncio.sleep(random.Random(number).random() * 0.01)
            if number % 2:
                writer.transport.abort()
            writer.close()

    async def all_leave() -> None:
        places = asyncio.Semaphore(20)
        await asyncio.gather(*(leave(number, places) for number in range(DISCONNECTS)))

    with Neighbours(served):
        asyncio.run_coroutine_threadsafe(all_leave(), served.loop).result(300)  # one thread less is faster
        end = time.monotonic() + 10
        while backend.cancelled - before < DISCONNECTS and time.monotonic() < end:
            time.sleep(0.01)
    assert backend.cancelled - before == DISCONNECTS


def test_a_worker_that_dies_costs_its_requests_only_time(served):
    with Neighbours(served):
        served.on_loop(served.backend.die)
        refused = served.post("/v1/completions", ask(1))
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "replaced" in refused.json()["error"]["message"]
        assert served.get("/health").status_code == 200
        assert served.get("/ready").status_code == 503
        served.on_loop(served.backend.come_back)
    assert served.get("/health").json()["restarts"] == 1


def test_out_of_blocks_is_waiting_and_then_429():
    backend = Scripted(pause=0.001, num_blocks=8, max_waiting=2 + NEIGHBOURS)
    with Served(backend, TEXT) as served, Neighbours(served):
        never = served.post("/v1/completions", ask(0, max_tokens=400))
        assert never.status_code == 400
        statuses = []

        def more() -> None:
            answer = served.post("/v1/completions", ask(1))
            statuses.append(answer.status_code)
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["error"]["code"] == "server_full"
            else:
                assert answer.json()["choices"][0]["text"] == right(1)

        threads = [threading.Thread(target=more) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200, 429}


def test_a_batch_that_does_not_fit_whole_leaves_nothing_behind():
    backend = Scripted(pause=0.05, num_blocks=4, max_waiting=1)
    with Served(backend, TEXT) as served:
        answer = served.post("/v1/completions", ask(0, prompt=["a", "b", "c", "d"]))
        assert answer.status_code == 429
        assert backend.held == {}
        assert backend.free == 4
        assert served.post("/v1/completions", ask(3)).json()["choices"][0]["text"] == right(3)


def test_no_more_are_answered_at_once_than_allowed():
    backend = Scripted(pause=0.02)
    with Served(backend, TEXT, Settings(max_concurrency=NEIGHBOURS, retry_seconds=7)) as served, Neighbours(served):
        answer = served.post("/v1/completions", ask(1))
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
        assert served.get("/v1/models").status_code == 200


def test_ten_times_too_much():
    backend = Scripted(pause=0.002, num_blocks=16, max_waiting=8)
    counts: dict[int, int] = {}

    async def flood(port: int) -> None:
        """Some ten times as many clients as there is room for, each asking again at once."""
        end = time.monotonic() + OVERLOAD
        limits = httpx.Limits(max_connections=120)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=60, verify=False
        ) as web:

            async def client(number: int) -> None:
                while time.monotonic() < end:
                    answer = await web.post("/v1/completions", json=ask(number))
                    counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
                    if answer.status_code == 200:
                        assert answer.json()["choices"][0]["text"] == right(number)
                    else:
                        assert answer.headers["retry-after"]
                        await asyncio.sleep(0.1)

            await asyncio.gather(*(client(number) for number in range(120)))

    with Served(backend, TEXT) as served:
        asyncio.run(flood(served.port))
        assert served.get("/ready").status_code == 200
        assert backend.held == {}
        assert backend.free == 16
    assert set(counts) == {200, 429}
