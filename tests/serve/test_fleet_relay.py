"""Requests through the fleet, with replicas that answer, refuse, die early and die late: no Ray here."""

from __future__ import annotations

import asyncio
import json

import pytest

from labkit.serve.fleet.ledger import Ledger, targets
from labkit.serve.fleet.plan import Plan
from labkit.serve.fleet.policies import Asked, policy
from labkit.serve.fleet.relay import Lost, Relay
from labkit.serve.fleet.seats import Member, Seats, asked_of

SCOPE = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
JSON = [(b"content-type", b"application/json"), (b"content-length", b"2")]
EVENTS = [(b"content-type", b"text/event-stream")]


def member(id, version="v1"):
    return Member(id, 1, "here", "m", version, f"here:{id}")


class Play:
    """Replicas that do what is written: a list of steps for each visit, a step being a piece or an error."""

    def __init__(self, script, ids="ab", retries=2, wait=0.2, rule="round_robin"):
        self.script, self.visits, self.closed = {id: list(steps) for id, steps in script.items()}, [], 0
        self.seats = Seats(policy(rule))
        self.seats.seat(member(id) for id in ids)
        self.ledger = Ledger(self.seats, lambda: 2)
        self.relay = Relay(self.seats, self.ledger, self.ask, retries, wait)

    async def ask(self, id, scope, body):
        self.visits.append(id)
        try:
            for step in self.script[id].pop(0):
                if isinstance(step, Exception):
                    raise step
                yield (id, *step) if len(step) == 2 else step
        finally:
            self.closed += 1

    def run(self):
        sent = []

        async def send(message):
            sent.append(message)

        asyncio.run(self.relay(dict(SCOPE), b"{}", Asked(), send))
        start, *bodies = sent
        assert start["type"] == "http.response.start"
        assert [one.get("more_body", False) for one in bodies] == [True] * (len(bodies) - 1) + [False]
        assert not any(self.seats.under_way(id) for id in "abc")
        assert self.closed == len(self.visits)
        return start["status"], b"".join(one["body"] for one in bodies), dict(start["headers"])

    def counted(self, name):
        return [line for line in self.ledger.text().decode().splitlines() if line.startswith(name)]


def good(*parts, headers=JSON):
    return [(200, headers), *((part,) for part in parts)]


def died():
    return Lost("ActorDiedError", dead=True)


def test_an_answer_comes_from_the_replica_that_is_named():
    play = Play({"a": [good(b"{", b"}")]})
    status, body, headers = play.run()
    assert (status, body, headers[b"x-labkit-replica"]) == (200, b"{}", b"a")
    assert play.counted("labkit_fleet_requests_total") == [
        'labkit_fleet_requests_total{outcome="answered",replica="a"} 1.0'
    ]


@pytest.mark.parametrize("before", [[], [(200, JSON)], [(200, JSON), (b"half",)], [(200, EVENTS)]])
def test_a_request_whose_replica_dies_is_sent_to_another(before):
    play = Play({"a": [[*before, died()]], "b": [good(b"{}")]})
    assert play.run()[:2] == (200, b"{}")
    assert play.visits == ["a", "b"]
    assert [one.id for one in play.seats.members] == ["b"]
    assert 'labkit_fleet_retries_total{reason="died"} 1.0' in play.counted("labkit_fleet_retries_total")


def test_a_stream_that_has_begun_ends_with_an_error_and_without_done():
    play = Play({"a": [[(200, EVENTS), (b"data: {}\n\n",), died()]], "b": [good(b"{}")]})
    status, body, _ = play.run()
    first, last = body.decode().strip().split("\n\n")
    assert (status, first, play.visits) == (200, "data: {}", ["a"])
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "replica_lost"
    assert 'outcome="broken"' in play.counted("labkit_fleet_requests_total")[0]


def test_a_request_that_kills_is_not_handed_on_for_ever():
    play = Play({id: [[died()]] for id in "abc"}, ids="abc", retries=1)
    status, body, _ = play.run()
    assert (status, json.loads(body)["error"]["code"]) == (502, "replicas_lost")
    assert len(set(play.visits)) == len(play.visits) == 2
    assert {one.id for one in play.seats.members} == set("abc") - set(play.visits)


def test_one_that_cannot_be_reached_is_asked_again_later_but_not_now():
    play = Play({"a": [[Lost("ActorUnavailableError", dead=False)]], "b": [good(b"{}")]})
    assert play.run()[0] == 200
    assert [one.id for one in play.seats.members] == ["a", "b"]


def test_back_pressure_passes_through_and_a_replica_that_is_not_ready_is_passed_over():
    retry = [*JSON, (b"retry-after", b"7")]
    play = Play({"a": [[(429, retry), (b"{}",)]]})
    status, _, headers = play.run()
    assert (status, headers[b"retry-after"]) == (429, b"7")
    play = Play({"a": [[(503, retry), (b"{}",)]], "b": [good(b"{}")]})
    assert play.run()[0] == 200
    play = Play({"a": [[(503, retry), (b"{}",)]]}, ids="a")
    assert play.run()[0] == 503, "there is nobody else to ask"


@pytest.mark.parametrize("before", [[], [(200, EVENTS), (b"data: {}\n\n",)]])
def test_a_fault_of_ours_is_an_error_in_the_right_shape(before):
    play = Play({"a": [[*before, ZeroDivisionError()]]})
    status, body, _ = play.run()
    assert status == (200 if before else 500)
    told = body.decode().strip().split("\n\n")[-1].removeprefix("data: ")
    assert json.loads(told)["error"]["code"] == "internal"


def test_without_a_replica_the_answer_is_503_and_says_when_to_come_again():
    status, body, headers = Play({}, ids="", wait=0.1).run()
    assert (status, json.loads(body)["error"]["code"]) == (503, "no_replica")
    assert headers[b"retry-after"] == b"1"


def test_a_request_waits_for_a_replica_that_comes():
    play = Play({"c": [good(b"{}")]}, ids="", wait=5)

    async def come():
        await asyncio.sleep(0.1)
        play.seats.seat([member("c")])

    async def both():
        sent = []

        async def send(message):
            sent.append(message)

        await asyncio.gather(come(), play.relay(dict(SCOPE), b"{}", Asked(), send))
        return sent[0]["status"]

    assert asyncio.run(both()) == 200


def test_a_client_who_leaves_is_counted_and_its_replica_is_told():
    play = Play({"a": [[(200, EVENTS), (b"data: {}\n\n",)]]})

    async def leave():
        async def send(message):
            if message["type"] == "http.response.body":
                await asyncio.sleep(60)

        task = asyncio.create_task(play.relay(dict(SCOPE), b"{}", Asked(), send))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    assert play.closed == 1
    assert play.seats.under_way("a") == 0
    assert 'outcome="left"' in play.counted("labkit_fleet_requests_total")[0]


def test_the_dead_stay_dead_and_a_busy_one_is_avoided():
    seats = Seats(policy("power_of_two"))
    seats.seat([member("a"), member("b")])
    first = seats.take(Asked())
    assert {seats.take(Asked()), first} == {"a", "b"}
    seats.bury("a")
    seats.seat([member("a"), member("b")])
    assert [one.id for one in seats.members] == ["b"]
    assert seats.take(Asked(), {"b"}) == "b", "better the same again than nobody"


def test_prompts_are_read_for_the_policy_whatever_comes():
    chat = [{"role": "user", "content": "hello"}]
    assert b"hello" in asked_of(json.dumps({"messages": chat}).encode()).prompt
    for body in (b"", b"[]", b'{"prompt": 3}', b'{"prompt": [1, 2], "max_tokens": true}', b"\xff", b"[" * 9999):
        assert asked_of(body).max_tokens == 0


def test_targets_are_what_prometheus_understands():
    told = targets([member("a"), member("b", "v2")], "front:80")
    assert [one["targets"] for one in told] == [["here:a"], ["here:b"], ["front:80"]]
    assert told[1]["labels"] == {"job": "labkit", "replica": "b", "model": "m", "version": "v2"}
    assert told[2]["labels"] == {"job": "labkit-fleet"}, "prometheus.yml takes the ending off"
    assert all(isinstance(value, str) for one in told for value in one["labels"].values())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"replicas": 0}, "replicas is 0"),
        ({"most": 1}, "most is 1"),
        ({"policy": "best"}, "choose from round_robin"),
        ({"drain_seconds": 0}, "drain_seconds is 0"),
        ({"replica": 3}, "a fleet has no replica"),
        ({"model": "m"}, "a version or an alias"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Plan.read({"store": "s", "model": "m@prod", **given})


def test_a_plan_travels_as_data():
    plan = Plan("s", "m@prod", replicas=3, most=5)
    assert Plan.read(json.loads(json.dumps(plan.told()))) == plan
