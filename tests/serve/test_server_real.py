"""The whole stack on the course's model: server, worker and engine. Faults change nothing for those beside them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from scripted_backend import FOLDER, POISON, TEXT
from server_thread import Served

from labkit.serve.server.settings import Settings
from labkit.serve.worker import Policy, Spec, Worker

ROOT = Path(__file__).parents[2]
PROMPTS = ("def add(a, b):\n", "12+30=", "The class of", "import os\n\n\ndef main", "name: ", "for i in range(")
LONG = 32


def ask(number: int, **more):
    """A neighbour: some greedy, some drawn, some with two answers."""
    drawn = {"temperature": 0.8, "seed": number, "n": 1 + number % 2} if number % 3 else {"temperature": 0}
    body = {"model": "real", "prompt": PROMPTS[number], "max_tokens": LONG, "ignore_eos": True}
    return {**body, **drawn, **more}


def texts(answer):
    assert answer.status_code == 200, answer.text
    return [choice["text"] for choice in answer.json()["choices"]]


@pytest.fixture(scope="module")
def served():
    spec = Spec("spoilt_engine:spoilt", {"num_blocks": 40, "max_waiting": 24})
    worker = Worker(spec, Policy(first_delay=0.05))
    with Served(worker, TEXT, Settings(name="real")) as server:
        server.right = {number: texts(server.post("/v1/completions", ask(number))) for number in range(len(PROMPTS))}
        yield server
        assert_free(server)


def assert_free(served):
    """Every block comes back; the numbers arrive a moment after the answers."""
    end = time.monotonic() + 20
    while (load := served.backend.load()).free_blocks < load.blocks or load.running or load.waiting:
        assert time.monotonic() < end, load
        time.sleep(0.02)


@contextlib.contextmanager
def neighbours(served):
    """All the neighbours at once; afterwards each must have its answer as if alone."""
    got = {}

    def one(number):
        if number % 2:
            got[number] = texts(served.post("/v1/completions", ask(number)))
            return
        events = served.post("/v1/completions", ask(number, stream=True)).text.split("\n\n")[:-2]
        choices = [json.loads(event[6:])["choices"][0] for event in events]
        got[number] = ["".join(c["text"] for c in choices if c["index"] == k) for k in range(ask(number).get("n", 1))]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 20
    while f"labkit_requests_in_flight {len(PROMPTS)}.0" not in served.get("/metrics").text and not got:
        assert time.monotonic() < end
    yield
    for thread in threads:
        thread.join(120)
    assert got == served.right


@pytest.fixture(scope="module")
def theirs():
    """transformers' own model."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


def test_greedy_answers_and_logprobs_are_those_of_transformers(served, theirs):
    import torch

    for number in (0, 3):
        ids = torch.tensor(TEXT.encode([PROMPTS[number]]))
        new = theirs.generate(ids, max_new_tokens=LONG, min_new_tokens=LONG, do_sample=False, pad_token_id=1)[0]
        body = ask(number, logprobs=3, echo=True, temperature=0, n=1)
        if number == 0:
            assert served.right[0] == [TEXT.decode(new[ids.shape[1] :].tolist())]
        choice = served.post("/v1/completions", body).json()["choices"][0]
        told = choice["logprobs"]
        with torch.no_grad():
            logprobs = theirs(new[None, :-1]).logits.log_softmax(-1)[0]
        assert told["tokens"] == [TEXT.token_text(id) for id in new.tolist()]
        for at, value in enumerate(told["token_logprobs"][1:]):
            assert value == pytest.approx(float(logprobs[at, new[at + 1]]), abs=2e-3)
            best = TEXT.token_text(int(logprobs[at].argmax()))
            assert max(told["top_logprobs"][at + 1], key=told["top_logprobs"][at + 1].get) == best
        assert choice["text"] == PROMPTS[number] + TEXT.decode(new[ids.shape[1] :].tolist())


FAULTS = (
    ({"prompt": "word " * 2000}, 400),
    ({"prompt": "a" + TEXT.decode([POISON]) + " b"}, 500),
    ({"max_tokens": 10**9}, 400),
    ({"max_tokens": 700}, 400),  # more than the whole cache
    ({"prompt": ["a"] * 64}, 429),  # more than the queue
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": []}}}}, 400),
)


def test_who_fails_fails_alone(served):
    with neighbours(served):
        for more, status in FAULTS:
            answer = served.post("/v1/completions", ask(0, **more))
            assert answer.status_code == status, answer.text
            assert answer.json()["error"]["message"]
    assert_free(served)


def test_out_of_blocks_is_only_slower(served):
    before = served.backend.load().preemptions
    with neighbours(served):
        many = served.post("/v1/completions", ask(0, prompt=[PROMPTS[0]] * 8, max_tokens=64))
        assert len(set(texts(many))) == 1
    assert served.backend.load().preemptions > before
    assert_free(served)


def test_who_leaves_in_the_middle_frees_everything(served):
    data = json.dumps(ask(0, max_tokens=200, stream=True)).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    with neighbours(served):
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", served.port)) as wire:
                wire.sendall(head.encode() + b"\r\n\r\n" + data)
                while b"text" not in wire.recv(1 << 16):
                    pass
    assert_free(served)


def test_json_is_json(served):
    schema = {
        "type": "object", "properties": {"sum": {"enum": [1, 2]}}, "required": ["sum"], "additionalProperties": False
    }  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = ask(1, response_format=form, ignore_eos=False, n=2, temperature=1)
    choices = served.post("/v1/completions", body).json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["stop", "stop"]
    assert all(json.loads(choice["text"]).keys() == {"sum"} for choice in choices)


def test_metrics_tell_of_the_engine(served):
    told = served.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in told.splitlines() if not line.startswith("#"))
    layers = {line.split("layer=")[1] for line in lines if line.startswith("labkit_expert_tokens_total")}
    assert len(layers) == 6
    sums = [float(value) for line, value in lines.items() if line.startswith("labkit_expert_tokens_total")]
    assert sum(sums) > 0
    assert math.isclose(sum(sums) / 6, round(sum(sums) / 6))
    assert float(lines["labkit_kv_blocks"]) == 40


def test_a_killed_worker_costs_only_time(served):
    pid, restarts = served.backend.pid, served.backend.health().restarts
    with neighbours(served):
        while served.backend.load().running < 4:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 20
        while served.get("/ready").status_code == 200 and time.monotonic() < end:
            time.sleep(0.005)
        assert served.get("/health").status_code == 200
    assert served.backend.pid != pid
    assert served.get("/health").json()["restarts"] == restarts + 1
    assert f"labkit_backend_restarts_total {restarts + 1}.0" in served.get("/metrics").text
    assert_free(served)


def test_the_command_prints_lines_that_work_and_ends_well():
    command = [sys.executable, "-m", "labkit.course.cli", "serve", "--port", "0", "--drain-seconds", "20"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**environment, "COLUMNS": "200"}
    )
    try:
        first = server.stdout.readline()
        assert first.startswith("serving four-domains on http://127.0.0.1:"), first + server.stderr.read()
        lines = [server.stdout.readline() for _ in range(2)]
        said = [
            subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment).stdout
            for line in lines
            if line.startswith("python ") or subprocess.run(["which", "curl"], capture_output=True).returncode == 0
        ]
        assert said[-1].strip()
        if len(said) == 2:
            assert json.loads(said[0])["choices"][0]["text"].strip() == said[1].strip()
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=60)
        assert (server.returncode, out) == (0, "ended; every answer was finished\n")
        assert "loading four-domains: reading the weights" in err
    finally:
        server.kill()
