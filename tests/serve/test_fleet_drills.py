"""A real fleet of two replicas, hurt while it is under load: every request is counted, and none may be lost.

One Ray serves all tests here; each leaves two replicas of version v1 behind.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
import socket
import threading
import time
import urllib.request
from dataclasses import replace

import pytest

pytest.importorskip("ray")

from labkit.core.runtime import data_path
from labkit.serve.engine import Engine, SamplingParams
from labkit.serve.fleet.drill import Load, drawn, under_load
from labkit.serve.fleet.fleet import Fleet, RolloutRefused
from labkit.serve.registry import open_registry
from labkit.serve.registry.errors import Damaged

NAME, TOKENS = "four-domains", 12
PROMPTS = (
    "def add(a, b):",
    "The sum of two and",
    "12 + 30 =",
    "import os\n",
    "name: Ada; city:",
    "for i in range(",
    "A list is",
)
PATIENCE = 180.0


def until(true, words):
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, words
        time.sleep(0.1)


def louder(folder, into):
    """The same model with another embedding: other answers."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, into)
    tensors = load_file(into / "model.safetensors")
    name = next(key for key in tensors if "embed" in key)
    tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    return into


def answers(folder):
    """What a single engine answers, greedily."""
    engine = Engine.from_pretrained(folder)
    done = engine.generate(list(PROMPTS), SamplingParams(max_tokens=TOKENS, temperature=0))
    return [one.text for one in done]


class Drill:
    """A fleet, its registry, and what its versions should answer."""

    def __init__(self, place):
        own = data_path(f"checkpoints/{NAME}")
        self.store = place / "store"
        self.registry = open_registry(str(self.store))
        self.folders = {"v1": own, "v2": louder(own, place / "louder")}
        for folder in self.folders.values():
            self.registry.push(NAME, folder)
        self.registry.alias(NAME, "prod", "v1")
        self.right = {version: answers(folder) for version, folder in self.folders.items()}
        self.said = []
        self.fleet = Fleet(
            self.store, f"{NAME}@prod", cache=str(place / "cache"), policy="round_robin", wait_seconds=PATIENCE,
            drain_seconds=PATIENCE,
            on_progress=lambda share, what: self.said.append((share, what)),
        )  # fmt: skip

    def ids(self):
        return {one.id: one for one in self.fleet.replicas()}

    def load(self, rate=5.0, seconds=4.0, stream_share=0.4, seed=0):
        requests = drawn(PROMPTS, rate, seconds, stream_share, seed, max_tokens=TOKENS, model=NAME)
        return Load(self.fleet.url, requests)

    def check(self, count, versions=("v1",)):
        """Every answer is that of a single engine of one of these versions, and nothing was lost."""
        assert not count.lost
        assert not count.failed
        assert count.sent == count.answered + sum(count.refused.values()) + sum(count.broken.values())
        for answer in count.answers:
            right = [self.right[version][answer.prompt] for version in versions]
            if answer.outcome == "answered":
                assert answer.text in right
            elif answer.outcome == "broken":
                assert any(text.startswith(answer.text.rstrip("\ufffd")) for text in right)

    def settle(self):
        self.registry.alias(NAME, "prod", "v1")
        self.fleet.rollout("prod")
        until(lambda: len(self.fleet.replicas()) == 2, "two replicas")


@pytest.fixture(scope="module")
def drill(tmp_path_factory):
    made = Drill(tmp_path_factory.mktemp("drill"))
    with made.fleet:
        yield made
        made.fleet.drain()


@pytest.fixture(autouse=True)
def settled(drill):
    yield
    drill.settle()


def get(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


def test_two_replicas_answer_as_one_engine(drill):
    assert drill.said[-1] == (1.0, "ready")
    assert [share for share, _ in drill.said] == sorted(share for share, _ in drill.said)
    count = under_load(drill.fleet.url, 6.0, 2.0, PROMPTS, 0.5, max_tokens=TOKENS)
    drill.check(count)
    assert count.answered == count.sent > 5
    assert set(count.by_replica()) == set(drill.ids()), "round robin uses both"
    assert drill.fleet.status()["versions"] == ["v1"]


def test_prometheus_finds_every_replica_and_the_fleet(drill):
    told = json.loads(get(f"{drill.fleet.url}/targets"))
    replicas = [one for one in told if one["labels"]["job"] == "labkit"]
    assert {one["labels"]["replica"] for one in replicas} == set(drill.ids())
    assert all(one["labels"]["version"] == "v1" and one["labels"]["model"] == NAME for one in replicas)
    for one in replicas:
        assert "\nlabkit_ready 1.0\n" in get(f"http://{one['targets'][0]}/metrics")
    fleet = get(f"http://{told[-1]['targets'][0]}/metrics")
    assert "\nlabkit_fleet_replicas_ready 2.0\n" in fleet
    assert "\nlabkit_fleet_replicas_wanted 2.0\n" in fleet
    assert json.loads(get(f"{drill.fleet.url}/ready"))["replicas"] == 2


def test_a_wrong_request_is_refused_as_by_one_server(drill):
    told = under_load(drill.fleet.url, 20.0, 0.2, PROMPTS, max_tokens=10**9, seed=3)
    assert told.sent == sum(told.refused.values()) > 0
    told = under_load(drill.fleet.url, 20.0, 0.2, PROMPTS, model="another", seed=3)
    assert set(told.refused) == {"model_not_found"}


def test_a_killed_replica_costs_no_request_that_was_not_streaming(drill):
    before = drill.ids()
    load = drill.load(seconds=5)
    until(lambda: load.done >= 4, "answers")
    victim = next(iter(before))
    drill.fleet.slow(victim, 0.02)  # so that it has something under way
    until(lambda: drill.ids()[victim].in_flight, "something to lose")
    drill.fleet.kill(victim)
    count = load.count()
    drill.check(count)
    assert not count.refused
    assert set(count.broken) <= {"replica_lost"}
    assert all(answer.stream for answer in count.of("broken"))
    until(lambda: len(drill.ids()) == 2, "a new replica")
    assert victim not in drill.ids()
    assert "labkit_fleet_replica_deaths_total 0.0" not in get(f"{drill.fleet.url}/metrics")
    with pytest.raises(ValueError, match="there is no replica"):
        drill.fleet.kill(victim)


def spoil(drill, version):
    """Alter one byte of a shard that only this version has."""
    own = {shard.sha256 for shard in drill.registry.version(NAME, "v1").files}
    shard = next(shard for shard in drill.registry.version(NAME, version).files if shard.sha256 not in own)
    path = next(path for path in drill.store.rglob(f"*{shard.sha256[2:]}*") if path.is_file())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    return path, data


def test_a_corrupt_shard_and_a_full_disk_are_refused_and_the_old_version_goes_on(drill):
    before = drill.ids()
    path, data = spoil(drill, "v2")
    drill.registry.alias(NAME, "prod", "v2")
    load = drill.load(seconds=2)
    with pytest.raises(RolloutRefused, match="v1 goes on") as refused:
        drill.fleet.rollout()
    assert isinstance(refused.value.__cause__, Damaged)
    drill.check(load.count())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    load = drill.load(seconds=2, seed=1)
    drill.fleet.fill(10_000)
    with pytest.raises(RolloutRefused, match=r"space|disk|full") as refused:
        drill.fleet.rollout()
    drill.fleet.fill(None)
    assert refused.value.__cause__.errno == errno.ENOSPC
    drill.check(load.count())
    assert drill.ids().keys() == before.keys(), "nobody was touched"
    assert 'labkit_fleet_rollouts_total{outcome="refused"} 2.0' in get(f"{drill.fleet.url}/metrics")


def deaths(drill) -> float:
    """Replicas that the fleet has found dead so far."""
    return float(re.search(r"^labkit_fleet_replica_deaths_total (\S+)$", get(f"{drill.fleet.url}/metrics"), re.M)[1])


def test_a_version_that_comes_whole_and_does_not_start_is_taken_back(drill, tmp_path):
    shutil.copytree(drill.folders["v1"], tmp_path / "deeper")
    config = json.loads((tmp_path / "deeper/config.json").read_text())
    (tmp_path / "deeper/config.json").write_text(json.dumps(config | {"num_hidden_layers": 99}))
    drill.registry.alias(NAME, "prod", drill.registry.push(NAME, tmp_path / "deeper").id)
    with drill.load(rate=1.0, seconds=PATIENCE, seed=7) as load:
        with pytest.raises(RuntimeError, match=r"v3 does not start: .*; v1 is brought back"):
            drill.fleet.rollout()
        until(lambda: len(drill.ids()) == 2, "two replicas of v1")
    count = load.count()
    drill.check(count)
    assert count.answered == count.sent, str(count)
    assert drill.fleet.version == "v1"
    assert {one.version for one in drill.ids().values()} == {"v1"}
    assert 'labkit_fleet_rollouts_total{outcome="failed"} 1.0' in get(f"{drill.fleet.url}/metrics")


@contextlib.contextmanager
def looking(drill):
    """How many replicas are ready, again and again."""
    seen, over = [], threading.Event()

    def look():
        while not over.wait(0.1):
            seen.append(json.loads(get(f"{drill.fleet.url}/ready"))["replicas"])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_a_new_version_comes_and_goes_without_a_lost_request(drill):
    before, died = set(drill.ids()), deaths(drill)
    drill.registry.alias(NAME, "prod", "v2")
    with drill.load(rate=1.5, seconds=PATIENCE, seed=2) as load, looking(drill) as ready:
        assert drill.fleet.rollout() == "v2"
    assert min(ready) == 1, "an old one ends first"
    count = load.count()
    drill.check(count, ("v1", "v2"))
    assert count.answered == count.sent, str(count)
    assert before.isdisjoint(drill.ids())
    assert {one.version for one in drill.ids().values()} == {"v2"}
    drill.registry.rollback(NAME, "prod")
    drill.fleet.plan = replace(drill.fleet.plan, surge=1)
    with drill.load(rate=1.5, seconds=PATIENCE, seed=3) as load, looking(drill) as ready:
        assert drill.fleet.rollout() == "v1"
    drill.fleet.plan = replace(drill.fleet.plan, surge=0)
    assert deaths(drill) == died, "who is replaced has not died"
    assert min(ready) == 2, "with room for another there is never one less"
    count = load.count()
    drill.check(count, ("v1", "v2"))
    assert count.answered == count.sent, str(count)
    drill.check(under_load(drill.fleet.url, 5.0, 1.0, PROMPTS, max_tokens=TOKENS))


def test_a_slow_replica_is_avoided_by_two_choices_and_not_by_turns(drill):
    victim = sorted(drill.ids())[0]
    shares = {}
    for policy in ("round_robin", "power_of_two"):
        drill.fleet.route(policy)
        drill.fleet.slow(victim, 0.8)
        count = drill.load(rate=4, seconds=7, stream_share=0, seed=4).count()
        drill.fleet.slow(victim, 0.0)
        drill.check(count)
        shares[policy] = count.by_replica()[victim] / count.answered
    drill.fleet.route("round_robin")
    assert abs(shares["round_robin"] - 0.5) < 0.1
    assert shares["power_of_two"] < shares["round_robin"] - 0.1


def test_who_leaves_frees_the_replica(drill):
    for one in drill.ids():
        drill.fleet.slow(one, 0.2)
    body = json.dumps({"model": NAME, "prompt": PROMPTS[0], "max_tokens": 200, "stream": True, "ignore_eos": True})
    host, port = drill.fleet.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as wire:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        wire.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        until(lambda: b"data: " in wire.recv(4096), "a first event")
        assert sum(one.running for one in drill.fleet.replicas()) == 1
    until(lambda: not any(one.running or one.in_flight for one in drill.fleet.replicas()), "it is let go")
    for one in drill.ids():
        drill.fleet.slow(one, 0.0)


def test_fewer_replicas_drain_and_more_come_when_requests_wait(drill):
    died = deaths(drill)
    load = drill.load(rate=4, seconds=3, seed=5)
    drill.fleet.scale(1)
    count = load.count()
    drill.check(count)
    assert count.answered == count.sent, str(count)
    (left,) = drill.ids()
    assert deaths(drill) == died, "who is let go has not died"
    drill.fleet.slow(left, 0.1)
    drill.fleet.scale(1, most=2)
    with drill.load(rate=6, seconds=PATIENCE, stream_share=0, seed=6) as load:
        until(lambda: len(drill.ids()) == 2, "another one comes")
    drill.check(load.count())
    drill.fleet.slow(left, 0.0)
    drill.fleet.scale(2)
