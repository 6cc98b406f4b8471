"""The loss of every token, without a second copy of the logits in float32.

A vocabulary makes the logits the largest tensor of a small model. The gradient is computed with the loss, a slice of
tokens at a time, in the logits' own dtype; only a slice is ever wide. Left out on purpose: label smoothing, weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labkit.nn.model import IGNORED

SLICE = 2**25  # logits that are widened at a time


def token_losses(logits_BSV: Tensor, labels_BS: Tensor) -> Tensor:
    """Cross-entropy of each label under the logits at the same place: [B, S] float32, 0 where the label is −100.

    Args:
        logits_BSV: [B, S, V] (any leading dimensions), floating point.
        labels_BS: [B, S] int64, already shifted: what each position should predict.

    Differentiable once in the logits. Float64 logits give float64. Raises ValueError if the shapes do not fit.

    >>> token_losses(torch.zeros(1, 2, 4), torch.tensor([[3, -100]])).tolist()
    [[1.3862943649291992, 0.0]]
    """
    if logits_BSV.shape[:-1] != labels_BS.shape:
        raise ValueError(f"logits {tuple(logits_BSV.shape)} and labels {tuple(labels_BS.shape)} do not fit each other")
    V = logits_BSV.shape[-1]
    return _TokenLosses.apply(logits_BSV.reshape(-1, V), labels_BS.reshape(-1)).view(labels_BS.shape)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, logits_TV: Tensor, labels_T: Tensor) -> Tensor:
        T, V = logits_TV.shape
        wide = torch.float64 if logits_TV.dtype == torch.float64 else torch.float32
        loss_T = torch.empty(T, dtype=wide, device=logits_TV.device)
        slope_TV = torch.empty_like(logits_TV) if context.needs_input_grad[0] else None
        rows = max(1, SLICE // V)
        for start in range(0, T, rows):
            part = slice(start, start + rows)
            real, label = labels_T[part] != IGNORED, labels_T[part].clamp_min(0)[:, None]
            logp = logits_TV[part].log_softmax(-1, dtype=wide)
            own = logp.gather(1, label)
            loss_T[part] = torch.where(real, -own[:, 0], 0.0)
            if slope_TV is not None:
                torch.exp(logp, out=logp)
                logp.scatter_(1, label, own.expm1())
                slope_TV[part] = logp
        if slope_TV is not None:
            context.save_for_backward(slope_TV, labels_T)
        return loss_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, grad_T: Tensor) -> tuple[Tensor, None]:
        slope_TV, labels_T = context.saved_tensors
        grad_T = torch.where(labels_T != IGNORED, grad_T, 0.0)
        return slope_TV.mul_(grad_T[:, None]), None  # in place: a second backward pass is refused by autograd


def shifted(labels_BS: Tensor, by: int = 1) -> Tensor:
    """What each position should predict: the label `by` places on, and −100 where there is none.

    >>> shifted(torch.tensor([[1, 2, 3]])).tolist(), shifted(torch.tensor([[1, 2, 3]]), by=2).tolist()
    ([[2, 3, -100]], [[3, -100, -100]])
    """
    after_BS = torch.full_like(labels_BS, IGNORED)
    after_BS[:, :-by] = labels_BS[:, by:]
    return after_BS
