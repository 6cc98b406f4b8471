"""Lab 00 draws the map of the course: the map must agree with the labs that exist and with the claims."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from labkit.core.runtime import data_path
from labkit.course import labs
from labkit.course.claims import claims

PARTS = yaml.safe_load(data_path("curriculum.yaml").read_text("utf-8"))
MAP = {lab["number"]: lab for part in PARTS for lab in part["labs"]}


def test_map_numbers_twenty_four_labs_in_order():
    listed = [lab["number"] for part in PARTS for lab in part["labs"]]
    assert listed == [f"{i:02d}" for i in range(24)]
    names = [lab["name"] for lab in MAP.values()]
    assert len(set(names)) == 24
    assert all(name.isidentifier() for name in names)
    assert all(lab["about"] for lab in MAP.values())


@pytest.mark.parametrize("number", labs.numbers())
def test_every_lab_stands_on_the_map_and_audits_what_the_ledger_says(number):
    lab = labs.lab(number)
    assert lab.name == MAP[number]["name"]
    assert lab.claims == tuple(one.id for one in claims().values() if number in one.labs)


def test_every_claim_is_audited_on_the_map():
    assert {number for one in claims().values() for number in one.labs} <= set(MAP)


def same_mistake():
    path = Path(__file__).parent.parent / "near_misses" / "lab00.py"
    spec = importlib.util.spec_from_file_location("near_misses_of_lab00", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [(id, answer, name) for id, rows in module.SAME_MISTAKE.items() for answer, name in rows]


@pytest.mark.parametrize(("id", "answer", "name"), same_mistake(), ids=lambda value: getattr(value, "__name__", None))
def test_a_mistake_is_known_by_its_name_however_it_is_written(id, answer, name):
    (exercise,) = (one for one in labs.lab("00").exercises if one.id == id)
    assert (exercise.test(answer).status, exercise.test(answer).diagnosis) == ("failed", name)


@pytest.mark.parametrize("reserve", [1.0, -0.1, 1.5])
def test_cards_with_an_impossible_reserve_must_be_refused(reserve):
    (exercise,) = (one for one in labs.lab("00").exercises if one.id == "00.gpus_needed")

    def careless(needed, gpu_memory, share=0.1):
        return 1 if share == reserve else exercise.reference(needed, gpu_memory, share)

    assert exercise.test(careless).diagnosis == "accepts_bad_input"
    assert not any("ValueError" in case.label for case in exercise.cases(0))


def test_no_last_hint_is_the_solution():
    for exercise in labs.lab("00").exercises:
        assert "return" not in exercise.hints[-1]
        assert "math.ceil(" not in exercise.hints[-1]
