"""check, hint and reveal: what the learner gets back, what is kept, what is said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from labkit.course import check as words
from labkit.course import labs, progress
from labkit.course.attempt import Case
from labkit.course.check import NotPassed, check, hint, reveal
from labkit.course.exercise import PRACTICE_SEEDS, Exercise, Oracle
from labkit.course.judge import Mistake
from labkit.course.labs import Lab
from labkit.course.question import Choice, Question


def double(x):
    """Twice x."""
    return 2 * x


def cases(seed):
    generator = torch.Generator().manual_seed(seed)
    return [Case((torch.randn(n, generator=generator),), label=f"{n} numbers") for n in (1, 3)]


DOUBLE = Exercise(
    "99.double",
    "Double",
    1,
    2,
    1,
    double,
    cases,
    ("think", "of two", "2 * x"),
    (Mistake("square", "That is the square.", like=lambda x: x * x),),
    Oracle("torch.add", lambda x: torch.add(x, x)),
)
QUESTION = Question("One?", (Choice("yes", "Right.", right=True), Choice("no", "Look again.")))
LAB = Lab("99", "double", "Doubling", 5, "any", (), (DOUBLE,), (QUESTION,) * 4)


@pytest.fixture(autouse=True)
def lab99(monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    monkeypatch.delenv("LABKIT_GRADE", raising=False)
    real = labs.lab
    monkeypatch.setattr(labs, "lab", lambda number: LAB if str(number) == "99" else real(number))


def wrong(x):
    return x * x


def blank(x):
    raise NotImplementedError


def mine(x):
    return x + x


def test_passing_goes_on_with_the_learners_own(capsys):
    assert check("99.double", mine) is mine
    said = capsys.readouterr().out
    assert "passed" in said
    assert "Agrees with torch.add on 4 of them" in said
    assert progress.read()["exercises"]["99.double"]["status"] == "passed"


def test_failing_goes_on_with_the_reference_and_says_so(capsys):
    assert check("99.double", wrong) is double
    said = capsys.readouterr().out
    assert "That is the square." in said
    assert "1 numbers" in said
    assert "goes on with the reference" in said
    assert progress.read()["exercises"]["99.double"] == {"status": "failed", "diagnoses": {"square": 1}}


def test_blank_is_not_attempted(capsys):
    assert check("99.double", blank) is double
    assert "not attempted" in capsys.readouterr().out


def test_running_the_check_twice_does_not_pass_the_reference_off_as_an_answer(capsys):
    assert check("99.double", check("99.double", blank)) is double
    assert "this is the reference" in capsys.readouterr().out
    assert progress.read()["exercises"]["99.double"]["status"] == "blank"


def test_a_loop_that_is_stopped_goes_on_with_the_reference(capsys):
    def endless(x):
        raise KeyboardInterrupt

    assert check("99.double", endless) is double
    assert "Does a loop never end?" in capsys.readouterr().out


def test_the_same_function_again_is_said_to_be_the_same(capsys):
    check("99.double", mine)
    capsys.readouterr()

    def fresh(x):
        return x + x

    check("99.double", fresh)
    assert "very function of the last check" not in capsys.readouterr().out
    check("99.double", fresh)
    assert "very function of the last check" in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer", [lambda x: x.numpy(), lambda x: np.float64(1), lambda x: x.bfloat16(), lambda x: 10**9999, print]
)
def test_a_check_always_ends_in_a_card(answer, capsys):
    assert check("99.double", answer) is double
    assert "✗ 99.double" in capsys.readouterr().out


def test_an_oracle_that_cannot_be_asked_stops_nothing(monkeypatch, capsys):
    def gone(x):
        raise ImportError("no transformers")

    asked = dataclasses.replace(DOUBLE, oracle=Oracle("their double", gone))
    monkeypatch.setattr(labs, "find", lambda id: asked)

    def right(x):
        return 2 * x

    assert check("99.double", right) is right
    assert "their double did not work out" in capsys.readouterr().out


def test_an_oracle_whose_package_is_not_there_says_how_to_get_it(monkeypatch, capsys):
    asked = dataclasses.replace(DOUBLE, oracle=Oracle("their double", lambda x: 2 * x, needs="no_such_package"))
    monkeypatch.setattr(labs, "find", lambda id: asked)

    def right(x):
        return 2 * x

    assert check("99.double", right) is right
    said = capsys.readouterr().out
    assert "Not compared with their double" in said
    assert "pip install no_such_package" in said


def test_passed_stays_passed():
    check("99.double", mine)
    check("99.double", wrong)
    assert progress.read()["exercises"]["99.double"]["status"] == "passed"


def test_grading_raises_and_draws_other_seeds(monkeypatch):
    monkeypatch.setenv("LABKIT_GRADE", "1")
    seen = [case.args[0] for case in DOUBLE.inputs(PRACTICE_SEEDS)]

    def remembers(x):
        return 2 * x if any(torch.equal(x, old) for old in seen) else x

    assert check("99.double", mine) is mine
    for answer in (wrong, blank, remembers):
        with pytest.raises(NotPassed, match=r"99\.double"):
            check("99.double", answer)


def test_hints_come_one_by_one_and_the_last_stays(capsys):
    for expected in (["1. think"], ["1. think", "2. of two"], ["2. of two", "3. 2 * x"], ["3. 2 * x"]):
        hint("99.double")
        said = capsys.readouterr().out
        assert all(line in said for line in expected)
    hint("99.double", 1)
    assert "of two" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="give 1, 2 or 3"):
        hint("99.double", 4)
    assert progress.hints_taken("99.double") == 3


def test_reveal_shows_source_but_not_while_grading(monkeypatch, capsys):
    reveal("99.double")
    assert "return 2 * x" in capsys.readouterr().out
    monkeypatch.setenv("LABKIT_GRADE", "1")
    with pytest.raises(NotPassed, match="not shown"):
        reveal("99.double")


@pytest.mark.parametrize("call", [hint, reveal, lambda id: check(id, mine)])
def test_unknown_exercises_are_named(call):
    with pytest.raises(ValueError, match=r"did you mean '99\.double'"):
        call("99.duoble")
    with pytest.raises(ValueError, match="there is no lab '77'"):
        call("77.double")
    for name in ("top_k", lambda x: x):
        with pytest.raises(ValueError, match="is no exercise id; write"):
            call(name)


def test_check_wants_the_function_itself():
    with pytest.raises(ValueError, match="give the function itself"):
        check("99.double", 3)


def test_disagreement_with_the_oracle_is_found():
    with pytest.raises(AssertionError, match=r"differs from torch\.add"):
        DOUBLE.against_oracle(wrong)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": "double"}, "NN.name"),
        ({"id": "9.double"}, "NN.name"),
        ({"difficulty": 4}, "difficulty 4"),
        ({"minutes": 0}, "0 minutes"),
        ({"points": 0}, "0 points"),
        ({"hints": ("one",)}, "1 hints"),
    ],
)
def test_exercises_check_themselves(change, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(DOUBLE, **change)


def test_labs_check_themselves():
    with pytest.raises(ValueError, match="has 0 recap questions"):
        Lab("99", "x", "X", 1, "any", (), (DOUBLE,), ())
    with pytest.raises(ValueError, match="ids start with 98"):
        Lab("98", "x", "X", 1, "any", (), (DOUBLE,), (QUESTION,) * 4)


@pytest.mark.parametrize(
    ("other", "kept"),
    [({}, 1), ({"label": "again"}, 1), ({"needs_grad": True}, 2), ({"init": (1,)}, 2)],
    ids=["the same", "another label", "gradients", "another object"],
)
def test_a_case_is_dropped_only_if_it_asks_the_same_once_more(other, kept):
    case = Case((torch.tensor([1.0, float("nan")]),), label="first")
    twins = dataclasses.replace(DOUBLE, cases=lambda seed: [case, dataclasses.replace(case, **other)])
    assert len(twins.inputs((0, 1))) == kept


@pytest.mark.parametrize(
    ("had", "has"),
    [(float("nan"), 0.0), (0.0, float("nan")), (float("inf"), torch.finfo(torch.float32).max)],
)
def test_cleaning_the_input_in_place_is_a_change(had, has):
    def cleaning(x):
        x.fill_(has)
        return torch.zeros(1)

    zero = dataclasses.replace(
        DOUBLE, reference=lambda x: torch.zeros(1), cases=lambda seed: [Case((torch.tensor([had]),))], oracle=None
    )
    assert zero.test(cleaning).diagnosis == "changes_input"
    assert zero.test(zero.reference).passed


def test_cards_are_mimes_in_a_kernel(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    check("99.double", wrong)
    assert shown[0]["application/vnd.labkit.verdict+json"] == {
        "exercise": "99.double",
        "status": "failed",
        "diagnosis": "square",
    }
    assert {"text/plain", "text/html"} <= shown[0].keys()


def test_describe_shortens_and_rounds():
    assert words.describe(torch.tensor([1.23456789])) == "[1.235]"
    assert words.describe(torch.zeros(100)).startswith("shape (100,)")
    assert len(words.describe("x " * 1000)) <= 240
