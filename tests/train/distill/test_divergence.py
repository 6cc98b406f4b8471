"""Divergences and their gradients equal float64 autograd and TRL; temperature, β and masks do what they say."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.train.distill import divergence
from labkit.train.distill.divergence import divergences

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def problem(dtype=torch.float32, B=3, S=7, V=13, seed=0, scale=3.0):
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(2, B, S, V, generator=draw, dtype=torch.float64)).to(dtype)
    mask = torch.rand(B, S, generator=draw) < 0.7
    mask[0, 0] = True
    return student.requires_grad_(), teacher, mask


def written_out(student, teacher, beta, temperature):
    """The definition, in float64 and by autograd."""
    p, q = (x.double().div(temperature).softmax(-1) for x in (teacher, student))
    if beta == 0:
        return (p * (p / q).log()).sum(-1)
    if beta == 1:
        return (q * (q / p).log()).sum(-1)
    m = beta * p + (1 - beta) * q
    return (beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()).sum(-1)


@pytest.mark.parametrize("rows", [1, 4, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta", BETAS)
def test_values_and_gradients_equal_the_definition(beta, dtype, rows, monkeypatch):
    monkeypatch.setattr(divergence, "SLICE", 13 * rows)
    student, teacher, mask = problem(dtype)
    wide = student.detach().double().requires_grad_()
    weight = torch.rand(mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = divergences(student, teacher, beta=beta, temperature=1.7, mask_BS=mask)
    theirs = torch.where(mask, written_out(wide, teacher, beta, 1.7), 0.0)
    (ours * weight.to(ours.dtype)).sum().backward()
    (theirs * weight).sum().backward()
    near = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-6}[dtype]
    torch.testing.assert_close(ours.double(), theirs, atol=near, rtol=near)
    assert student.grad.dtype == dtype
    near = 5e-3 if dtype == torch.bfloat16 else near
    torch.testing.assert_close(student.grad.double(), wide.grad, atol=near, rtol=near)


def trl_loss():
    pytest.importorskip("trl", minversion="1.0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.gkd.gkd_trainer import GKDTrainer
    return GKDTrainer.generalized_jsd_loss


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("beta", BETAS)
def test_loss_and_gradient_equal_trl(beta, temperature):
    loss = trl_loss()
    student, teacher, mask = problem(B=4, S=16, V=257)
    twin = student.detach().clone().requires_grad_()
    labels = torch.where(mask, 1, -100)
    theirs = loss(twin, teacher, labels=labels, beta=beta, temperature=temperature)
    ours = divergences(student, teacher, beta=beta, temperature=temperature, mask_BS=mask).sum() / mask.sum()
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(student.grad, twin.grad, atol=1e-6, rtol=0)


def test_temperature_squared_keeps_the_gradient():
    """Hinton et al. 2015, section 2: at high T the gradient tends to (z − v) / (V T²) of centred logits."""
    student, teacher, _ = problem(torch.float64, scale=1.0)
    V = student.shape[-1]
    limit = ((student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))).detach() / V
    for temperature, near in ((100.0, 0.05), (1000.0, 0.005)):
        (gradient,) = torch.autograd.grad(divergences(student, teacher, temperature=temperature).sum(), student)
        assert ((temperature**2 * gradient - limit).norm() / limit.norm()).item() < near


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divided_by_beta_it_becomes_the_forward_and_the_reverse_kl(temperature):
    student, teacher, _ = problem(torch.float64)
    options = {"temperature": temperature}
    forward, reverse = (divergences(student, teacher, beta=b, **options) for b in (0.0, 1.0))
    small = 1e-6
    torch.testing.assert_close(divergences(student, teacher, beta=small, **options) / small, forward, rtol=1e-2, atol=0)
    near_one = divergences(student, teacher, beta=1 - small, **options) / small
    torch.testing.assert_close(near_one, reverse, rtol=1e-2, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 40), st.floats(0, 1), st.floats(0.2, 20), st.integers(0, 99)
)
def test_never_negative_bounded_by_the_mixing_entropy_and_zero_for_the_same(B, S, V, beta, temperature, seed):
    student, teacher, _ = problem(torch.float64, B, S, V, seed, scale=10.0)
    options = {"beta": beta, "temperature": temperature}
    found = divergences(student, teacher, **options)
    assert found.min().item() >= -1e-12
    if 0 < beta < 1:
        assert found.max().item() <= -beta * math.log(beta) - (1 - beta) * math.log1p(-beta) + 1e-12
    assert divergences(teacher.clone().requires_grad_(), teacher, **options).abs().max().item() < 1e-12


@pytest.mark.parametrize("beta", BETAS)
def test_a_constant_added_to_logits_changes_nothing_and_the_gradient_sums_to_zero(beta):
    student, teacher, _ = problem(torch.float64)
    found = divergences(student, teacher, beta=beta)
    torch.testing.assert_close(divergences(student + 50, teacher - 900, beta=beta), found)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert gradient.sum(-1).abs().max().item() < 1e-12


@pytest.mark.parametrize("beta", BETAS)
def test_tokens_that_both_rule_out_are_as_if_they_were_not_there(beta):
    student, teacher, _ = problem(torch.float64)
    out = torch.full((*student.shape[:-1], 2), -math.inf, dtype=torch.float64)
    padded = torch.cat([student.detach(), out], -1).requires_grad_()
    found = divergences(padded, torch.cat([teacher, out], -1), beta=beta)
    torch.testing.assert_close(found, divergences(student, teacher, beta=beta))
    (gradient,) = torch.autograd.grad(found.sum(), padded)
    assert gradient.isfinite().all()
    assert not gradient[..., -2:].any()


def test_reverse_kl_is_infinite_where_the_teacher_rules_out_what_the_student_says():
    teacher = torch.tensor([[0.0, -math.inf]])
    assert divergences(torch.zeros(1, 2), teacher, beta=1.0).item() == math.inf
    assert divergences(torch.zeros(1, 2), teacher, beta=0.0).item() == pytest.approx(math.log(2))


def test_one_huge_outlier_is_no_overflow():
    student, teacher = torch.zeros(1, 5), torch.zeros(1, 5)
    teacher[0, 2] = 3e38
    student.requires_grad_()
    for beta in (0.0, 0.5):
        found = divergences(student, teacher, beta=beta)
        found.sum().backward()
        assert found.isfinite().all()
        assert student.grad.isfinite().all()


def test_what_is_masked_may_be_anything():
    student, teacher, mask = problem()
    bad = torch.where(mask[..., None], student.detach(), math.nan).requires_grad_()
    for beta in BETAS:
        found = divergences(bad, teacher, beta=beta, mask_BS=mask)
        (gradient,) = torch.autograd.grad(found.sum(), bad)
        assert not found[~mask].any()
        assert found.isfinite().all()
        assert gradient.isfinite().all()
        assert not gradient[~mask].any()


def test_nan_that_counts_is_told():
    student, teacher, _ = problem()
    teacher[1, 2, 3] = math.nan
    for beta in BETAS:
        assert divergences(student, teacher, beta=beta).isnan().sum().item() == 1


def test_no_positions_is_no_loss():
    empty = torch.zeros(0, 4, 5, requires_grad=True)
    found = divergences(empty, torch.zeros(0, 4, 5))
    found.sum().backward()
    assert found.shape == (0, 4)


def test_without_gradients_no_slope_is_kept():
    student, teacher, _ = problem()
    assert divergences(student.detach(), teacher).grad_fn is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"beta": -0.1}, "beta is -0.1"),
        ({"beta": math.nan}, "beta is nan"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"mask_BS": torch.ones(3, 7)}, "give bool"),
        ({"mask_BS": torch.ones(3, 6, dtype=torch.bool)}, r"give bool \(3, 7\)"),
        ({"teacher_BSV": torch.zeros(3, 7, 12)}, "same vocabulary"),
        ({"teacher_BSV": torch.zeros(3, 7, 13, requires_grad=True)}, "no_grad"),
    ],
)
def test_what_does_not_fit_is_refused(change, told):
    student, teacher, _ = problem()
    with pytest.raises(ValueError, match=told):
        divergences(**{"student_BSV": student, "teacher_BSV": teacher, **change})
