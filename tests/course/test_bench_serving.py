"""`labkit bench serving`: both engines on the same requests, told, written down, refused where it makes no sense."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from typer.testing import CliRunner

from labkit.course import cli
from labkit.course.bench_serving import line
from labkit.serve.race import Run, our_engine, ours, shape, workload
from labkit.serve.scheduler.simulate import Spread

CPU = torch.device("cpu")


def test_both_engines_answer_the_same_requests_and_all_is_written(tmp_path):
    told = CliRunner().invoke(
        cli.app, ["bench", "serving", "--together", "3", "--device", "cpu", "--out", str(tmp_path)]
    )
    assert told.exit_code == 0, told.output
    report = json.loads((tmp_path / "serving.json").read_text("utf-8"))
    mine, their = report["runs"]
    assert (mine["name"], their["name"]) == ("labkit", "transformers")
    work = workload(12, shape(CPU).vocab_size, 0, shrink=16)
    for run in report["runs"]:
        assert run["tokens"] == sum(output for _, output in work)
        assert (len(run["ttft"]), len(run["gaps"])) == (12, run["tokens"] - 12)
        assert run["ttft"] == sorted(run["ttft"])
        assert 0 < run["ttft"][0] <= run["ttft"][-1] < run["seconds"]
        assert run["tokens_per_second"] == run["tokens"] / run["seconds"]
    ratio = mine["tokens_per_second"] / their["tokens_per_second"]
    assert f"3 at a time: {ratio:.2f} × transformers'" in told.output
    assert ("(LOSS)" in told.output) == (ratio < 1)


def test_never_more_inside_than_asked():
    config, inside = shape(CPU), []
    engine = our_engine(config, CPU, torch.float32, 8)
    engine.observers.append(lambda report: inside.append(report.load.running + report.load.waiting))
    ours(engine, workload(9, config.vocab_size, shrink=32), 2)
    assert max(inside) == 2
    engine.check()


def test_a_run_in_words():
    run = Run.of("labkit", 2, 10.0, 12.0, [10.0, 10.5], [[11.0, 11.1, 11.5], [11.0]])
    assert (run.tokens, run.tokens_per_second, run.ttft) == (4, 2.0, (0.5, 1.0))
    assert run.gaps == pytest.approx((0.1, 0.4))
    assert line(run) == (
        "labkit, 2 at a time: 4 tokens in 2.00 s, 2 a second; first token 500 / 1000 ms (median, p99), between tokens "
        "100.0 / 400.0 / 400.0 ms (median, p99, longest)"
    )
    assert [Spread(Counter((1.0, 2.0, 3.0))).at(share) for share in (0.01, 1 / 3, 0.34, 1.0)] == [1.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serving", "moe"], "serving is measured alone; leave out moe"),
        (["moe", "--together", "4"], "--together is for serving alone"),
        (["serving", "--together", "0", "--device", "cpu"], "together is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, words):
    told = CliRunner().invoke(cli.app, ["bench", *arguments])
    assert told.exit_code
    assert words in str(told.exception)
