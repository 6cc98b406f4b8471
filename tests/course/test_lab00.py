"""Lab 00 draws the map of the course: the map must agree with the labs that exist and with the claims."""

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
