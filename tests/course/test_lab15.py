"""Lab 15: references against theory, stores and Prometheus, and what its harness for fleets says."""

from __future__ import annotations

import math
import random
import re
import subprocess
from collections import Counter

import pytest
import yaml

from labkit.course import labs
from labkit.course.fleeted import Fleeted, missing
from labkit.course.grade import grade
from labkit.course.release import answer_id, grade_id, render, solved_notebook

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


# ------------------------------------------------------------------------------------------------------------- grading


@pytest.mark.sandbox
def test_lab_15_is_graded_in_the_sandbox(tmp_path):
    """Mappings, bytes and errors must travel into it and back; one wrong answer is found among right ones."""
    notebook = solved_notebook("15")
    for cell in notebook.cells:
        if grade_id(cell) == answer_id("15.safe_path"):
            cell.source = cell.source.replace('("", ".", "..")', '("..",)')
    path = tmp_path / "mine.ipynb"
    path.write_text(render(notebook), "utf-8")
    wrong = {graded.exercise: graded.diagnosis for graded in grade(path).exercises if graded.status != "passed"}
    assert list(wrong) == ["15.safe_path"]
    assert wrong["15.safe_path"]


# ------------------------------------------------------------------------------------------------------------ the fleet


@pytest.mark.skipif(bool(missing()), reason="no Ray here")
def test_a_fleet_that_cannot_start_says_so(tmp_path):
    fleet = Fleeted(str(tmp_path / "store"), "nobody@prod", cache=str(tmp_path), log=tmp_path / "log")
    with pytest.raises(RuntimeError, match="has ended with 1"):
        fleet.wait()
    fleet.close()
