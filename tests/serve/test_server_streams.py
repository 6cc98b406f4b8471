"""Streams: their framing, and what happens when a client leaves, or does not read."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest
from scripted_backend import POISON, TEXT, Scripted, expected
from server_thread import Served

from labkit.serve.engine import Delta, SamplingParams, Stream
from labkit.serve.server.body import Gone
from labkit.serve.server.errors import ApiError
from labkit.serve.server.run import Run
from labkit.serve.server.settings import Settings
from labkit.serve.server.stream import EventStream, unless_gone

TEXTS, CHAT = "/v1/completions", "/v1/chat/completions"


def ask(prompt="hello", **more):
    return {"model": "scripted", "prompt": prompt, "seed": 1, "ignore_eos": True, **more}


def request(path: str, body: dict) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def until(condition, seconds=10.0):
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_every_event_is_one_line_of_data_and_the_last_is_done():
    with Served(Scripted(), TEXT) as served:
        answer = served.post(TEXTS, ask(prompt="a\nb", echo=True, stream=True, max_tokens=20))
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        assert "content-length" not in answer.headers
        *events, done, rest = answer.text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        assert all(event.startswith("data: {") and "\n" not in event for event in events)
        text = "".join(json.loads(event[6:])["choices"][0]["text"] for event in events)
        assert text == "a\nb" + expected(
            "a\nb", SamplingParams(temperature=1.0, seed=1, max_tokens=20, ignore_eos=True)
        )


@pytest.mark.parametrize("path", [TEXTS, CHAT])
def test_an_error_in_a_stream_is_its_last_event(path):
    with Served(Scripted(), TEXT) as served:
        poison = "a" + TEXT.decode([POISON])
        body = {"model": "scripted", "stream": True, "max_tokens": 20}
        body |= {"prompt": poison} if path == TEXTS else {"messages": [{"role": "user", "content": poison}]}
        answer = served.post(path, body)
        assert answer.status_code == 200
        *_, last, rest = answer.text.split("\n\n")
        assert rest == ""
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["type"], error["code"]) == ("server_error", "generation_failed")
        assert "not finite" in error["message"]
        whole = served.post(path, {key: value for key, value in body.items() if key != "stream"})
        assert (whole.status_code, whole.json()["error"]["code"]) == (500, "generation_failed")
        until(lambda: served.backend.free == served.backend.num_blocks)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("waiting", [True, False])
def test_who_leaves_gives_everything_back_at_once(stream, waiting):
    backend = Scripted(pause=0.02, num_blocks=20)
    with Served(backend, TEXT) as served:
        if waiting:
            other = socket.create_connection(("127.0.0.1", served.port))
            other.sendall(request(TEXTS, ask(max_tokens=280)))
            until(lambda: len(backend.held) == 1)
        with socket.create_connection(("127.0.0.1", served.port)) as wire:
            wire.sendall(request(TEXTS, ask(prompt=["one", "two"], max_tokens=100, stream=stream)))
            until(lambda: len(backend.held) == 2 + waiting)
            time.sleep(0.05)
        until(lambda: len(backend.held) == waiting, 1.0)
        assert backend.cancelled == 2
        if waiting:
            other.close()
        until(lambda: backend.free == backend.num_blocks, 1.0)
        assert served.get("/metrics").text.count('labkit_answers_total{finish="cancelled"} ') == 1


def test_who_leaves_before_anything_runs_starts_nothing():
    backend = Scripted()
    with Served(backend, TEXT) as served:
        with socket.create_connection(("127.0.0.1", served.port)) as wire:
            wire.sendall(request(TEXTS, ask())[:-5])
        time.sleep(0.1)
        assert served.post(TEXTS, ask(max_tokens=2)).status_code == 200
        assert backend.finished == 1


def test_who_does_not_read_is_cut_off_and_holds_nobody_back():
    backend = Scripted(max_context=4096, num_blocks=4096)
    with Served(backend, TEXT, Settings(max_unread=200, write_seconds=60)) as served:
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect(("127.0.0.1", served.port))
        wire.sendall(request(TEXTS, ask(max_tokens=4000, logprobs=20, stream=True)))
        until(lambda: backend.cancelled == 1, 30)
        assert backend.free == backend.num_blocks
        assert served.post(TEXTS, ask(max_tokens=2)).status_code == 200
        wire.settimeout(10)
        got = b""
        while part := wire.recv(1 << 20):
            got += part
            if got.endswith(b"0\r\n\r\n"):
                break
        wire.close()
        assert b"slow_reader" in got[-400:]
        assert b"[DONE]" not in got


def test_who_reads_nothing_at_all_is_left_after_a_while():
    backend = Scripted(max_context=4096, num_blocks=4096)
    with Served(backend, TEXT, Settings(max_unread=100_000, write_seconds=0.3)) as served:
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect(("127.0.0.1", served.port))
        wire.sendall(request(TEXTS, ask(prompt=["a"] * 8, max_tokens=1000, logprobs=20, stream=True)))
        until(lambda: served.get("/metrics").text.count("labkit_requests_in_flight 0.0") == 1 and backend.salts, 30)
        until(lambda: backend.held == {})
        until(lambda: served.open_connections() == 1, 5)  # that of the test's other requests
        wire.close()


def run_of(deltas, **more):
    async def build():
        stream = Stream("1")
        run = Run([stream], **more)
        for delta in deltas:
            stream.feed(delta)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return stream, run

    return build()


def test_a_run_is_bounded_and_told_why():
    async def check():
        stream, run = await run_of([Delta("1", token_ids=(k,)) for k in range(6)], most_unread=4)
        assert stream.ended
        assert run.overrun
        (*_, (number, last)) = await run.read()
        assert (number, last.finish_reason) == (0, "cancelled")
        assert await run.read() == []

    asyncio.run(check())


def test_a_run_hands_over_what_is_there_in_order():
    async def check():
        stream, run = await run_of([Delta("1", token_ids=(k,)) for k in range(3)])
        assert [delta.token_ids for _, delta in await run.read()] == [(0,), (1,), (2,)]
        stream.end("stop")
        assert [delta.finish_reason for _, delta in await run.read()] == ["stop"]
        assert await run.read() == []

    asyncio.run(check())


def test_work_ends_when_its_client_leaves():
    async def check():
        left, undone = asyncio.Event(), []

        async def receive():
            await left.wait()
            return {"type": "http.disconnect"}

        async def work():
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                undone.append(True)
                raise

        asyncio.get_running_loop().call_later(0.01, left.set)
        with pytest.raises(Gone):
            await unless_gone(receive, work())
        assert undone == [True]
        left.clear()
        assert await unless_gone(receive, asyncio.sleep(0, "done")) == "done"

    asyncio.run(check())


def test_a_stream_is_closed_however_it_ends():
    async def check(fault):
        closed = []

        async def events():
            yield b"data: 1\n\n"
            if fault:
                raise fault

        async def receive():
            await asyncio.sleep(60)

        sent = []

        async def send(message):
            sent.append(message)

        stream = EventStream(events(), lambda: closed.append(True), 1.0)
        try:
            await stream({"type": "http"}, receive, send)
        except ZeroDivisionError:
            assert isinstance(fault, ZeroDivisionError)
        assert closed == [True]
        return b"".join(message.get("body", b"") for message in sent)

    assert asyncio.run(check(None)) == b"data: 1\n\ndata: [DONE]\n\n"
    assert b'"message":"no"' in asyncio.run(check(ApiError(500, "no")))
    assert b"[DONE]" not in asyncio.run(check(ApiError(500, "no")))
    assert asyncio.run(check(ZeroDivisionError())) == b"data: 1\n\n"
