"""The server's beginning and end: it answers while it loads, finishes what runs when told to end, and exits with 0."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from scripted_backend import TEXT, Scripted, expected
from server_thread import Served

from labkit.serve.engine import SamplingParams
from labkit.serve.server.keys import read_keys
from labkit.serve.server.launch import listen, serve
from labkit.serve.server.settings import Settings

PROGRAM = Path(__file__).parent / "scripted_server.py"


class Program:
    """The server as a process of its own."""

    def __init__(self, pause=0.01, load_seconds=0.0, drain_seconds=20.0, wait=True) -> None:
        arguments = [sys.executable, str(PROGRAM), str(pause), str(load_seconds), str(drain_seconds)]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().strip()}"
        if wait:
            assert self.process.stdout.readline() == "READY\n"

    def __enter__(self) -> Program:
        self.web = httpx.Client(base_url=self.url, timeout=60, verify=False)
        return self

    def __exit__(self, *_: object) -> None:
        self.web.close()
        self.process.kill()
        self.process.communicate()

    def ask(self, max_tokens: int, stream: bool = True) -> httpx.Response:
        body = {"model": "scripted", "prompt": "x", "seed": 1, "max_tokens": max_tokens, "stream": stream}
        with httpx.Client(base_url=self.url, timeout=60, verify=False) as web:
            return web.post("/v1/completions", json={**body, "ignore_eos": True})

    def wait_for(self, path: str, status: int) -> httpx.Response:
        end = time.monotonic() + 20
        while (answer := self.web.get(path)).status_code != status:
            assert time.monotonic() < end, answer.text
            time.sleep(0.01)
        return answer

    def running(self, count: int) -> None:
        end = time.monotonic() + 20
        while f"labkit_sequences_running {count}.0" not in self.web.get("/metrics").text:
            assert time.monotonic() < end
            time.sleep(0.01)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def text_of(answer: httpx.Response) -> str:
    return "".join(json.loads(each[6:])["choices"][0]["text"] for each in answer.text.split("\n\n")[:-2])


def test_sigterm_lets_what_runs_finish_and_refuses_what_is_new():
    with Program() as server, ThreadPoolExecutor() as pool:
        under_way = [pool.submit(server.ask, 150), pool.submit(server.ask, 120, False)]
        server.running(2)
        server.process.send_signal(signal.SIGTERM)
        refused = server.wait_for("/ready", 503)
        assert refused.json()["error"]["code"] == "draining"
        late = server.ask(5)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
        assert int(late.headers["retry-after"]) >= 1
        assert server.web.get("/health").status_code == 200
        params = {"temperature": 1.0, "seed": 1, "ignore_eos": True}
        assert text_of(under_way[0].result()) == expected("x", SamplingParams(max_tokens=150, **params))
        whole = under_way[1].result().json()["choices"][0]["text"]
        assert whole == expected("x", SamplingParams(max_tokens=120, **params))
        assert server.end() == (0, "cut 0, held 0, closed True\n", "")


def test_what_takes_too_long_is_cut_off_with_a_reason():
    with Program(drain_seconds=0.3) as server, ThreadPoolExecutor() as pool:
        under_way = [pool.submit(server.ask, 400), pool.submit(server.ask, 400, False)]
        server.running(2)
        server.process.send_signal(signal.SIGINT)
        streamed, whole = (each.result() for each in under_way)
        *_, last, rest = streamed.text.split("\n\n")
        assert rest == ""
        assert json.loads(last[6:])["error"]["code"] == "cancelled"
        assert (whole.status_code, whole.json()["error"]["code"]) == (503, "cancelled")
        assert server.end() == (0, "cut 2, held 0, closed True\n", "")


def test_a_second_signal_does_not_wait():
    with Program() as server, ThreadPoolExecutor() as pool:
        under_way = pool.submit(server.ask, 400)
        server.running(1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("/ready", 503)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        status, out, _ = server.end()
        assert (status, out.split(",")[0]) == (0, "cut 0")
        assert time.monotonic() - began < 10
        with contextlib.suppress(httpx.HTTPError):  # the connection ended in the middle
            assert "cancelled" in under_way.result().text


def test_a_signal_while_loading_ends_it():
    with Program(load_seconds=60, wait=False) as server:
        loading = server.wait_for("/ready", 503)
        assert "loading" in loading.json()["error"]["message"]
        assert server.ask(3).status_code == 503
        assert server.web.get("/v1/models").status_code == 503
        assert server.web.get("/openapi.json").status_code == 503
        assert server.web.get("/health").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.end()[0] == 0


def test_a_model_that_cannot_be_loaded_ends_the_server_with_the_reason():
    class Broken(Scripted):
        async def start(self):
            raise ValueError("there is no config.json")

    backend = Broken()
    with pytest.raises(ValueError, match=r"no config\.json"):
        asyncio.run(serve(backend, TEXT, Settings(), listen("127.0.0.1", 0), stop=asyncio.Event()))
    assert backend.closed


def test_a_port_that_is_taken_is_told_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match=r"127.0.0.1:\d+ cannot be used: Address already in use\. Choose another"):
            listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ValueError, match="is no address"):
        listen("no such host.", 1)
    with pytest.raises(ValueError, match="give 0 to 65535"):
        listen("127.0.0.1", 70_000)


def test_draining_is_seen_in_ready_and_in_metrics():
    backend = Scripted()
    with Served(backend, TEXT) as served:
        backend.draining = True
        assert served.get("/ready").json()["error"]["code"] == "draining"
        assert "labkit_draining 1.0" in served.get("/metrics").text
        backend.draining = False
        assert served.get("/ready").status_code == 200
        backend.closed = True
        assert served.get("/health").json()["error"]["code"] == "failed"
        backend.closed = False


def test_keys_come_from_a_file_and_the_environment(tmp_path):
    path = tmp_path / "keys"
    path.write_text("first  # of mine\n\n# none\nsecond\n")
    assert read_keys(path, {"LABKIT_API_KEYS": "third, first"}) == ("first", "second", "third")
    assert read_keys(None, {}) == ()
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="holds no key"):
        read_keys(path, {})
    with pytest.raises(ValueError, match="spaces"):
        Settings(keys=("a b",))
