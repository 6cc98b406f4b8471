"""The loss of every token equals torch's, and so does its gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labkit.train import crossentropy
from labkit.train.crossentropy import shifted, token_losses


def problem(dtype, T=37, V=11):
    generator = torch.Generator().manual_seed(0)
    logits_TV = (3 * torch.randn(T, V, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    labels_T = torch.randint(V, (T,), generator=generator)
    labels_T[::5] = -100
    weight_T = torch.rand(T, generator=generator, dtype=torch.float64)
    return logits_TV, labels_T, weight_T.to(torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("rows", [1, 8, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradients_equal_torch(dtype, rows, monkeypatch):
    logits_TV, labels_T, weight_T = problem(dtype)
    monkeypatch.setattr(crossentropy, "SLICE", 11 * rows)
    ours_T = token_losses(logits_TV, labels_T)
    wide = logits_TV.detach().to(ours_T.dtype).requires_grad_()
    theirs_T = F.cross_entropy(wide, labels_T, ignore_index=-100, reduction="none")
    torch.testing.assert_close(ours_T, theirs_T)
    (ours_T * weight_T).sum().backward()
    (theirs_T * weight_T).sum().backward()
    assert logits_TV.grad.dtype == dtype
    torch.testing.assert_close(logits_TV.grad, wide.grad.to(dtype))


def test_a_sure_and_right_answer_still_has_a_gradient_in_bfloat16():
    logits = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)  # p = 0.99966 rounds to 1
    token_losses(logits, torch.tensor([0])).sum().backward()
    assert logits.grad[0, 0].item() == pytest.approx(-3.35e-4, rel=0.01)


def test_without_gradients_no_slope_is_kept():
    logits_TV, labels_T, _ = problem(torch.float32)
    assert token_losses(logits_TV.detach(), labels_T).grad_fn is None


def test_a_second_backward_pass_is_refused():
    logits_TV, labels_T, _ = problem(torch.float32)
    loss = token_losses(logits_TV, labels_T).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_shifting_further_than_the_sequence_leaves_nothing():
    assert shifted(torch.tensor([[1, 2]]), by=3).tolist() == [[-100, -100]]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit each other"):
        token_losses(torch.zeros(2, 3, 4), torch.zeros(2, 2, dtype=torch.int64))
