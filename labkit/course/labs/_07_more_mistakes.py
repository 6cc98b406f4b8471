"""Lab 07: mistakes in Muon's iteration and in the multi-token loss, as a learner's function makes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.labs import _07_cases as right

IGNORED = -100

# ----------------------------------------------------------------------------------------------------- newton_schulz

QUINTIC = (3.4445, -4.7750, 2.0315)


def _iterate(x: Tensor, steps: int, factors: tuple[float, float, float] = QUINTIC) -> Tensor:
    a, b, c = factors
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _norm(x: Tensor) -> Tensor:
    return x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)


def schulz_whole_norm(matrices: Tensor, steps: int = 5) -> Tensor:
    return _iterate(matrices / matrices.norm().clamp_min(1e-7), steps)


def schulz_rows(matrices: Tensor, steps: int = 5) -> Tensor:
    return _iterate(matrices / matrices.norm(dim=-1, keepdim=True).clamp_min(1e-7), steps)


def schulz_columns(matrices: Tensor, steps: int = 5) -> Tensor:
    return _iterate(matrices / matrices.norm(dim=-2, keepdim=True).clamp_min(1e-7), steps)


def schulz_largest(matrices: Tensor, steps: int = 5) -> Tensor:
    return _iterate(matrices / matrices.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(1e-7), steps)


def schulz_spectral(matrices: Tensor, steps: int = 5) -> Tensor:
    norm = torch.linalg.matrix_norm(matrices, ord=2, keepdim=True)
    return _iterate(matrices / norm.clamp_min(1e-7), steps)


def schulz_not_divided(matrices: Tensor, steps: int = 5) -> Tensor:
    return _iterate(matrices, steps)


def schulz_not_back(matrices: Tensor, steps: int = 5) -> Tensor:
    done = right.newton_schulz(matrices, steps)
    return done.mT if matrices.shape[-2] > matrices.shape[-1] else done


def schulz_last_two_gone(matrices: Tensor, steps: int = 5) -> Tensor:
    return right.newton_schulz(matrices.flatten(0, -2), steps).view(matrices.shape)


def schulz_nan(matrices: Tensor, steps: int = 5) -> Tensor:
    return _iterate(matrices / matrices.norm(dim=(-2, -1), keepdim=True), steps)


def schulz_cubic(matrices: Tensor, steps: int = 5) -> Tensor:
    return _iterate(matrices / _norm(matrices), steps, (1.5, -0.5, 0.0))


def schulz_swapped(matrices: Tensor, steps: int = 5) -> Tensor:
    return _iterate(matrices / _norm(matrices), steps, (3.4445, 2.0315, -4.7750))


def schulz_five(matrices: Tensor, steps: int = 5) -> Tensor:
    return right.newton_schulz(matrices, 5)


def schulz_elementwise(matrices: Tensor, steps: int = 5) -> Tensor:
    a, b, c = QUINTIC
    x = matrices / _norm(matrices)
    for _ in range(steps):
        x = a * x + b * x**3 + c * x**5
    return x


def schulz_exact(matrices: Tensor, steps: int = 5) -> Tensor:
    left, values, right_T = torch.linalg.svd(matrices, full_matrices=False)
    return left * (values > 1e-7 * values.amax(-1, keepdim=True).clamp_min(1e-30))[..., None, :] @ right_T


def schulz_bfloat16(matrices: Tensor, steps: int = 5) -> Tensor:
    x = matrices.bfloat16()
    return _iterate(x / _norm(x), steps)


def schulz_rounded(matrices: Tensor, steps: int = 5) -> Tensor:
    return schulz_bfloat16(matrices, steps).to(matrices.dtype)


def schulz_renormalised(matrices: Tensor, steps: int = 5) -> Tensor:
    x = matrices
    for _ in range(steps):
        x = _iterate(x / _norm(x), 1)
    return x


def schulz_scaled(matrices: Tensor, steps: int = 5) -> Tensor:
    return right.newton_schulz(matrices, steps) * (0.2 * max(matrices.shape[-2:]) ** 0.5)


def schulz_norm_squared(matrices: Tensor, steps: int = 5) -> Tensor:
    return _iterate(matrices / matrices.square().sum(dim=(-2, -1), keepdim=True).clamp_min(1e-7), steps)


def schulz_norm_given_back(matrices: Tensor, steps: int = 5) -> Tensor:
    return right.newton_schulz(matrices, steps) * _norm(matrices)


def schulz_gram_once(matrices: Tensor, steps: int = 5) -> Tensor:
    (a, b, c), x = QUINTIC, matrices / _norm(matrices)
    gram = x @ x.mT
    for _ in range(steps):
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def schulz_gram_star(matrices: Tensor, steps: int = 5) -> Tensor:
    (a, b, c), x = QUINTIC, matrices / _norm(matrices)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram**2) @ x
    return x


def schulz_no_fifth(matrices: Tensor, steps: int = 5) -> Tensor:
    a, b, c = QUINTIC
    return _iterate(matrices / _norm(matrices), steps, (a, b + c, 0.0))


def schulz_sign(matrices: Tensor, steps: int = 5) -> Tensor:
    a, b, c = QUINTIC
    return _iterate(matrices / _norm(matrices), steps, (a, -b, c))


def schulz_one_more(matrices: Tensor, steps: int = 5) -> Tensor:
    return right.newton_schulz(matrices, steps + 1)


def schulz_one_less(matrices: Tensor, steps: int = 5) -> Tensor:
    return right.newton_schulz(matrices, steps - 1)


# ---------------------------------------------------------------------------------------------------------- mtp_loss

Heads = Sequence[Tensor]


def _ahead(logits_BSV: Tensor, labels_BS: Tensor, by: int, reduction: str = "sum") -> Tensor:
    target_BS = labels_BS[:, by:]
    logits_BSV = logits_BSV[:, : target_BS.shape[1]]
    target_BS = target_BS[:, : logits_BSV.shape[1]]
    return F.cross_entropy(logits_BSV.flatten(0, 1), target_BS.flatten(), reduction=reduction)


def _count(labels_BS: Tensor) -> Tensor:
    return (labels_BS[:, 1:] != IGNORED).sum()


def mtp_shift_k(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    total = sum(_ahead(logits, labels_BS, k) for k, logits in enumerate(heads, 1))
    return weight / len(heads) * total / _count(labels_BS)


def mtp_shift_too_far(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    total = sum(_ahead(logits, labels_BS, k + 2) for k, logits in enumerate(heads, 1))
    return weight / len(heads) * total / _count(labels_BS)


def mtp_all_two_ahead(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    total = sum(_ahead(logits, labels_BS, 2) for logits in heads)
    return weight / len(heads) * total / _count(labels_BS)


def mtp_own_mean(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    total = heads[0].new_zeros(())
    for k, logits in enumerate(heads, 1):
        real = (labels_BS[:, k + 1 :] != IGNORED).sum().clamp_min(1)
        total = total + _ahead(logits, labels_BS, k + 1) / real
    return weight / len(heads) * total


def mtp_own_mean_nan(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    means = [_ahead(logits, labels_BS, k + 1, "mean") for k, logits in enumerate(heads, 1)]
    return weight / len(heads) * torch.stack(means).sum()


def mtp_positions(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    return right.mtp_loss(heads, labels_BS, weight) * _count(labels_BS) / labels_BS[:, 1:].numel()


def mtp_all_positions(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    return right.mtp_loss(heads, labels_BS, weight) * _count(labels_BS) / labels_BS.numel()


def mtp_real_labels(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    return right.mtp_loss(heads, labels_BS, weight) * _count(labels_BS) / (labels_BS != IGNORED).sum()


def mtp_depths_added(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    return right.mtp_loss(heads, labels_BS, weight) * len(heads)


def mtp_unweighted(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    return right.mtp_loss(heads, labels_BS, 1.0)


def mtp_weight_to_the_depth(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    total = sum(weight**k * _ahead(logits, labels_BS, k + 1) for k, logits in enumerate(heads, 1))
    return total / len(heads) / _count(labels_BS)


def mtp_summed(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    return right.mtp_loss(heads, labels_BS, weight) * _count(labels_BS)


def mtp_first_only(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    return right.mtp_loss(heads[:1], labels_BS, weight)


def mtp_padding_learned(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    return right.mtp_loss(heads, labels_BS.clamp_min(0), weight)


def mtp_last_left(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    total = heads[0].new_zeros(())
    for k, logits in enumerate(heads, 1):
        target_BS = labels_BS[:, k + 1 :]
        total = total + F.cross_entropy(logits.flatten(0, 1), target_BS.flatten(), reduction="sum")
    return weight / len(heads) * total / _count(labels_BS)


def mtp_cut_front(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    total = sum(_ahead(logits[:, 1:], labels_BS, k + 1) for k, logits in enumerate(heads, 1))
    return weight / len(heads) * total / _count(labels_BS)


def mtp_rolled(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    total = sum(_ahead(logits, labels_BS.roll(-k - 1, 1), 0) for k, logits in enumerate(heads, 1))
    return weight / len(heads) * total / _count(labels_BS)


def mtp_targets_of_depth_one(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    return right.mtp_loss(heads, labels_BS, weight) * _count(labels_BS) / (labels_BS[:, 2:] != IGNORED).sum()


def mtp_by_sequence(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    means = []
    for row, labels_S in enumerate(labels_BS):
        count = (labels_S[1:] != IGNORED).sum().clamp_min(1)
        means.append(sum(_ahead(x[row : row + 1], labels_S[None], k + 1) for k, x in enumerate(heads, 1)) / count)
    return weight / len(heads) * torch.stack(means).mean()


def mtp_batch_forgotten(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    return right.mtp_loss(heads, labels_BS, weight) * _count(labels_BS) / (labels_BS.shape[1] - 1)


def mtp_averaged_twice(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    return right.mtp_loss(heads, labels_BS, weight) / len(heads)


def mtp_last_only(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    last = _ahead(heads[-1], labels_BS, len(heads) + 1)
    return weight / len(heads) * last / _count(labels_BS)


def mtp_main_counted(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    return right.mtp_loss(heads, labels_BS, weight) * len(heads) / (len(heads) + 1)


def mtp_sign(heads: Heads, labels_BS: Tensor, weight: float) -> Tensor:
    return -right.mtp_loss(heads, labels_BS, weight)
