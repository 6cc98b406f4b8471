"""Lab 00 draws the map of the course: the map must agree with the labs that exist and with the claims."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from labkit.core.config import ModelConfig
from labkit.core.cost import fits, inference_memory
from labkit.core.presets import PRESETS
from labkit.core.runtime import data_path
from labkit.course import labs
from labkit.course.claims import claims
from labkit.show.widgets.planner import CONTEXTS, plan

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


DENSE = ModelConfig(
    name="dense 7B", vocab_size=32_000, num_layers=32, d_model=4096, num_heads=32, num_kv_heads=32, head_dim=128,
    moe=None, num_dense_layers=32, d_dense=11_008,
)  # fmt: skip


def test_answers_to_the_planner_questions():
    plans = [plan(model, "A100-80GB") for model in PRESETS]
    assert max((p for p in plans if p.serve_fit), key=lambda p: p.params).model == "qwen3-30b-a3b"
    larger = [p for p in plans if p.params > PRESETS_PARAMS["qwen3-30b-a3b"]]
    assert min(larger, key=lambda p: p.params).model == "mixtral-8x7b"
    assert fitting(8) == (False, True)
    assert fitting(7) == (False, False)
    assert fitting(9) == (True, True)
    outgrown = [c for c in CONTEXTS for s in [plan("olmoe-1b-7b", "T4", context=c).serving] if s.kv_cache > s.weights]
    assert outgrown[0] == 131_072


PRESETS_PARAMS = {name: plan(name, "T4").params for name in PRESETS}


def fitting(count: int) -> tuple[bool, bool]:
    each = (plan("olmoe-1b-7b", "T4", count=count, checkpointing=way).train_fit for way in (False, True))
    return tuple(bool(fit) for fit in each)


def test_last_recap_question_says_what_the_arithmetic_says():
    def served(model: ModelConfig, bits: int) -> bool:
        return bool(fits(inference_memory(model, 1, 4096, bits).total, "T4"))

    assert not served(DENSE, 16)
    assert served(DENSE, 4)
    assert served(PRESETS["olmoe-1b-7b"], 16)
