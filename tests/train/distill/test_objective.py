"""The objective mixes cross-entropy and T² · divergence, by labels, and leaves the rest of training alone."""

from __future__ import annotations

import math

import pytest
import small_runs
import torch

from labkit.train import forward
from labkit.train.distill import Distillation, DistillConfig, SparseLogits
from labkit.train.distill.objective import teacher_logits
from labkit.train.feed import Micro


def made(seed=0, **changes):
    student, teacher = small_runs.model(seed), small_runs.model(seed + 9)
    batch = small_runs.Source().next(3, 12)
    batch.labels_BS[0, 4:9] = -100
    micro, config = Micro.of(batch), small_runs.config(**changes)
    return student, teacher, micro, config, forward.call(student, micro.ids_BS)


@pytest.mark.parametrize("hard", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("beta", "temperature"), [(0.0, 1.0), (0.0, 3.0), (1.0, 2.0), (0.5, 1.0)])
def test_the_mix_written_out(hard, beta, temperature):
    _, teacher, micro, config, output = made(balance_loss=0.01, z_loss=0.001)
    settings = DistillConfig(beta=beta, temperature=temperature, hard=hard)
    found = Distillation(settings, teacher)(output, micro, config, micro.count)
    logq = output.logits.double().div(temperature).log_softmax(-1)
    logp = forward.call(teacher.eval(), micro.ids_BS).logits.double().div(temperature).log_softmax(-1)
    logm = torch.logaddexp(logp + math.log(beta or 1), logq + math.log((1 - beta) or 1))
    first = (logp.exp() * (logp - (logq if beta == 0 else logm))).sum(-1)
    second = (logq.exp() * (logq - (logp if beta == 1 else logm))).sum(-1)
    soft = {0.0: first, 1.0: second}.get(beta, beta * first + (1 - beta) * second)
    label = micro.target_BS.clamp_min(0)[..., None]
    own = -output.logits.double().log_softmax(-1).gather(-1, label)[..., 0]
    counts = micro.target_BS != -100
    expected = (hard * own + (1 - hard) * temperature**2 * soft)[counts].sum() / micro.count
    routers = forward.router_losses(output.routing, config)
    torch.testing.assert_close(found.total.double(), expected + routers.double(), atol=1e-5, rtol=1e-5)
    assert not found.loss_BS[~counts].any()


def test_hard_alone_is_the_objective_without_a_teacher():
    _, teacher, micro, config, output = made(balance_loss=0.01)
    ours = Distillation(DistillConfig(hard=1.0), teacher)(output, micro, config, micro.count)
    theirs = forward.objective(output, micro, config, micro.count)
    torch.testing.assert_close(ours.total, theirs.total)
    torch.testing.assert_close(ours.loss_BS, theirs.loss_BS)


def test_the_teacher_is_left_as_it_was_and_gets_no_gradient():
    _, teacher, micro, config, output = made()
    teacher.train()
    Distillation(DistillConfig(), teacher)(output, micro, config, micro.count).total.backward()
    assert teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_teacher_that_is_noisy_in_training_speaks_without_noise():
    moe = small_runs.model_config().moe.replace(noise_std=2.0)
    teacher, ids_BS = small_runs.model(3, moe=moe).train(), small_runs.Source().next(2, 12).ids_BS
    assert torch.equal(teacher_logits(teacher, ids_BS), teacher_logits(teacher, ids_BS))
    assert not torch.equal(teacher(ids_BS).logits, teacher(ids_BS).logits)


def test_a_batch_that_brings_all_of_a_teacher_is_as_good_as_the_teacher():
    _, teacher, micro, config, output = made()
    settings = DistillConfig(temperature=2.0)
    kept = SparseLogits.of(teacher_logits(teacher, micro.ids_BS), 256, temperature=2.0)
    brought = Micro(**{**vars(micro), "teacher": kept})
    ours = Distillation(settings)(output, brought, config, micro.count)
    torch.testing.assert_close(ours.total, Distillation(settings, teacher)(output, micro, config, micro.count).total)


def test_what_does_not_fit_is_refused():
    _, teacher, micro, config, output = made()
    kept = SparseLogits.of(teacher_logits(teacher, micro.ids_BS), 8)
    brought = Micro(**{**vars(micro), "teacher": kept})
    with pytest.raises(ValueError, match="there is no teacher"):
        Distillation(DistillConfig())(output, micro, config, 1)
    with pytest.raises(ValueError, match=r"were kept at 1\.0"):
        Distillation(DistillConfig(temperature=2.0))(output, brought, config, 1)
    with pytest.raises(ValueError, match="mtp_weight"):
        Distillation(DistillConfig(), teacher)(output, micro, config.replace(mtp_weight=0.1), 1)
    with pytest.raises(ValueError, match=r"hard is 1\.5"):
        DistillConfig(hard=1.5)
    with pytest.raises(ValueError, match="did you mean 'temperature'"):
        DistillConfig.from_dict({"temperatur": 2.0})
    with pytest.raises(ValueError, match="the teacher is on meta"):
        teacher_logits(teacher.to("meta"), micro.ids_BS)
