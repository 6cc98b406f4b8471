"""How far a student's next-token distribution is from its teacher's, position by position.

Value and gradient are computed together, a slice of positions at a time, so that beside the two models' logits only the
gradient exists in full, in the student's dtype. With logits z of the student, q = softmax(z / T) and weights
w = q · ∂D/∂q, every divergence has the gradient ∂D/∂z = (w − q Σ w) / T. Left out on purpose: a gradient for the
teacher, label smoothing.

Legend: B batch, S sequence, T tokens (B·S), V vocabulary, J outcomes that are told apart (V of them, or fewer).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SLICE = 2**23  # logits of each model that are widened at a time


def divergences(
    student_BSV: Tensor,
    teacher_BSV: Tensor,
    *,
    beta: float = 0.0,
    temperature: float = 1.0,
    mask_BS: Tensor | None = None,
) -> Tensor:
    """The divergence at every position in nats: [B, S] float32, 0 where the mask is false.

    β = 0 is the forward KL(teacher ‖ student), β = 1 the reverse KL(student ‖ teacher). Between them stands the
    generalized Jensen–Shannon divergence β·KL(teacher ‖ m) + (1 − β)·KL(student ‖ m) with the mixture
    m = β·teacher + (1 − β)·student (GKD, Agarwal et al. 2024, arXiv 2306.13649, equation 1). That one vanishes at both
    ends: only divided by β, or by 1 − β, does it become the forward, or the reverse KL.

    Args:
        student_BSV: [B, S, V] logits (any leading dimensions), floating point; differentiable once.
        teacher_BSV: the same shape, without gradient. A token whose logit is −∞ has probability 0; β = 1 is infinite
            if the student gives it any.
        beta: in [0, 1]; temperature: T > 0, which divides both models' logits. A gradient falls as 1/T²: who mixes it
            with another loss multiplies by T² (Hinton et al. 2015, arXiv 1503.02531, section 2), as `Distillation`
            does; here nothing is multiplied.
        mask_BS: [B, S] bool, true where a position counts; None: all do.

    Float64 logits of the student give float64. Raises ValueError for shapes, numbers and a teacher that do not fit.

    >>> student, teacher = torch.zeros(1, 2, 4), torch.tensor([[[0.0, 0, 0, 0], [99.0, 0, 0, 0]]])
    >>> divergences(student, teacher).tolist()
    [[0.0, 1.3862943649291992]]
    """
    check_numbers(beta, temperature)
    if student_BSV.shape != teacher_BSV.shape:
        raise ValueError(
            f"the student's logits are {tuple(student_BSV.shape)}, the teacher's {tuple(teacher_BSV.shape)}; both must "
            "speak about the same tokens of the same vocabulary"
        )
    if teacher_BSV.requires_grad:
        raise ValueError("the teacher's logits carry a gradient; run the teacher under torch.no_grad()")
    mask_T = flat_mask(mask_BS, student_BSV)
    V = student_BSV.shape[-1]
    D_T = _Divergences.apply(student_BSV.reshape(-1, V), teacher_BSV.reshape(-1, V), mask_T, beta, temperature)
    return D_T.view(student_BSV.shape[:-1])


def terms(logp_TJ: Tensor, logq_TJ: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Divergence [T] of distributions over J outcomes, and w = q · ∂D/∂q [T, J] (up to a multiple of q).

    Args:
        logp_TJ: log-probabilities of the teacher, logq_TJ of the student; −∞ is probability 0.

    >>> D_T, w_TJ = terms(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log(), 0.0)
    >>> round(D_T.item(), 4), w_TJ.tolist()
    (0.1438, [[-0.5, -0.5]])
    """
    p_TJ, q_TJ = logp_TJ.exp(), logq_TJ.exp()
    if beta == 0:
        return _times(p_TJ, logp_TJ - logq_TJ).sum(-1), -p_TJ
    if beta == 1:
        g_TJ = _times(q_TJ, logq_TJ - logp_TJ)
        return g_TJ.sum(-1), g_TJ
    logm_TJ = torch.logaddexp(logp_TJ + math.log(beta), logq_TJ + math.log1p(-beta))
    g_TJ = (1 - beta) * _times(q_TJ, logq_TJ - logm_TJ)
    return (beta * _times(p_TJ, logp_TJ - logm_TJ) + g_TJ).sum(-1), g_TJ


def _times(p: Tensor, log_ratio: Tensor) -> Tensor:
    """p · log ratio, where 0 · anything is 0; NaN stays NaN."""
    return torch.where(p == 0, 0.0, p * log_ratio)


class _Divergences(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, student_TV: Tensor, teacher_TV: Tensor, mask_T: Tensor, beta: float, temperature: float
    ) -> Tensor:
        def one_slice(part: slice, logq: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
            D, w = terms(log_probabilities(teacher_TV[part], temperature, logq.dtype), logq, beta)
            return D, lambda: w.addcmul_(logq.exp_(), w.sum(-1, keepdim=True), value=-1)

        return by_slices(context, student_TV, mask_T, temperature, one_slice)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, grad_T: Tensor) -> tuple[Tensor | None, ...]:
        return masked_slope(*context.saved_tensors, grad_T), None, None, None, None


def by_slices(
    context: Any, student_TV: Tensor, mask_T: Tensor, temperature: float,
    one_slice: Callable[[slice, Tensor], tuple[Tensor, Callable[[], Tensor]]],
) -> Tensor:  # fmt: skip
    """The forward pass of a divergence: its value at every position [T], its slope kept in `context` for the backward.

    Args:
        one_slice: from a slice of positions and the student's log-probabilities there, which it may overwrite, to the
            divergences [slice] and to what makes T · ∂D/∂z, called only if a gradient is wanted.
    """
    wide = wide_of(student_TV)
    D_T = torch.zeros(len(student_TV), dtype=wide, device=student_TV.device)
    slope_TV = torch.empty_like(student_TV) if context.needs_input_grad[0] else None
    for part in slices(*student_TV.shape):
        D, slope = one_slice(part, log_probabilities(student_TV[part], temperature, wide))
        D_T[part] = torch.where(mask_T[part], D, 0.0)
        if slope_TV is not None:
            slope_TV[part] = slope().div_(temperature)
    if slope_TV is not None:
        context.save_for_backward(slope_TV, mask_T)
    return D_T


def wide_of(logits: Tensor) -> torch.dtype:
    """What losses of these logits are computed in: float64 if they are, else float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def log_probabilities(logits_TV: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """log softmax(logits / temperature), [T, V] in `dtype`."""
    return (logits_TV.to(dtype) / temperature).log_softmax(-1)


def slices(T: int, V: int) -> list[slice]:
    """Cut T positions so that a slice has at most SLICE logits."""
    rows = max(1, SLICE // V)
    return [slice(start, min(start + rows, T)) for start in range(0, T, rows)]


def masked_slope(slope_TV: Tensor, mask_T: Tensor, grad_T: Tensor) -> Tensor:
    """Gradient of the logits, in place of the slope: a second backward pass is refused by autograd."""
    slope_TV.mul_(torch.where(mask_T, grad_T, 0.0)[:, None])
    return slope_TV.masked_fill_(~mask_T[:, None], 0.0)  # a left-out position may be NaN


def flat_mask(mask_BS: Tensor | None, like_BSV: Tensor) -> Tensor:
    """[T] bool; all true for None. Raises ValueError for another shape or dtype."""
    shape = like_BSV.shape[:-1]
    if mask_BS is None:
        return torch.ones(shape.numel(), dtype=torch.bool, device=like_BSV.device)
    if mask_BS.shape != shape or mask_BS.dtype != torch.bool:
        raise ValueError(f"the mask is {mask_BS.dtype} {tuple(mask_BS.shape)}; give bool {tuple(shape)}")
    return mask_BS.reshape(-1)


def check_numbers(beta: float, temperature: float) -> None:
    """Raise ValueError unless 0 ≤ β ≤ 1 and the temperature is a finite positive number."""
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}; give 0 (forward KL) to 1 (reverse KL)")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}; give a finite number above 0")
