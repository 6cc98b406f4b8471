"""A real Prometheus reads a real fleet: its replica dies, somebody would be woken, it comes back, the alert clears.

Then the fleet's own process is killed, and nothing of it stays.
"""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from deploy_names import ROOT
from watching import Alertmanager, Hook, Prometheus, until

from labkit.course.fleeted import Fleeted, missing
from labkit.serve.fleet import cluster
from labkit.serve.fleet.drill import ask
from labkit.serve.registry import open_registry

pytestmark = [pytest.mark.prometheus, pytest.mark.skipif(bool(missing()), reason="no Ray here")]
NAME = "four-domains"
BODY = {"model": NAME, "prompt": "one and one", "max_tokens": 8}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """One replica of the course's model, so that a death leaves none."""
    place = tmp_path_factory.mktemp("fleet")
    registry = open_registry(str(place / "store"))
    version = registry.push(NAME, ROOT / "data" / "checkpoints" / NAME)
    registry.alias(NAME, "prod", version.id)
    made = Fleeted(str(place / "store"), f"{NAME}@prod", cache=str(place / "cache"), log=place / "log", replicas=1)
    made.wait()
    yield made
    made.close()


def test_an_alert_of_a_fleet_fires_is_sent_and_clears(fleet, tmp_path: Path):
    (tmp_path / "alertmanager").mkdir()
    (tmp_path / "prometheus").mkdir()
    with (
        Hook() as hook,
        Alertmanager(tmp_path / "alertmanager", hook) as alertmanager,
        Prometheus(tmp_path / "prometheus", f"{fleet.url}/targets", alertmanager) as prometheus,
    ):
        until(lambda: len(prometheus.ask('up{job="labkit"} == 1')) == 2)
        (ready,) = until(lambda: prometheus.ask("labkit_ready"))
        (replica,) = fleet.replicas()
        assert (ready["metric"]["replica"], ready["metric"]["version"]) == (replica.id, "v1")
        assert ask(fleet.url, BODY)["outcome"] == "answered"
        until(lambda: [each["value"][1] for each in prometheus.ask("labkit_fleet_replicas_wanted")] == ["1"])
        assert prometheus.firing() == set()
        fleet.kill(replica.id)
        until(lambda: "LabkitNoReadyReplica" in prometheus.firing(), 60)
        until(lambda: "LabkitNoReadyReplica" in hook.told("/page", "firing"))
        until(lambda: "LabkitNoReadyReplica" not in prometheus.firing(), 90)
        until(lambda: "LabkitNoReadyReplica" in hook.told("/page", "resolved"))
        (another,) = fleet.replicas()
        assert another.id != replica.id
        until(lambda: [each["value"][1] for each in prometheus.ask("labkit_fleet_replica_deaths_total")] == ["1"])
        assert ask(fleet.url, BODY)["outcome"] == "answered"


def belonging(pid: int) -> list[int]:
    """The processes that a fleet of this process started: each knows its folder, from its words or its environment."""
    mark, found = f"{cluster.PLACE}/lk{pid}-".encode(), []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (each / "environ").read_bytes() + (each / "cmdline").read_bytes():
                found.append(int(each.name))
        except OSError:
            continue
    return found


def listens(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as wire:
        return wire.connect_ex((host, int(port))) == 0


def test_nothing_stays_of_a_fleet_whose_process_is_killed(fleet):
    pid, shared = fleet.pid, set(os.listdir("/dev/shm"))
    assert len(belonging(pid)) > 5, "Ray, its helpers, the front and the replica"
    assert listens(fleet.url)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not belonging(pid), 180)  # two of Ray's helpers first try to tell its dead head, a minute or longer
    until(lambda: not listens(fleet.url))
    assert set(os.listdir("/dev/shm")) <= shared
    fleet.close()  # the process is waited for
    cluster.forget_the_dead()  # as the next fleet does when it starts
    assert not list(Path(cluster.PLACE).glob(f"lk{pid}-*"))
