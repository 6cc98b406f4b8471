"""Lab 11: references against labkit's own formats, against transformers' count of bytes, and what peers leave out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labkit.core.config import MoEConfig
from labkit.course import labs
from labkit.course.grade import grade
from labkit.course.labs import _11_cases as inputs
from labkit.course.release import answer_id, grade_id, render, solved_notebook
from labkit.course.weighed import built, first_word, weigh
from labkit.kernels import fp8, nf4, quant
from labkit.nn import MoE, quantize
from labkit.nn.quant.rooms import room_of

EXERCISES = {exercise.name: exercise for exercise in labs.lab("11").exercises}
PART = {name: exercise.reference for name, exercise in EXERCISES.items()}


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- what references do


@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (40, 128)])
def test_absmax_is_labkits(shape):
    w = normal(1, *shape)
    codes, largest = PART["absmax"](w)
    ours = quant.int8(w)
    assert torch.equal(codes, ours.codes)
    assert torch.equal(largest, ours.absmax)


def test_without_outliers_the_product_is_labkits():
    x, packed = normal(1, 9, 64), quant.int8(normal(2, 12, 64))
    found = PART["outlier_product"](x, packed.codes, packed.absmax, float("inf"))
    torch.testing.assert_close(found, quant.int8_product(x, packed), rtol=1e-5, atol=1e-5)


def test_a_huge_channel_costs_nothing_when_it_is_apart():
    x, packed = normal(1, 30, 64), quant.int8(normal(2, 12, 64))
    true = lambda x: x @ packed.dequantize().mT  # noqa: E731
    errors = []
    for factor in (1, 1000):
        x_large = x.clone()
        x_large[:, 3] *= factor
        x_large[0, 3] = 10.0 * factor
        found = PART["outlier_product"](x_large, packed.codes, packed.absmax, 6.0)
        errors.append((found - true(x_large)).square().mean().sqrt())
    assert errors[1] < 1.2 * errors[0] + 1e-3
    plain = PART["outlier_product"](x_large, packed.codes, packed.absmax, float("inf"))
    assert (plain - true(x_large)).square().mean().sqrt() > 10 * errors[1]


def test_nf4_is_labkits_bit_for_bit():
    w = normal(1, 16, 256)
    packed, largest = PART["nf4"](w, torch.tensor(nf4.LEVELS), 64)
    ours = nf4.nf4(w)
    assert torch.equal(packed, ours.codes)
    assert torch.equal(largest, ours.absmax)


@pytest.mark.parametrize("shape", [(128, 256), (130, 257), (3, 5)])
def test_fp8_is_labkits(shape):
    w = normal(1, *shape)
    codes, scale = PART["fp8_block"](w, 128)
    ours = fp8.fp8(w)
    assert torch.equal(codes.view(torch.uint8), ours.codes.view(torch.uint8))
    assert torch.equal(scale, ours.scale)


def test_bytes_are_those_of_the_report():
    box = nn.ModuleDict({"moe": MoE(MoEConfig(d_model=64, d_expert=32, num_experts=4, top_k=2))})
    weigh_it = lambda: PART["bytes_by_room"](box, lambda name: room_of(box, name))  # noqa: E731
    before = weigh_it()
    report = quantize(box, "int8")
    assert report.rooms == {room: (before[room], after) for room, after in weigh_it().items()}


def test_bytes_add_up_to_what_transformers_counts():
    transformers = pytest.importorskip("transformers")
    config = transformers.OlmoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = transformers.OlmoeForCausalLM(config)
    found = PART["bytes_by_room"](model, lambda name: room_of(model, name))
    assert sum(found.values()) == model.get_memory_footprint()


def test_a_budget_is_never_exceeded_and_hardly_ever_left():
    for seed in range(20):
        feature = normal(seed, 13 + seed)
        low, high, budget = 4.5, 8.125, 4.5 + 0.18 * seed
        chosen = PART["pick_precision"](feature, low, high, budget)
        cost = torch.where(chosen, high, low).mean().item()
        assert cost <= budget + 1e-6
        assert chosen.all() or cost + (high - low) / len(feature) > budget - 1e-6
        if chosen.any() and not chosen.all():
            assert feature[chosen].min() >= feature[~chosen].max()


# ---------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize("name", sorted(name for name, exercise in EXERCISES.items() if exercise.oracle))
def test_every_reference_agrees_with_its_oracle_on_seeds_that_no_check_draws(name):
    exercise = EXERCISES[name]
    assert exercise.against_oracle(exercise.reference, seeds=(11, 12)) >= 2


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("absmax", "truncates"),
        ("outlier_product", "outliers_in_scale"),
        ("nf4", "level_below"),
        ("fp8_block", "truncates"),
    ],
)
def test_the_oracle_notices(name, mistake):
    exercise = EXERCISES[name]
    wrong = next(found.like for found in exercise.mistakes if found.name == mistake)
    with pytest.raises(AssertionError, match="differs from"):
        exercise.against_oracle(wrong)


def test_modules_for_weighing_share_what_they_say():
    lines = next(case.args[0] for case in inputs.room_cases(0) if case.label.startswith("a view"))
    module = built(lines)
    whole, view = module.experts.all, module.attention.view
    assert view.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    assert [first_word(name) for name, _ in module.named_parameters()] == ["experts", "attention"]
    assert weigh(lambda module, room: dict.fromkeys(map(room, module._modules), 1), lines) == {
        "experts": 1,
        "attention": 1,
    }


# ------------------------------------------------------------------------------------------------ what others leave out


def test_bitsandbytes_in_transformers_still_leaves_experts_out(tmp_path):
    """The lab says so: should this fail, they are packed now, and section 5 has to be written anew."""
    pytest.importorskip("bitsandbytes")
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3MoeConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, moe_intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    four = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    load = transformers.AutoModelForCausalLM.from_pretrained
    rooms = [
        PART["bytes_by_room"](model, lambda name, model=model: room_of(model, name))
        for model in (
            load(tmp_path, dtype=torch.bfloat16),
            load(tmp_path, dtype=torch.bfloat16, quantization_config=four),
        )
    ]
    assert rooms[1]["experts"] == rooms[0]["experts"]
    assert rooms[1]["attention"] < rooms[0]["attention"]


# ------------------------------------------------------------------------------------------------------------- grading


@pytest.mark.sandbox
def test_lab_11_is_graded_in_the_sandbox(tmp_path):
    """Packed codes and modules that share memory must cross its wall; one wrong answer is found among right ones."""
    notebook = solved_notebook("11")
    for cell in notebook.cells:
        if grade_id(cell) == answer_id("11.outlier_product"):
            cell.source = cell.source.replace("largest_T1 = inside_TC.abs()", "largest_T1 = x_TC.abs()")
    path = tmp_path / "mine.ipynb"
    path.write_text(render(notebook), "utf-8")
    wrong = {graded.exercise: graded.diagnosis for graded in grade(path).exercises if graded.status != "passed"}
    assert wrong == {"11.outlier_product": "outliers_in_scale"}
