"""Lab 15: references against theory, stores and Prometheus, and what its harness for fleets says."""

from __future__ import annotations

import errno
import math
import random
import re
import subprocess
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from labkit.course import labs
from labkit.course.fleeted import Fleeted, missing, small_disk
from labkit.course.visits import Visit, counted, judged, visit
from labkit.serve.registry import open_registry

EXERCISES = {exercise.name: exercise for exercise in labs.lab("15").exercises}
PART = {name: exercise.reference for name, exercise in EXERCISES.items()}


# ------------------------------------------------------------------------------------------------- what references do


def test_each_pair_is_drawn_as_often_as_another():
    draw, load = random.Random(0), [0, 1, 2, 3]
    chosen = Counter(PART["choose_two"](load, [True] * 4, draw.random(), draw.random()) for _ in range(12_000))
    assert [round(6 * chosen[at] / 12_000, 1) for at in range(4)] == [3.0, 2.0, 1.0, 0.0]


def test_owners_are_even_stay_and_never_get_more_than_their_room():
    names = [f"r{n}" for n in range(8)]
    prefixes = [f"prompt {n}".encode() for n in range(2000)]
    idle = dict.fromkeys(names, 0)
    first = {prefix: PART["owner"](prefix, idle, 1e9) for prefix in prefixes}
    assert all(abs(count - 250) < 60 for count in Counter(first.values()).values())
    gone = dict.fromkeys(names[:-1], 0)
    assert all(PART["owner"](prefix, gone, 1e9) == who for prefix, who in first.items() if who != names[-1])
    load = dict.fromkeys(names, 0)
    for n in range(400):
        load[PART["owner"](prefixes[n % 5], load, 1.25)] += 1
        assert max(load.values()) <= math.ceil(1.25 * (n + 1) / 8)


def test_no_name_that_is_let_in_leads_out(tmp_path):
    parts = ["a", "..", ".", "", "b.c", "...", "..d"]
    draw = random.Random(1)
    for _ in range(500):
        name = "/".join(draw.choices(parts, k=draw.randint(1, 4)))
        try:
            path = PART["safe_path"](str(tmp_path), name)
        except ValueError:
            continue
        assert (tmp_path / name).resolve().is_relative_to(tmp_path.resolve())
        assert path == str((tmp_path / name).resolve())


@pytest.mark.prometheus
@pytest.mark.parametrize("rule", [(12, 3, 4.0), (6, 1, 8.0)])
def test_pages_at_the_minutes_at_which_prometheus_does(tmp_path, rule):
    draw = random.Random(2)
    asked = [draw.randint(1, 40) for _ in range(50)]
    failed = [sum(draw.random() < (0.5 if 20 <= m < 27 else 0.04) for _ in range(n)) for m, n in enumerate(asked)]
    over = [f"sum_over_time(failed[{60 * w - 30}s]) / sum_over_time(asked[{60 * w - 30}s])" for w in rule[:2]]
    expr = " and ".join(f"({ratio}) > {rule[2] * 0.02}" for ratio in over)
    silent = [{"expr": expr, "eval_time": f"{minute}m", "exp_samples": []} for minute in range(50)]
    series = [{"series": n, "values": " ".join(map(str, c))} for n, c in (("failed", failed), ("asked", asked))]
    (tmp_path / "t.yml").write_text(
        yaml.safe_dump({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": silent}]})
    )
    done = subprocess.run(["promtool", "test", "rules", tmp_path / "t.yml"], capture_output=True, text=True)
    theirs = {int(minute) for minute in re.findall(r"time: (\d+)m,", done.stdout + done.stderr)}
    mine = PART["pages"](failed, asked, 0.02, [rule])
    assert 0 < len(theirs) < 50
    assert theirs == {minute for minute, fires in enumerate(mine) if fires}


# ---------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize("name", ["safe_path", "pages"])
def test_every_reference_agrees_with_its_oracle_on_seeds_that_no_check_draws(name):
    exercise = EXERCISES[name]
    assert exercise.against_oracle(exercise.reference, seeds=(11, 12)) >= 2


@pytest.mark.parametrize(
    ("name", "mistake"), [("safe_path", "believed"), ("pages", "long_alone"), ("etag", "hex_joined")]
)
def test_the_oracle_notices(name, mistake):
    exercise = EXERCISES[name]
    wrong = next(found.like for found in exercise.mistakes if found.name == mistake)
    with pytest.raises(AssertionError, match="differs from"):
        exercise.against_oracle(wrong, seeds=(1,))


# ---------------------------------------------------------------------------------------------------------- visitors


class Moody(BaseHTTPRequestHandler):
    """Answers, refuses, breaks off with a reason, or ends in the middle, as the prompt says."""

    protocol_version = "HTTP/1.0"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        how = next(how for how in ("answered", "refused", "broken", "lost", "cut") if how in body)
        if how == "cut":
            self.connection.close()
            return
        self.send_response(429 if how == "refused" else 200)
        self.end_headers()
        ends = {"answered": "data: [DONE]\n\n", "broken": 'data: {"error": {"message": "gone"}}\n\n', "lost": ""}
        text = '{"error": {"message": "full"}}' if how == "refused" else 'data: {"choices": []}\n\n' + ends[how]
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def moody():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_every_visitor_is_counted_as_what_he_was(moody):
    hows, done = ("answered", "refused", "broken", "lost", "cut", "answered"), []
    visits = visit(
        moody, [{"prompt": how, "stream": True} for how in hows], 200.0, during=lambda: done.append(1), at=0.0
    )
    assert done == [1]
    assert counted(visits) == {"sent": 6, "answered": 2, "refused": 1, "broken": 1, "lost": 2}
    assert [each.says for each in visits[1:3]] == ["429: full", "gone"]
    assert all(each.sent <= each.first <= each.end for each in visits)


def test_visitors_come_as_long_as_the_accident_lasts(moody):
    bodies = [{"prompt": "answered", "stream": True}] * 300
    visits = visit(moody, bodies, 50.0, during=lambda: time.sleep(0.3), at=0.1, as_long=True)
    assert 1 < len(visits) < 300
    assert len(visit(moody, bodies[:5], 50.0, during=lambda: None, at=0.0)) == 5


def test_what_goes_wrong_in_an_accident_is_told(moody):
    with pytest.raises(ZeroDivisionError):
        visit(moody, [{"prompt": "answered", "stream": True}], 10.0, during=lambda: 1 / 0)


@pytest.mark.parametrize(
    ("status", "text", "how"),
    [
        (200, '{"choices": [1]}', "answered"),
        (200, '{"choices": []}', "lost"),
        (502, "<html>", "lost"),
        (200, "", "lost"),
    ],
)
def test_whole_answers_are_judged_too(status, text, how):
    assert judged(status, text, streams=False)[0] == how


def test_nobody_is_counted_twice():
    assert sum(counted([Visit(0, 0, 1, "lost")]).values()) == 2  # sent, and lost


# ------------------------------------------------------------------------------------------------------------ the fleet


def test_a_full_disk_keeps_what_was_fetched_and_shows_nothing(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(random.Random(0).randbytes(3_000_000))
    registry = open_registry(str(tmp_path / "store"))
    registry.push("tiny", model)
    with small_disk(1_000_000) as short, pytest.raises(OSError, match="full") as full:
        registry.pull("tiny", "v1", tmp_path / "cache")
    assert full.value.errno == errno.ENOSPC
    assert not list((tmp_path / "cache" / "tiny").glob("v1*"))
    with small_disk(10**9) as roomy:
        folder = registry.pull("tiny", "v1", tmp_path / "cache")
    assert short.written == 1_000_000
    assert short.written + roomy.written == 3_000_000
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


@pytest.mark.skipif(bool(missing()), reason="no Ray here")
def test_a_fleet_that_cannot_start_says_so(tmp_path):
    fleet = Fleeted(str(tmp_path / "store"), "nobody@prod", cache=str(tmp_path), log=tmp_path / "log")
    with pytest.raises(RuntimeError, match="has ended with 1"):
        fleet.wait()
    fleet.close()
