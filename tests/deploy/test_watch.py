"""A real Prometheus reads a real server; an alert fires, reaches a webhook through Alertmanager, and clears."""

from __future__ import annotations

import contextlib
import re
import threading

import pytest
from dashboard_reading import ANNOTATION, QUERIES, VARIABLES, filled
from deploy_names import of_the_fleet
from scripted_backend import TEXT, Scripted
from server_thread import Served
from watching import Alertmanager, Hook, Prometheus, until

LABELS = {
    "labkit_fleet_requests_total": '{replica="r1",outcome="answered"}',
    "labkit_fleet_retries_total": '{reason="died"}',
    "labkit_fleet_rollouts_total": '{outcome="done"}',
}
pytestmark = pytest.mark.prometheus


def asking(served: Served, stop: threading.Event) -> None:
    """Requests of all kinds, until told to stop."""
    body = {"model": "scripted", "prompt": [5] * 20, "max_tokens": 8, "ignore_eos": True}
    for number in range(10**6):
        if stop.wait(0.02):
            return
        served.post("/v1/completions", body | {"seed": number, "stream": bool(number % 2)})


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A server under requests, Prometheus, Alertmanager and the hook."""
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(Served(Scripted(), TEXT))
        hook = stack.enter_context(Hook())
        hook.metrics = "".join(f"{name}{LABELS.get(name, '')} 1\n" for name in sorted(of_the_fleet()))
        hook.targets = [
            {
                "targets": [f"127.0.0.1:{served.port}"],
                "labels": {"job": "labkit-prod", "version": "v3", "replica": "r1"},
            },
            {"targets": [f"127.0.0.1:{hook.port}"], "labels": {"job": "labkit-prod-fleet"}},
        ]
        alertmanager = stack.enter_context(Alertmanager(tmp_path_factory.mktemp("alertmanager"), hook))
        prometheus = stack.enter_context(Prometheus(tmp_path_factory.mktemp("prometheus"), hook, alertmanager))
        stop = threading.Event()
        thread = threading.Thread(target=asking, args=(served, stop))
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        until(lambda: prometheus.ask("job:labkit_errors:ratio_rate5m >= 0"))
        yield served, prometheus, alertmanager, hook


def test_each_replica_is_a_target_of_its_alias(watched):
    served, prometheus, *_ = watched
    (found,) = prometheus.ask("labkit_ready")
    assert found["metric"] | {"__name__": ""} == {
        "__name__": "", "instance": f"127.0.0.1:{served.port}", "job": "labkit-prod",
        "replica": "r1", "version": "v3",
    }  # fmt: skip
    assert [each["value"][1] for each in prometheus.ask('up{job="labkit-prod"}')] == ["1", "1"]


def test_no_rule_fails(watched):
    _, prometheus, *_ = watched
    groups = prometheus.get("/api/v1/rules")["data"]["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}


@pytest.mark.parametrize(("panel", "query", "legend"), QUERIES)
def test_a_query_of_the_dashboard_finds_something(watched, panel, query, legend):
    _, prometheus, *_ = watched
    found = until(lambda: prometheus.ask(filled(query)), 5)
    assert {value for each in found for value in each["value"][1:]} - {"NaN", "+Inf"}, panel
    for name in re.findall(r"{{(\w+)}}", legend):
        assert all(name in each["metric"] for each in found), f"{panel}: {name}"


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_of_the_dashboard_has_values(watched, name):
    _, prometheus, *_ = watched
    series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", VARIABLES[name]).groups()
    values = prometheus.get(f"/api/v1/label/{label}/values", **{"match[]": filled(series)})["data"]
    assert values == {"job": ["labkit-prod"], "layer": ["0", "1"]}.get(name, values)
    assert values


def test_an_alert_fires_is_sent_and_clears(watched):
    served, prometheus, alertmanager, hook = watched
    assert prometheus.firing() == set()
    served.on_loop(served.backend.die)
    until(lambda: {"LabkitNoReadyReplica", "LabkitErrorsBurnFast"} <= prometheus.firing())
    assert {each["metric"]["alertname"] for each in prometheus.ask(filled(ANNOTATION))} >= {"LabkitNoReadyReplica"}
    until(lambda: "LabkitErrorsBurnFast" in alertmanager.held_back())
    until(lambda: "LabkitNoReadyReplica" in hook.told("/page", "firing"))
    served.on_loop(served.backend.come_back)
    until(lambda: "LabkitNoReadyReplica" not in prometheus.firing())
    until(lambda: "LabkitNoReadyReplica" in hook.told("/page", "resolved"))
