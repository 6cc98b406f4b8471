"""A teacher's distribution kept as a few tokens a position, and three honest names for what is done with the rest.

"tail": the k likeliest tokens, and everything else as one outcome whose mass is known. The divergence over these k + 1
outcomes is never above the full one (grouping outcomes cannot raise an f-divergence), and equal to it where student and
teacher share out the rest alike; the rest's mass is learned, how it is shared out is not.
"topk": the k likeliest, rescaled to sum to one, as is often done. The best student then gives every other token
probability 0: its confidence is biased upwards by the mass that was left out.
"sampled": k draws from the teacher, each weighing 1/k. Forward KL and its gradient are then right on average, and noisy
(Anshumann et al. 2025, "Sparse Logit Sampling", arXiv 2503.16870).

Legend: B batch, S sequence, T tokens (B·S), V vocabulary, K kept tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from labkit.train.distill.divergence import (
    by_slices,
    check_numbers,
    flat_mask,
    log_probabilities,
    masked_slope,
    terms,
    wide_of,
)

Estimator = Literal["tail", "topk", "sampled"]
ESTIMATORS = ("tail", "topk", "sampled")


@dataclass(frozen=True, eq=False)
class SparseLogits:
    """What is kept of a teacher's distributions.

    Args:
        ids_BSK: [B, S, K] int64 (any leading dimensions); different tokens, or draws, which may repeat.
        logp_BSK: [B, S, K] floating point, the teacher's log-probability of each at this temperature.
        tail_BS: [B, S] floating point, the log of the mass of all other tokens; −∞ where nothing is left.
        vocab_size: V; temperature: at which the probabilities were taken; estimator: see the module.

    Raises ValueError for shapes and names that do not fit.
    """

    ids_BSK: Tensor
    logp_BSK: Tensor
    tail_BS: Tensor
    vocab_size: int
    temperature: float = 1.0
    estimator: Estimator = "tail"

    def __post_init__(self) -> None:
        ids, logp = self.ids_BSK, self.logp_BSK
        if ids.shape != logp.shape or ids.shape[:-1] != self.tail_BS.shape or ids.dtype != torch.int64:
            raise ValueError(
                f"SparseLogits has ids {ids.dtype} {tuple(ids.shape)}, log-probabilities {tuple(logp.shape)} and a "
                f"tail {tuple(self.tail_BS.shape)}; give int64 [B, S, K], [B, S, K] and [B, S]"
            )
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator is {self.estimator!r}; choose one of {', '.join(ESTIMATORS)}")

    @classmethod
    def of(cls, logits_BSV: Tensor, k: int, *, temperature: float = 1.0) -> SparseLogits:
        """The k likeliest tokens of every position and the mass of the rest, in float32 or wider.

        The rest's mass is summed from its own tokens, not taken as 1 − the others, so that a billionth stays one.
        Raises ValueError for k outside 1 … V.

        >>> kept = SparseLogits.of(torch.tensor([[1.0, 3.0, 2.0]]), k=2)
        >>> kept.ids_BSK.tolist(), round(kept.tail_BS.exp().item(), 3)
        ([[1, 2]], 0.09)
        """
        logp_BSV = _checked(logits_BSV, k, temperature)
        top = logp_BSV.topk(k, dim=-1)
        rest_BSV = logp_BSV.scatter(-1, top.indices, -math.inf)
        return cls(top.indices, top.values, rest_BSV.logsumexp(-1), logits_BSV.shape[-1], temperature)

    @classmethod
    def drawn(
        cls, logits_BSV: Tensor, k: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> SparseLogits:
        """k draws, with replacement, from the teacher at every position: the estimator "sampled"."""
        logp_BSV = _checked(logits_BSV, k, temperature)
        V = logits_BSV.shape[-1]
        ids_TK = torch.multinomial(logp_BSV.reshape(-1, V).exp(), k, replacement=True, generator=generator)
        ids_BSK = ids_TK.view(*logits_BSV.shape[:-1], k)
        tail_BS = torch.full_like(logp_BSV[..., 0], -math.inf)
        return cls(ids_BSK, logp_BSV.gather(-1, ids_BSK), tail_BS, V, temperature, "sampled")

    def rescaled(self) -> SparseLogits:
        """The kept tokens scaled to sum to one and the rest forgotten: the biased estimator "topk"."""
        if self.estimator == "sampled":
            raise ValueError("draws are not rescaled: each weighs 1/k already; keep the likeliest with SparseLogits.of")
        logp_BSK = self.logp_BSK.log_softmax(-1)
        tail_BS = torch.full_like(self.tail_BS, -math.inf)
        return dataclasses.replace(self, logp_BSK=logp_BSK, tail_BS=tail_BS, estimator="topk")

    def to(self, device: torch.device | str) -> SparseLogits:
        """The same on another device; on its way to a GPU nobody waits for it."""
        pin = torch.device(device).type == "cuda" and self.tail_BS.device.type == "cpu"
        values = {name: getattr(self, name) for name in ("ids_BSK", "logp_BSK", "tail_BS")}
        moved = {name: (v.pin_memory() if pin else v).to(device, non_blocking=pin) for name, v in values.items()}
        return dataclasses.replace(self, **moved)


def sparse_divergences(
    student_BSV: Tensor, teacher: SparseLogits, *, beta: float = 0.0, mask_BS: Tensor | None = None
) -> Tensor:
    """As `divergence.divergences`, at the teacher's temperature, from what was kept of it: [B, S] float32 or wider.

    Args:
        student_BSV: [B, S, V] logits, differentiable once.
        teacher: "tail" takes every β; "topk" every β but 1, where it is infinite; "sampled" β = 0 alone, since other
            divergences are not linear in the teacher.
        beta, mask_BS: see there.

    Raises ValueError for shapes and numbers that do not fit.

    >>> teacher = SparseLogits.of(torch.tensor([[9.0, 0.0, 0.0]]), k=1)
    >>> round(sparse_divergences(torch.zeros(1, 3), teacher).item(), 4)
    1.0961
    """
    check_numbers(beta, teacher.temperature)
    T, V = student_BSV.shape[:-1].numel(), student_BSV.shape[-1]
    if student_BSV.shape[:-1] != teacher.tail_BS.shape or teacher.vocab_size != V:
        raise ValueError(
            f"the student's logits are {tuple(student_BSV.shape)}, the teacher's were "
            f"{(*teacher.tail_BS.shape, teacher.vocab_size)}; both must speak about the same tokens"
        )
    if (teacher.estimator == "topk" and beta == 1) or (teacher.estimator == "sampled" and beta > 0):
        instead = "below 1" if teacher.estimator == "topk" else "of 0"
        raise ValueError(f"beta is {beta}, but {teacher.estimator!r} logits serve a beta {instead}; keep the tail")
    mask_T, K = flat_mask(mask_BS, student_BSV), teacher.ids_BSK.shape[-1]
    kept = (teacher.ids_BSK.reshape(T, K), teacher.logp_BSK.reshape(T, K), teacher.tail_BS.reshape(T))
    D_T = _SparseDivergences.apply(
        student_BSV.reshape(T, V), *kept, mask_T, beta, teacher.temperature, teacher.estimator
    )
    return D_T.view(student_BSV.shape[:-1])


class _SparseDivergences(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, student_TV: Tensor, ids_TK: Tensor, logp_TK: Tensor, tail_T: Tensor, mask_T: Tensor,
        beta: float, temperature: float, estimator: str,
    ) -> Tensor:  # fmt: skip
        def one_slice(part: slice, logq: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
            ids = ids_TK[part]
            logp = torch.cat([logp_TK[part], tail_T[part, None]], -1).to(logq.dtype)
            D, w_TK, stretch_T = _outcomes(logq, ids, logp, beta, estimator)
            return D, lambda: _slope(logq.exp_(), ids, w_TK, stretch_T)

        return by_slices(context, student_TV, mask_T, temperature, one_slice)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, grad_T: Tensor) -> tuple[Tensor | None, ...]:
        return masked_slope(*context.saved_tensors, grad_T), *(7 * (None,))


def _outcomes(
    logq_TV: Tensor, ids_TK: Tensor, logp_TJ: Tensor, beta: float, estimator: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Divergence over the kept tokens and the rest; w of each kept token [T, K]; w of the rest over its mass [T]."""
    kept_TK = logq_TV.gather(-1, ids_TK)
    if estimator == "sampled":
        K = ids_TK.shape[-1]
        D_T = (logp_TJ[:, :K] - kept_TK).mean(-1)
        return D_T, torch.full_like(kept_TK, -1 / K), torch.zeros_like(D_T)
    rest_T = logq_TV.scatter(-1, ids_TK, -math.inf).logsumexp(-1)
    D_T, w_TJ = terms(logp_TJ, torch.cat([kept_TK, rest_T[:, None]], -1), beta)
    # a rest of no mass keeps every token of it at probability 0, whatever w is divided by
    stretch_T = torch.where(rest_T > -math.inf, w_TJ[:, -1] * torch.exp(-rest_T), 0.0)
    return D_T, w_TJ[:, :-1], stretch_T


def _slope(q_TV: Tensor, ids_TK: Tensor, w_TK: Tensor, stretch_T: Tensor) -> Tensor:
    """∂D/∂z: w of a kept token, q · w(rest)/q(rest) of another, both less q Σ w."""
    kept_TV = torch.zeros_like(q_TV).scatter_(-1, ids_TK, 1.0)
    rest_TV = q_TV * (1 - kept_TV) * stretch_T[:, None]
    total_T = w_TK.sum(-1) + rest_TV.sum(-1)
    return rest_TV.sub_(q_TV * total_T[:, None]).scatter_add_(-1, ids_TK, w_TK)


def _checked(logits_BSV: Tensor, k: int, temperature: float) -> Tensor:
    check_numbers(0.0, temperature)
    V = logits_BSV.shape[-1]
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= V:
        raise ValueError(f"k is {k!r}; give a whole number from 1 to the vocabulary of {V}")
    return log_probabilities(logits_BSV.detach(), temperature, wide_of(logits_BSV))
