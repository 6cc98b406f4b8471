"""What the bench tells: verdicts with their losses, faults of ours, JSON, the figure, and the command around it all."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from labkit.course import cli
from labkit.kernels import bench
from labkit.kernels.bench import machine, table, topk
from labkit.kernels.bench.calls import BOTH, FORWARD
from labkit.kernels.bench.result import LEFT_OUT
from labkit.show.benchmark import race


def result(ours=1.0, other=2.0, **changed):
    measured = (
        bench.Measured("labkit", (ours,) * 3, {"output": 1e-3, "x": 2e-3}, 2**20),
        bench.Measured("other", (0.9 * other, other, 1.1 * other), {"output": 1e-3}),
    )
    values = {
        "subject": "moe", "mode": BOTH, "shape": {"name": "s", "T": 4}, "dtype": "bfloat16", "load": 1.5, "flops": 100,
        "bytes": 10, "saved": 2**20, "flop_rate": 1e3, "byte_rate": 1e3, "interpreted": False, "measured": measured,
    }  # fmt: skip
    return bench.Result(**{**values, **changed})


def test_a_verdict_is_ours_beside_the_best_of_those_who_are_right():
    ahead, loss = result().verdict(), result(ours=2.04).verdict()
    assert (ahead.other, ahead.ratio, ahead.word) == ("other", 2.0, "ahead")
    assert (round(loss.ratio, 2), loss.word) == (0.98, "LOSS, within the spread")
    assert result(ours=4.0).verdict().word == "LOSS"
    cheat = bench.Measured("cheat", (0.1,) * 3, {"output": 0.5})
    lost = bench.Measured("lost", (0.1,) * 3, {"output": math.nan})
    both = result(measured=(*result().measured, cheat, lost))
    assert both.verdict() == ahead
    assert "cheat (WRONG)" in [row[0] for row in table.rows(both)]
    assert result(interpreted=True).verdict() is None
    assert result(measured=result().measured[:1]).verdict() is None


def test_the_floor_is_the_longer_of_computing_and_moving():
    assert result().floor == pytest.approx(0.1)
    assert result(bytes=1000).floor == pytest.approx(1.0)
    assert result(flop_rate=None).floor is None
    assert table.rows(result(bytes=500))[1][3] == "50%"


def test_a_fault_of_ours_is_told():
    wrong = bench.Measured("labkit", (1.0,), {"output": 1e-3, "down": 0.5})
    assert result().fault() == ""
    assert result(measured=(wrong,)).fault() == "wrong: down is off by 5.0e-01"
    assert "labkit is wrong: down is off by 5.0e-01" in table.lines(result(measured=(wrong,)))
    assert result(absent=(bench.Absent("labkit", "why"),)).fault() == "not measured: why"
    assert result(absent=(bench.Absent("labkit", LEFT_OUT),)).fault() == ""


def test_the_table_shows_losses_and_who_is_missing():
    lost = result(ours=4.0, absent=(bench.Absent("third", "no such package"),))
    told = table.lines(lost)
    assert "third is not measured: no such package" in told
    assert any(line.startswith("LOSS: labkit is 0.50 times as fast as other, the best of the others") for line in told)
    ((title, rows),) = table.summary([result(), lost])
    assert title == "moe, forward + backward, ms (percentage of the ceiling)"
    assert rows[0] == ("", "s", "s")
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["third"] == ("–", "–")
    assert by_name["best of the others / ours"] == ("2.00 ahead", "0.50 LOSS")
    assert len({len(row) for row in rows}) == 1


def test_a_report_is_json_that_anyone_reads(tmp_path):
    odd = bench.Measured("odd", (1.0,), {"output": math.nan})
    report = bench.Report({"device": "x"}, {"rounds": 3}, [result(), result(measured=(odd,))])
    report.write(tmp_path / "new" / "bench.json")
    told = json.loads((tmp_path / "new" / "bench.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert told["results"][0]["verdict"]["ratio"] == 2.0
    assert told["results"][0]["measured"][1]["seconds"] == [1.8, 2.0, 2.2]
    assert told["results"][1]["measured"][0]["errors"] == {"output": "nan"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bench.json"]


def test_the_figure_has_a_panel_for_each_shape_and_words_for_all_of_it():
    panels = {"one": {"labkit": (2.0, 1.9, 2.1), "other": (3.0, 2.9, 3.1)}, "two": {"labkit": (90.0, 80.0, 95.0)}}
    picture = race(panels, {"one": 1.5, "two": None}, "moe")
    assert [ax.get_title(loc="left") for ax in picture.axes] == ["one", "two"]
    assert picture.alt == ("moe. one: labkit 2.00 ms, other 3.00 ms; the ceiling allows 1.50 ms. two: labkit 90.0 ms.")
    assert "not measured" in [text.get_text() for text in picture.axes[1].texts]
    with pytest.raises(ValueError, match="no times"):
        race({"one": {}}, {}, "moe")
    with pytest.raises(ValueError, match="times of one that are not positive"):
        race({"one": {"a": (0.0, 0.0, 0.0)}}, {}, "moe")


# The command


def test_the_command_measures_and_writes_what_it_says(tmp_path):
    out = tmp_path / "out"
    arguments = ["--rounds", "1", "--device", "cpu", "--out", str(out), "--without", "transformers eager"]
    arguments += ["--without", "transformers grouped_mm"]
    told = CliRunner().invoke(cli.app, ["bench", "decode", "attention", *arguments])
    assert told.exit_code == 0, told.output
    report = json.loads((out / "bench.json").read_text("utf-8"))
    assert [(each["subject"], each["mode"]) for each in report["results"]] == [
        ("decode", FORWARD), ("attention", FORWARD), ("attention", BOTH),
    ]  # fmt: skip
    for each in report["results"]:
        errors = {one["name"]: max(one["errors"].values()) for one in each["measured"]}
        assert "labkit" in errors
        assert len(errors) > 1
        assert max(errors.values()) < 1e-5, errors
    assert {path.suffix for path in out.glob("attention-both.*")} == {".png", ".svg"}
    assert report["machine"]["versions"]["torch"] == torch.__version__
    assert report["settings"]["interpreted"] is True
    for words in (
        "times mean nothing",
        "torch grouped_mm, compiled is not measured",
        "eager is not measured: left out",
        f"wrote {out}",
    ):
        assert words in told.output
    assert "LOSS" not in told.output


def test_the_command_fails_when_ours_does(tmp_path, monkeypatch):
    monkeypatch.setitem(topk.CONTESTANTS, "labkit", lambda case: lambda: topk.plain(-case.logits_TE, case.shape.K))
    arguments = ["bench", "topk", "--direction", "forward", "--rounds", "1", "--device", "cpu", "--out", str(tmp_path)]
    told = CliRunner().invoke(cli.app, arguments)
    assert told.exit_code == 1
    assert "topk tiny, forward: labkit is wrong: weights is off by" in told.output


@pytest.mark.parametrize(
    ("told", "status", "found"),
    [
        ("580.95.05, 700.00, 700.00, 1980, [N/A]\n", 0, ["580.95.05", 700.0, 700.0, 1980.0, None]),
        ("580.95.05, 700.00\n", 0, [None] * 5),
        ("no devices were found", 6, [None] * 5),
    ],
)
def test_the_driver_tells_what_it_knows_and_the_rest_is_none(monkeypatch, told, status, found):
    asked = []

    def run(command, **_):
        asked.append(command)
        return SimpleNamespace(stdout=told, returncode=status)

    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(machine.subprocess, "run", run)
    assert list(machine._driver("abc").values()) == found
    assert asked[0][-2:] == ["-i", "GPU-abc"]


def test_without_a_driver_nothing_is_invented(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert set(machine._driver("").values()) == {None}
    assert machine.describe(torch.device("cpu"))["power_limit"] is None
