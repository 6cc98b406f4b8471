"""The load generator against a server that answers, refuses, breaks off or falls silent, as it is asked to."""

from __future__ import annotations

import itertools
import json
import statistics
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from labkit.serve.fleet.drill import Load, drawn, in_turn, served, under_load

EVENT = 'data: {"choices": [{"text": "a"}]}\n\n'
GONE = {"error": {"message": "it has gone", "type": "server_error", "code": "replica_lost"}}
FULL = {"error": {"message": "all are busy", "type": "server_error", "code": None}}
SAID = {  # the prompt: a status and an answer
    "answered": (200, EVENT + "data: [DONE]\n\n"),
    "whole": (200, json.dumps({"choices": [{"text": "ab", "finish_reason": "stop"}]})),
    "refused": (429, json.dumps(FULL)),
    "full": (503, json.dumps(FULL)),
    "failed": (500, json.dumps(GONE)),
    "broken": (200, EVENT + f"data: {json.dumps(GONE)}\n\n"),
    "endless": (200, EVENT),
    "half": (200, json.dumps({"choices": [{"text": "a", "finish_reason": None}]})),
    "empty": (200, ""),
    "none": (200, '{"choices": []}'),
    "page": (502, "<html>"),
    "odd": (500, '{"error": "no"}'),
}


class Moody(BaseHTTPRequestHandler):
    """Answers as the prompt says; to "cut" it says nothing."""

    protocol_version = "HTTP/1.0"

    def do_GET(self):
        self.say(200, '{"data": [{"id": "moody"}]}')

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["prompt"] != "cut":
            self.say(*SAID[body["prompt"]])

    def say(self, status, text):
        self.send_response(status)
        self.send_header("x-labkit-replica", "r0")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def moody():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def asked(*prompts, stream=True):
    return in_turn([{"prompt": prompt, "stream": stream} for prompt in prompts], 100.0)


def test_every_request_is_counted_as_what_it_was(moody):
    count = Load(moody, asked("answered", "refused", "full", "failed", "broken", "endless", "cut")).count()
    assert str(count) == (
        "sent 7, answered 1, refused 2 (server_error 2), broken 1 (replica_lost 1), failed 1 (replica_lost 1), "
        "lost 2 (RemoteDisconnected 1, a stream without an end 1)"
    )
    assert [answer.prompt for answer in count.answers] == list(range(7))
    assert [answer.says for answer in count.answers[:5]] == ["", *["all are busy"] * 2, *["it has gone"] * 2]
    assert [answer.text for answer in count.of("broken")] == ["a"]
    assert {answer.replica for answer in count.answers} == {"r0", ""}
    assert all(0 <= answer.first <= answer.seconds for answer in count.answers)
    assert count.ttft.at(1) == count.of("answered")[0].first > 0
    assert count.total.at(0.5) == count.of("answered")[0].seconds


@pytest.mark.parametrize("prompt", ["half", "empty", "none", "page", "odd"])
def test_what_is_no_answer_is_lost(moody, prompt):
    (answer,) = Load(moody, asked(prompt, stream=False)).count().answers
    assert answer.outcome == "lost"
    assert answer.reason


def test_a_whole_answer_is_read(moody):
    (answer,) = Load(moody, asked("whole", stream=False)).count().answers
    assert (answer.outcome, answer.text, answer.stream) == ("answered", "ab", False)


def test_nobody_comes_after_the_block_and_a_moment_can_be_waited_for(moody):
    with Load(moody, in_turn([{"prompt": "answered", "stream": True}] * 1000, 50.0)) as load:
        assert 0.3 <= load.until(0.3) < 5
        assert load.until(0.1) >= 0.3, "what is over is not waited for"
    assert load.done == load.count().answered == load.count().sent
    assert 1 < load.done < 900


def test_requests_are_sent_when_they_are_due_whatever_became_of_the_others(moody, monkeypatch):
    monkeypatch.setitem(SAID, "slow", SAID["answered"])
    say = Moody.say
    monkeypatch.setattr(Moody, "say", lambda self, *told: (time.sleep(0.5), say(self, *told)))
    load = Load(moody, asked(*["slow"] * 20))
    assert load.count().answered == 20
    assert load.now < 5, "twenty times half a second, side by side"


def test_arrivals_are_a_poisson_process_and_the_same_each_time():
    requests = drawn(["a", "b"], 20.0, 200.0, 0.25, seed=1, model="m", max_tokens=3)
    assert requests == drawn(["a", "b"], 20.0, 200.0, 0.25, seed=1, model="m", max_tokens=3)
    gaps = [after.at - before.at for before, after in itertools.pairwise(requests)]
    assert statistics.mean(gaps) == pytest.approx(0.05, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.05, rel=0.1)
    assert statistics.mean(each.body["stream"] for each in requests) == pytest.approx(0.25, abs=0.03)
    assert all(each.body["prompt"] == "ab"[each.prompt] for each in requests)
    each = requests[0].body
    assert (each["model"], each["max_tokens"], each["temperature"]) == ("m", 3, 0)


def test_the_model_that_is_served_is_asked_for(moody):
    assert served(moody) == "moody"
    assert under_load(moody, 50.0, 0.2, ["answered"], 1.0).answered > 0


@pytest.mark.parametrize("given", [{"rate": 0.0}, {"seconds": 0.0}, {"stream_share": 2.0}, {"prompts": []}])
def test_what_cannot_be_drawn_is_refused(given):
    with pytest.raises(ValueError, match="above 0"):
        drawn(**{"prompts": ["a"], "rate": 1.0, "seconds": 1.0, "model": "m", **given})
    with pytest.raises(ValueError, match="above 0"):
        in_turn([{}], 0.0)
