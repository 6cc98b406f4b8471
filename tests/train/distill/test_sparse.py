"""A teacher kept as a few tokens: exact where all are kept, a bound with a tail, biased without, unbiased if drawn."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.train.distill import divergence
from labkit.train.distill.divergence import divergences
from labkit.train.distill.sparse import SparseLogits, sparse_divergences

BETAS = [0.0, 0.3, 1.0]


def problem(dtype=torch.float64, B=2, S=5, V=11, seed=0, scale=2.0):
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(2, B, S, V, generator=draw, dtype=torch.float64)).to(dtype)
    return student.requires_grad_(), teacher


def grouped(student, teacher, kept, beta, temperature):
    """Every token that was not kept is added to one outcome, by hand; the dense divergence of what is left."""
    away = torch.ones_like(student).scatter(-1, kept.ids_BSK, 0.0)

    def outcomes(logits):
        p = (logits / temperature).softmax(-1)
        return torch.cat([p.gather(-1, kept.ids_BSK), (p * away).sum(-1, keepdim=True)], -1).log()

    p, q = outcomes(teacher), outcomes(student)
    if beta == 0:
        return (p.exp() * (p - q)).sum(-1)
    if beta == 1:
        return (q.exp() * (q - p)).sum(-1)
    m = (beta * p.exp() + (1 - beta) * q.exp()).log()
    return (beta * p.exp() * (p - m) + (1 - beta) * q.exp() * (q - m)).sum(-1)


@pytest.mark.parametrize("rows", [2, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta", BETAS)
def test_values_and_gradients_are_those_of_the_grouped_outcomes(beta, dtype, rows, monkeypatch):
    monkeypatch.setattr(divergence, "SLICE", 11 * rows)
    student, teacher = problem(dtype)
    wide = student.detach().double().requires_grad_()
    kept = SparseLogits.of(teacher, 4, temperature=1.5)
    ours = sparse_divergences(student, kept, beta=beta)
    theirs = grouped(wide, teacher.double(), kept, beta, 1.5)
    ours.sum().backward()
    theirs.sum().backward()
    near = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 5e-6}[dtype]
    torch.testing.assert_close(ours.double(), theirs, atol=near, rtol=near)
    assert student.grad.dtype == dtype
    near = 5e-3 if dtype == torch.bfloat16 else near
    torch.testing.assert_close(student.grad.double(), wide.grad, atol=near, rtol=near)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("beta", BETAS)
def test_everything_kept_is_the_dense_loss(beta, temperature):
    student, teacher = problem()
    twin = student.detach().clone().requires_grad_()
    kept = SparseLogits.of(teacher, 11, temperature=temperature)
    sparse = sparse_divergences(student, kept, beta=beta)
    dense = divergences(twin, teacher, beta=beta, temperature=temperature)
    sparse.sum().backward()
    dense.sum().backward()
    torch.testing.assert_close(sparse, dense)
    torch.testing.assert_close(student.grad, twin.grad)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(1, 30), st.floats(0, 1), st.floats(0.3, 10), st.integers(0, 99))
def test_a_tail_never_raises_the_divergence_and_more_tokens_never_lower_it(V, k, beta, temperature, seed):
    student, teacher = problem(V=V, seed=seed)
    k = min(k, V - 1)
    fewer, more = (
        sparse_divergences(student, SparseLogits.of(teacher, n, temperature=temperature), beta=beta) for n in (k, k + 1)
    )
    dense = divergences(student, teacher, beta=beta, temperature=temperature)
    assert (fewer >= -1e-12).all()
    assert (fewer <= more + 1e-12).all()
    assert (more <= dense + 1e-12).all()


def test_the_tail_is_exact_where_both_share_out_the_rest_alike():
    student, teacher = problem()
    kept = SparseLogits.of(teacher, 3)
    away = torch.ones_like(teacher, dtype=torch.bool).scatter(-1, kept.ids_BSK, False)
    alike = torch.where(away, teacher + 0.7, student.detach())  # the rest's logits differ by a constant alone
    torch.testing.assert_close(sparse_divergences(alike, kept), divergences(alike, teacher))


def _trained(loss, V, steps=4000):
    student = torch.zeros(1, V, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([student], lr=2.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(student).sum().backward()
        optimizer.step()
    return student.detach().softmax(-1)[0]


def test_the_best_student_of_a_tail_is_calibrated_and_of_topk_too_sure():
    teacher = torch.tensor([[2.0, 1.0, 0.0, -0.5, -1.0]], dtype=torch.float64)
    p = teacher.softmax(-1)[0]
    kept = SparseLogits.of(teacher, 2)
    honest = _trained(lambda z: sparse_divergences(z, kept), 5)
    torch.testing.assert_close(honest[:2], p[:2], atol=1e-6, rtol=0)
    torch.testing.assert_close(honest[2:], p[2:].sum().expand(3) / 3, atol=1e-6, rtol=0)  # mass right, shares untaught
    sure = _trained(lambda z: sparse_divergences(z, kept.rescaled()), 5)
    torch.testing.assert_close(sure[:2], p[:2] / p[:2].sum(), atol=2e-3, rtol=0)
    assert sure[2:].sum().item() < 1e-3


def test_rescaled_is_the_forward_kl_of_the_rescaled_teacher():
    student, teacher = problem()
    kept = SparseLogits.of(teacher, 4)
    cut = torch.full_like(teacher, -math.inf).scatter(-1, kept.ids_BSK, teacher.gather(-1, kept.ids_BSK))
    for beta in (0.0, 0.4):
        twin = student.detach().clone().requires_grad_()
        ours, theirs = sparse_divergences(student, kept.rescaled(), beta=beta), divergences(twin, cut, beta=beta)
        torch.testing.assert_close(ours, theirs)
        (gradient,) = torch.autograd.grad(ours.sum(), student)
        torch.testing.assert_close(gradient, torch.autograd.grad(theirs.sum(), twin)[0])


def test_draws_are_right_on_average():
    student, teacher = problem(B=1, S=1, V=7)
    draw, rows = torch.Generator().manual_seed(3), 20_000
    many = student.detach().expand(rows, 1, 7).clone().requires_grad_()
    found = sparse_divergences(many, SparseLogits.drawn(teacher.expand(rows, 1, 7), 5, generator=draw))
    (gradient,) = torch.autograd.grad(found.sum(), many)
    dense = divergences(student, teacher)
    (expected,) = torch.autograd.grad(dense.sum(), student)
    deviation = found.std().item() / math.sqrt(rows)
    assert abs(found.mean().item() - dense.item()) < 4 * deviation
    near = 4 * gradient.std(0) / math.sqrt(rows)
    assert ((gradient.mean(0) - expected[0]).abs() < near + 1e-12).all()


def test_a_rest_of_a_billionth_keeps_its_mass_in_float32():
    teacher = torch.tensor([[40.0, 0.0, 0.0]])
    kept = SparseLogits.of(teacher, 1)
    assert kept.tail_BS.item() == pytest.approx(math.log(2) - 40, abs=1e-4)
    student = torch.tensor([[0.0, 60.0, 0.0]], requires_grad=True)
    for beta in BETAS:
        found = sparse_divergences(student, kept, beta=beta)
        (gradient,) = torch.autograd.grad(found.sum(), student)
        assert found.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("beta", BETAS)
def test_a_student_surer_than_float32_can_tell_stays_finite(beta):
    student = torch.tensor([[300.0, 0.0, 0.0, 0.0]], requires_grad=True)
    found = sparse_divergences(student, SparseLogits.of(torch.zeros(1, 4), 1), beta=beta)
    found.sum().backward()
    assert found.isfinite().all()
    assert student.grad.isfinite().all()


def test_what_is_masked_may_be_anything_and_nan_that_counts_is_told():
    student, teacher = problem(torch.float32)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3] = False
    teacher[1, 3] = math.nan
    kept = SparseLogits.of(teacher, 3)
    found = sparse_divergences(student, kept, mask_BS=mask)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert found.isfinite().all()
    assert gradient.isfinite().all()
    assert not gradient[1, 3].any()
    assert sparse_divergences(student, kept).isnan().sum().item() == 1


def test_what_does_not_fit_is_refused():
    student, teacher = problem()
    kept = SparseLogits.of(teacher, 3)
    drawn = SparseLogits.drawn(teacher, 3)
    for given_to, told in (
        (lambda: SparseLogits.of(teacher, 12), "k is 12"),
        (lambda: SparseLogits.of(teacher, 0), "k is 0"),
        (lambda: SparseLogits.of(teacher, 2, temperature=-1), "temperature is -1"),
        (lambda: sparse_divergences(student[:, :4], kept), "the same tokens"),
        (lambda: sparse_divergences(student[..., :10], kept), "the same tokens"),
        (lambda: sparse_divergences(student, kept.rescaled(), beta=1.0), "keep the tail"),
        (lambda: sparse_divergences(student, drawn, beta=0.5), "beta of 0"),
        (lambda: drawn.rescaled(), "draws are not rescaled"),
        (lambda: SparseLogits(kept.ids_BSK.int(), kept.logp_BSK, kept.tail_BS, 11), "give int64"),
        (lambda: SparseLogits(kept.ids_BSK, kept.logp_BSK, kept.tail_BS, 11, estimator="best"), "estimator is 'best'"),
    ):
        with pytest.raises(ValueError, match=told):
            given_to()
