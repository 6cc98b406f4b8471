"""Lab 13: references against the losses, the budget and the surgery that the lab's experiments really use."""

from __future__ import annotations

import math

import pytest
import torch

from labkit.core.config import ModelConfig, MoEConfig
from labkit.core.cost import model_params
from labkit.core.routing import Routing
from labkit.course import labs
from labkit.course.grade import grade
from labkit.course.release import answer_id, grade_id, render, solved_notebook
from labkit.kernels import reference
from labkit.nn import Transformer
from labkit.nn.merge import align as align_units
from labkit.nn.prune import prune_by_use, use
from labkit.train.distill import Budget, SparseLogits, divergences, sparse_divergences
from labkit.train.settings import TrainConfig

EXERCISES = {exercise.name: exercise for exercise in labs.lab("13").exercises}
PART = {name: exercise.reference for name, exercise in EXERCISES.items()}
CONFIG = ModelConfig(
    "small", 32, 2, 16, num_heads=2, num_kv_heads=1, head_dim=8, qk_norm="head", tie_embeddings=True,
    moe=MoEConfig(d_model=16, d_expert=8, num_experts=6, top_k=2, num_shared_experts=1),
)  # fmt: skip


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def expert(seed: int, F: int = 6, D: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(seed, 2 * F, D), normal(seed + 1, D, F)


# ------------------------------------------------------------------------------------- references do as the loop does


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_the_divergence_and_its_gradient_are_the_loops(beta):
    mine, theirs = (normal(1, 5, 9).mul(3).requires_grad_() for _ in range(2))
    teacher = 3 * normal(2, 5, 9)
    found, expected = PART["divergence"](mine, teacher, beta), divergences(theirs, teacher, beta=beta)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_hintons_loss_is_the_loops_mean_over_labels(temperature):
    student, teacher = normal(1, 3, 6, 11), normal(2, 3, 6, 11)
    labels = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(3))
    labels[1, 2:] = -100
    mask = torch.cat([labels[:, 1:] != -100, torch.zeros(3, 1, dtype=torch.bool)], 1)
    each = temperature**2 * divergences(student, teacher, temperature=temperature, mask_BS=mask)
    torch.testing.assert_close(PART["soft_loss"](student, teacher, labels, temperature, 0.0), each.sum() / mask.sum())


@pytest.mark.parametrize("k", [1, 4, 10])
def test_the_tail_is_the_loops_and_never_above_the_whole(k):
    student, teacher = 2 * normal(1, 7, 11), 2 * normal(2, 7, 11)
    kept = SparseLogits.of(teacher, k)
    found = PART["tail_bucket"](student, kept.ids_BSK, kept.logp_BSK, kept.tail_BS)
    torch.testing.assert_close(found, sparse_divergences(student, kept), rtol=1e-5, atol=1e-6)
    assert (found <= PART["divergence"](student, teacher, 0.0) + 1e-5).all()


def test_rescaled_tokens_drive_the_rest_out_and_its_mass_keeps_it():
    """What section 4 shows, as a slope: with all mass on the kept tokens one loss is at its end, the other is not."""
    teacher = -torch.arange(1.0, 9.0).log()[None]
    kept = SparseLogits.of(teacher, 3)
    sure = teacher.clone()
    sure[:, 3:] -= 20.0
    bucket = PART["tail_bucket"](sure, kept.ids_BSK, kept.logp_BSK, kept.tail_BS)
    rescaled = PART["tail_bucket"](sure, kept.ids_BSK, kept.rescaled().logp_BSK, torch.full((1,), -math.inf))
    assert rescaled < 1e-6
    assert bucket > 1


def test_equal_steps_is_the_budget_without_attention_scores():
    moe = MoEConfig(d_model=64, d_expert=256, num_experts=8, top_k=2, num_shared_experts=1)
    teacher = CONFIG.replace(name="teacher", vocab_size=512, d_model=64, moe=moe, tie_embeddings=False)
    student = ModelConfig("student", 512, 1, 32, 1, 1, 32, None, num_dense_layers=1, d_dense=256, max_context=64)
    config = TrainConfig(steps=1000, batch=1, sequence=2, learning_rate=1e-3)

    def parts(model):
        p = model_params(model)
        found = {"embedding": p.embedding, "head": p.head}
        found["dense"] = p.attention + p.dense + p.router + p.shared_experts
        if model.moe is not None:
            experts = p.routed_experts // model.moe.num_experts
            found |= {"expert": experts, "num_experts": model.moe.num_experts, "top_k": model.moe.top_k}
        return found

    counted = PART["equal_steps"](1000, parts(student), parts(teacher))
    assert counted == pytest.approx(Budget.of(student, teacher, config).equal_steps, rel=0.01)


@pytest.mark.parametrize("by", ["tokens", "scores"])
def test_pruning_a_layer_is_labkits(by):
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    records = []
    for layer in range(2):
        ids = torch.stack([torch.randperm(6)[:2] for _ in range(40)])
        records.append(Routing.of(normal(layer, 40, 6), ids, torch.rand(40, 2), layer=layer))
    small = prune_by_use(model, records, 4, by=by)
    for record in records:
        old, new = (m.layers[record.layer].ffn.state_dict() for m in (model, small))
        found, top_k = PART["prune"](old, use(record, by), 4, 2)
        assert top_k == small.config.moe.top_k
        assert found.keys() == new.keys()
        assert all(torch.equal(found[name], new[name]) for name in new)
        assert any(name.startswith("shared.") for name in new)


def test_an_aligned_expert_computes_the_same_and_its_shuffled_copy_comes_back():
    one = expert(1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    copy = (torch.cat([half[order] for half in one[0].chunk(2)]), one[1][:, order])
    for part, found in zip(one, PART["align"](one, copy), strict=True):
        assert torch.equal(part, found)
    x, other = normal(9, 5, 4), expert(5)
    moved = PART["align"](one, other)
    torch.testing.assert_close(reference.swiglu(x, *moved), reference.swiglu(x, *other))
    assert not torch.equal(moved[1], other[1])


def test_greedy_pairs_are_where_labkits_alignment_starts():
    """For a copy with little noise no exchange helps, so both find the same order."""
    one, noise = expert(1), expert(7)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    copy = (torch.cat([half[order] for half in one[0].chunk(2)]), one[1][:, order])
    copy = tuple(part + 0.05 * n for part, n in zip(copy, noise, strict=True))

    def units(gate_up, down):
        return torch.cat([*gate_up.chunk(2), down.T], 1)

    expected = units(*copy)[align_units(units(*one), units(*copy))]
    assert torch.equal(units(*PART["align"](one, copy)), expected)


# ---------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize("name", sorted(name for name, exercise in EXERCISES.items() if exercise.oracle))
def test_every_reference_agrees_with_its_oracle_on_seeds_that_no_check_draws(name):
    exercise = EXERCISES[name]
    if "TRL" in exercise.oracle.name:
        pytest.importorskip("trl", minversion="1.0")
    assert exercise.against_oracle(exercise.reference, seeds=(11, 12)) >= 8


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("soft_loss", "no_square"),
        ("soft_loss", "padding_counted"),
        ("divergence", "mixture_reversed"),
        ("divergence", "mean_of_logs"),
        ("tail_bucket", "rescaled"),
        ("tail_bucket", "one_minus"),
    ],
)
def test_the_oracle_notices(name, mistake):
    exercise = EXERCISES[name]
    if "TRL" in exercise.oracle.name:
        pytest.importorskip("trl", minversion="1.0")
    wrong = next(found.like for found in exercise.mistakes if found.name == mistake)
    with pytest.raises(AssertionError, match="differs from"):
        exercise.against_oracle(wrong)


def test_no_case_of_this_lab_is_dropped_for_another():
    for exercise in EXERCISES.values():
        for seed in (0, 1):
            assert [c.label for c in exercise.inputs((seed,))] == [c.label for c in exercise.cases(seed)]


def test_two_mistakes_that_are_one_are_told_once():
    """Exchanging student and teacher is the same as reading β the other way round, so there is one name for both."""

    def exchanged(student, teacher, beta):
        return PART["divergence"](teacher, student, beta)

    def turned(student, teacher, beta):
        return PART["divergence"](student, teacher, 1 - beta)

    exercise = EXERCISES["divergence"]
    assert exercise.test(exchanged).diagnosis == exercise.test(turned).diagnosis == "swapped"


# ------------------------------------------------------------------------------------------------------------- grading


@pytest.mark.sandbox
def test_lab_13_is_graded_in_the_sandbox(tmp_path):
    """Gradients are watched in there, too; one wrong answer is found among right ones."""
    notebook = solved_notebook("13")
    for cell in notebook.cells:
        if grade_id(cell) == answer_id("13.divergence"):
            cell.source = cell.source.replace("math.log(beta)", "math.log(1 - beta)").replace(
                "log1p(-beta)", "log(beta)"
            )
    path = tmp_path / "mine.ipynb"
    path.write_text(render(notebook), "utf-8")
    wrong = {graded.exercise: graded.diagnosis for graded in grade(path).exercises if graded.status != "passed"}
    assert wrong == {"13.divergence": "mixture_reversed"}
