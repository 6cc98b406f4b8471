"""Predictions, recaps, claims and progress: what is kept, what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from labkit.course import claims as book
from labkit.course import progress
from labkit.course.claims import Measured, claim, claims, ledger, overall, read_runs
from labkit.course.predict import predict
from labkit.course.question import Choice, Question
from labkit.course.recap import recap


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def ask(**more):
    return predict("99.share", "What share?", 0, 100, "%", **more)


def test_a_prediction_is_kept_and_shown_beside_the_measurement(capsys):
    prediction = ask(guess=30)
    prediction.against(44.0, 40.0, 48.0)
    said = capsys.readouterr().out
    assert "You predicted 30 %, off by 14." in said
    assert "Measured: 44 % (from 40 to 48)." in said
    with pytest.raises(ValueError, match="has been measured, so yours stays 30"):
        ask(guess=44)
    assert ask(guess=30).guess == 30
    ask().start_over()
    assert ask(guess=44).guess == 44


def test_no_prediction_is_said(capsys):
    ask().against(5)
    assert "You made no prediction" in capsys.readouterr().out
    with pytest.raises(ValueError, match="this one goes without"):
        ask(guess=5)


def test_what_was_calculated_is_not_called_measured(capsys):
    ask().against(4.744e-05, calculated=True)
    assert "Calculated: 0.00004744 %." in capsys.readouterr().out


@pytest.mark.parametrize("guess", [101, -1, float("nan"), "many"])
def test_predictions_outside_the_range_are_refused(guess):
    with pytest.raises(ValueError, match="from 0 to 100"):
        ask(guess=guess)


def test_bad_ranges_and_measurements():
    with pytest.raises(ValueError, match="smaller one first"):
        predict("99.x", "?", 1, 1)
    with pytest.raises(ValueError, match="finite"):
        ask().against(float("inf"))


def test_the_slider_moves_in_steps_and_its_button_keeps_the_guess():
    from labkit.course.predict import _slider

    box = _slider(predict("99.ways", "How many ways?", 0, 5), 1)
    slider, _, button = box.children[1].children
    assert slider.value == 2
    slider.value = 4
    assert predict("99.ways", "How many ways?", 0, 5).guess is None
    button.click()
    assert predict("99.ways", "How many ways?", 0, 5).guess == 4


QUESTION = Question("Which?", (Choice("one", "No: think of two."), Choice("two", "Yes.", right=True)))


def test_questions_answer_every_choice():
    assert QUESTION.answer("B").right
    assert "No: think of two." in str(QUESTION.card(1, "a"))
    assert "b) two" in str(QUESTION.card(1, None))
    for letter in ("c", "", "ab", 1):
        with pytest.raises(ValueError, match="give one of a, b"):
            QUESTION.answer(letter)
    with pytest.raises(ValueError, match="exactly one"):
        Question("?", (Choice("a", "", True), Choice("b", "", True)))
    with pytest.raises(ValueError, match="two to six"):
        Question("?", (Choice("a", "", True),))


def test_recap_is_judged_and_kept(monkeypatch, capsys):
    from labkit.course import labs

    class Lab:
        number, questions = "99", (QUESTION, QUESTION)

    monkeypatch.setattr(labs, "lab", lambda number: Lab)
    recap("99")
    assert "b) two" in capsys.readouterr().out
    recap("99", "ab")
    assert progress.read()["recaps"]["99"] == {"answers": {"1": "a", "2": "b"}, "right": 1, "of": 2}
    with pytest.raises(ValueError, match="3 answers for 2 questions"):
        recap("99", "abc")
    from labkit.course.recap import _form

    _form("99", Lab.questions, 0).children[1].value = "b"
    assert progress.read()["recaps"]["99"]["right"] == 2


def test_there_are_fifteen_claims():
    assert list(claims()) == list(range(1, 16))
    assert all(entry.measures and entry.labs and entry.wording for entry in claims().values())


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [(95, 91, 96, "holds"), (80, 70, 89, "does not hold"), (90, 85, 95, "undecided"), (90, None, None, "holds")],
)
def test_verdicts_follow_the_whole_interval(value, low, high, verdict):
    measured = claim(1, value, low=low, high=high, measure="flops_saved", condition="a shape", runs=3)
    assert measured.verdict == verdict


def test_the_card_says_what_was_only_estimated(capsys):
    claim(6, 10.0, high=11.0, measure="train_16gb", condition="a formula", estimated=True)
    said = capsys.readouterr().out
    assert "Estimated: 10 GB (from 10 to 11), on a formula." in said
    assert "Measured" not in said


def test_at_most_is_the_other_way_round():
    measure = claims()[6].measure("train_16gb")
    assert [measure.verdict(v, v) for v in (10, 20)] == ["holds", "does not hold"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"number": 16}, "the claims are 1 to 15"),
        ({"measure": "speed"}, "name one of flops_saved, time_saved"),
        ({"measure": None}, "name one of"),
        ({"condition": " "}, "needs a condition"),
        ({"low": 95}, "must lie inside"),
        ({"value": float("nan")}, "must lie inside"),
        ({"runs": 0}, "0 runs"),
    ],
)
def test_bad_measurements_are_refused(arguments, says):
    values = {"number": 1, "value": 90.0, "measure": "flops_saved", "condition": "x", **arguments}
    with pytest.raises(ValueError, match=says):
        claim(values.pop("number"), values.pop("value"), **values)


def test_the_ledger_reads_runs(tmp_path):
    rows = [Measured(1, "flops_saved", v, v, v, 1, f"shape {v}") for v in (75.0, 95.0)]
    (tmp_path / "01.json").write_text(json.dumps({"claims": [row.__dict__ for row in rows]}))
    found = read_runs(tmp_path)
    assert found == {1: rows}
    assert overall(found[1]) == "holds under 1 of 2 conditions"
    assert "not measured yet" in str(ledger(found))
    (tmp_path / "02.json").write_text("{")
    with pytest.raises(ValueError, match=r"02\.json is no run"):
        read_runs(tmp_path)


def test_a_claims_file_with_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text("- {id: 1, wording: w, labs: [], measured_on: x, measures: [], colour: red}")
    with pytest.raises(ValueError, match="colour"):
        book.claims(path)


def test_damaged_progress_is_set_aside_not_lost(home):
    home.mkdir()
    (home / "progress.json").write_text("{not json")
    with pytest.warns(UserWarning, match="kept as"):
        assert progress.read()["exercises"] == {}
    assert (home / "progress.damaged.json").read_text() == "{not json"


def test_a_folder_that_cannot_be_written_warns_and_goes_on(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("LABKIT_HOME", str(blocked / "below"))
    with pytest.warns(UserWarning, match="progress is not saved"):
        progress.record("99.double", "passed")


def test_a_full_disk_leaves_the_old_file(monkeypatch, home):
    progress.record("99.double", "passed")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        progress.record("99.triple", "passed")
    assert "99.double" in progress.read()["exercises"]
    assert [path.name for path in Path(home).iterdir()] == ["progress.json"]
