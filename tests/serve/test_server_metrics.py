"""What Prometheus reads is well-formed, and true."""

from __future__ import annotations

import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families
from scripted_backend import TEXT, Scripted
from server_thread import Served

from labkit.serve.engine import Delta
from labkit.serve.server.metrics import Metrics
from labkit.serve.server.settings import Settings


def values(text: str) -> dict[tuple, float]:
    """Every sample by its name and labels."""
    families = text_string_to_metric_families(text)
    return {(each.name, *sorted(each.labels.items())): each.value for family in families for each in family.samples}


@pytest.fixture(scope="module")
def told():
    """What is told after a few requests."""
    with Served(Scripted(), TEXT, Settings(keys=("k",))) as served:
        key = {"authorization": "Bearer k"}
        body = {"model": "scripted", "prompt": [[5] * 20, [6] * 20], "max_tokens": 4, "seed": 1, "ignore_eos": True}
        assert served.post("/v1/completions", body | {"n": 2}, headers=key).status_code == 200
        assert served.post("/v1/completions", body | {"stream": True}, headers=key).status_code == 200
        served.post("/v1/completions", {}, headers=key)
        served.post("/v1/completions", body)
        served.get("/a/path/of/mine", headers=key)
        answer = served.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return answer.text


def test_requests_are_counted_by_route_and_status(told):
    got = values(told)

    def requests(code, route):
        return got[("labkit_requests_total", ("code", code), ("route", route))]

    assert requests("200", "/v1/completions") == 2
    assert requests("400", "/v1/completions") == 1
    assert requests("401", "/v1/completions") == 1
    assert requests("404", "other") == 1
    assert got[("labkit_requests_in_flight",)] == 0
    assert "of/mine" not in told


def test_tokens_and_times_are_counted(told):
    got = values(told)
    assert got[("labkit_prompt_tokens_total",)] == 80
    assert got[("labkit_cached_prompt_tokens_total",)] == 64
    assert got[("labkit_generated_tokens_total",)] == 24
    assert got[("labkit_answers_total", ("finish", "length"))] == 6
    assert got[("labkit_time_to_first_token_seconds_count",)] == 6
    assert got[("labkit_inter_token_seconds_count",)] == 18
    assert got[("labkit_answer_seconds_count",)] == 6


def test_the_engine_is_seen(told):
    got = values(told)
    assert got[("labkit_kv_blocks",)] == got[("labkit_kv_blocks_free",)] == 256
    assert got[("labkit_kv_usage_ratio",)] == 0
    assert got[("labkit_preemptions_total",)] == 3
    assert got[("labkit_ready",)] == 1
    assert got[("labkit_backend_restarts_total",)] == 0
    assert got[("labkit_sequences_running",)] == got[("labkit_sequences_waiting",)] == 0
    steps = got[("labkit_engine_steps_total",)]
    assert got[("labkit_step_seconds_count",)] == steps
    assert got[("labkit_expert_tokens_total", ("expert", "0"), ("layer", "0"))] == steps
    assert got[("labkit_expert_tokens_total", ("expert", "1"), ("layer", "1"))] == 2 * steps
    assert got[("labkit_expert_tokens_total", ("expert", "3"), ("layer", "1"))] == 0


@pytest.mark.prometheus
def test_promtool_finds_nothing_wrong(told):
    checked = subprocess.run(["promtool", "check", "metrics"], input=told, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_while_the_model_loads_there_is_something_to_read():
    with Served(Scripted(load_seconds=60), TEXT, wait=False) as served:
        got = values(served.get("/metrics").text)
        assert got[("labkit_ready",)] == 0
        assert ("labkit_kv_blocks",) not in got


def test_latencies_are_those_of_the_clock():
    now = [0.0]
    metrics = Metrics(Scripted(), clock=lambda: now[0])
    watch = metrics.watch(5)
    for at, ids in ((2.0, (1,)), (2.5, ()), (3.0, (1, 2)), (3.25, (3,))):
        now[0] = at
        watch.saw(0, Delta("1", token_ids=ids))
    watch.saw(0, Delta("1", finish_reason="stop"))
    got = values(metrics.text().decode())
    assert got[("labkit_time_to_first_token_seconds_sum",)] == 2.0
    assert got[("labkit_inter_token_seconds_sum",)] == pytest.approx(0.5 + 0.25)
    assert got[("labkit_answer_seconds_sum",)] == 3.25
