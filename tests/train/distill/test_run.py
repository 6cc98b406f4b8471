"""A distillation goes on bit for bit, teaches, and always has its baseline at equal FLOPs beside it."""

from __future__ import annotations

import copy

import pytest
import small_runs
import torch

from labkit.core.cost import model_flops_per_token
from labkit.train import evaluate, journal, loop
from labkit.train.distill import (
    Budget,
    CachedTeacher,
    Distillation,
    DistillConfig,
    OnPolicy,
    distill,
    divergences,
    write_cache,
)
from labkit.train.distill.objective import teacher_logits

BIG = {"d_model": 24, "head_dim": 12}


def teacher():
    moe = small_runs.model_config().moe.replace(d_model=24)
    return small_runs.model(9, moe=moe, **BIG)


def source(kind, student, folder):
    if kind == "cached":
        return CachedTeacher(
            write_cache(folder / "c.bin", teacher(), small_runs.Source(), sequences=10, sequence=24, k=8)
        )
    if kind == "on-policy":
        return OnPolicy(student, small_runs.Source(), prompt=6, share=0.6)
    return small_runs.Source()


def run(folder, kind, *, stop_after=None, seed=0, settings=None, **changes):
    config = small_runs.config(**{"save_every": 2, "accumulate": 2, **changes})
    student = small_runs.model(seed)

    def stop(step):
        if step.step == stop_after:
            raise KeyboardInterrupt

    result = distill(
        student, None if kind == "cached" else teacher(), source(kind, student, folder.parent), config,
        settings or DistillConfig(temperature=2.0 if kind == "text" else 1.0), folder=folder, on_step=stop,
        validation=small_runs.Source(split="validation"),
    )  # fmt: skip
    return result, student


@pytest.mark.parametrize("kind", ["text", "cached", "on-policy"])
def test_an_interrupted_distillation_goes_on_bit_for_bit(tmp_path, kind):
    whole, model = run(tmp_path / "whole", kind)
    first, _ = run(tmp_path / "parts", kind, stop_after=3)
    assert (first.student.stopped, first.student.step, first.baseline) == ("interrupted", 3, None)
    last, other = run(tmp_path / "parts", kind)
    assert last.student.stopped == last.baseline.stopped == "finished"
    assert small_runs.told(last.student) == small_runs.told(whole.student)
    assert small_runs.told(last.baseline) == small_runs.told(whole.baseline)
    assert journal.read(tmp_path / "parts" / "student" / loop.LOG)[-1]["step"] == 6
    torch.testing.assert_close(dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(dict(last.alone.state_dict()), dict(whole.alone.state_dict()), rtol=0, atol=0)


def test_other_settings_or_another_teacher_are_another_run(tmp_path):
    run(tmp_path, "text", stop_after=2)
    with pytest.raises(ValueError, match="has the objective"):
        run(tmp_path, "text", settings=DistillConfig(temperature=3.0))
    with pytest.raises(ValueError, match="has the objective"):
        loop.train(small_runs.model(), small_runs.Source(), small_runs.config(save_every=2, accumulate=2),
                   folder=tmp_path / "student")  # fmt: skip


def test_a_plain_run_is_not_taken_for_a_distillation(tmp_path):
    config = small_runs.config()
    loop.train(small_runs.model(), small_runs.Source(), config, folder=tmp_path)
    with pytest.raises(ValueError, match="has the objective None"):
        loop.train(small_runs.model(), small_runs.Source(), config, folder=tmp_path,
                   objective=Distillation(DistillConfig(), teacher()))  # fmt: skip


def test_the_baseline_has_the_same_start_the_same_text_and_the_same_flops(tmp_path):
    result, student = run(tmp_path, "text", accumulate=1)
    config = small_runs.config()
    forward, read = (
        config.tokens_per_step * model_flops_per_token(model.config, (config.sequence + 1) // 2).total
        for model in (student, teacher())
    )
    assert result.budget == Budget(6, 3.0 * forward, 6.0 * read)
    steps = int(6 * (3 * forward + read) // (3 * forward))
    assert result.baseline.step == result.budget.equal_steps == steps > 6
    alone = small_runs.model(0)
    again = loop.train(
        alone, small_runs.Source(), config.replace(steps=steps, warmup=int(2 * steps / 6)),
        validation=small_runs.Source(split="validation"),
    )  # fmt: skip
    assert again.validation == result.baseline.validation


def test_a_cache_is_paid_once_and_a_students_own_text_is_paid_too(tmp_path):
    student = small_runs.model()
    cache = source("cached", student, tmp_path).cache
    assert cache.flops == 10 * 24 * model_flops_per_token(teacher().config, 12).total
    config = small_runs.config()
    few, many = (Budget.of(student.config, cache.flops, config.replace(steps=n)) for n in (5, 50))
    assert few.teacher == many.teacher == cache.flops
    own = Budget.of(student.config, teacher().config, config, prompt=6, share=0.5)
    assert own.writing == pytest.approx(0.5 * 23 / 24 * 6 * own.step / 3)


def test_the_student_comes_nearer_to_its_teacher():
    student, big = small_runs.model(1), teacher()
    for parameter in big.parameters():  # a teacher with something to say
        parameter.data.mul_(1.5)
    ids = small_runs.Source(split="validation").next(8, 24).ids_BS

    def apart():
        with torch.no_grad():
            return divergences(student(ids).logits, teacher_logits(big, ids)).mean().item()

    before, alone = apart(), copy.deepcopy(student)
    config = small_runs.config(steps=40, batch=8, learning_rate=1e-2)
    distill(student, big, small_runs.Source(), config)
    assert apart() < 0.7 * before
    assert torch.equal(alone.embed.weight, small_runs.model(1).embed.weight)


def test_the_student_writes_after_prompts_and_learns_nothing_on_them():
    student = small_runs.model()
    own = OnPolicy(student, small_runs.Source(), prompt=6)
    text = small_runs.Source().next(4, 20)
    batch = own.next(4, 20)
    assert torch.equal(batch.ids_BS[:, :6], text.ids_BS[:, :6])
    assert not torch.equal(batch.ids_BS[:, 6:], text.ids_BS[:, 6:])
    assert (batch.labels_BS[:, :6] == -100).all()
    assert torch.equal(batch.labels_BS[:, 6:], batch.ids_BS[:, 6:])
    assert batch.domains == text.domains
    none = OnPolicy(student, small_runs.Source(), prompt=6, share=0.0).next(4, 20)
    assert torch.equal(none.ids_BS, text.ids_BS)
    with pytest.raises(ValueError, match="something to write"):
        own.next(2, 6)
    with pytest.raises(ValueError, match="share 2"):
        OnPolicy(student, small_runs.Source(), prompt=1, share=2)


def test_evaluation_takes_cached_batches(tmp_path):
    cached = source("cached", None, tmp_path)
    found = evaluate.losses(teacher(), [cached.next(8, 24)], names=cached.domains)
    assert set(found) == set(cached.domains)


def test_what_does_not_fit_is_refused(tmp_path):
    student, config, text = small_runs.model(), small_runs.config(), small_runs.Source()
    cached = source("cached", student, tmp_path)
    other = OnPolicy(small_runs.model(3), text, prompt=4)
    own = OnPolicy(student, text, prompt=4)
    for args, told in (
        ((student, None, text, config), "give either a teacher"),
        ((student, teacher(), cached, config), "give either a teacher"),
        ((student, torch.nn.Linear(2, 2), text, config), "with a ModelConfig"),
        ((student, teacher(), other, config), "another model than the student"),
        ((student, teacher(), own, config, DistillConfig(hard=0.5)), "no truth to learn"),
        ((small_runs.model(vocab_size=300), teacher(), text, config), "vocabulary has 300"),
    ):
        with pytest.raises(ValueError, match=told):
            distill(*args)
