"""An order in which alike rows are neighbours, so that groups show as blocks in a matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def cluster_order(similarity_EE: Tensor) -> list[int]:
    """The leaves of an average-linkage tree from left to right; the same matrix gives the same order.

    The two groups that are most alike on average are joined until one is left (Sokal and Michener 1958, UPGMA). Of the
    four ways to put two groups side by side, the one whose touching ends are most alike is taken, the first of equals.

    Args:
        similarity_EE: [E, E], symmetric and finite; the diagonal is not read.

    Raises ValueError for another shape or a number that is not finite.

    >>> cluster_order(torch.tensor([[0.0, 1.0, 9.0], [1.0, 0.0, 2.0], [9.0, 2.0, 0.0]]))
    [0, 2, 1]
    """
    if similarity_EE.ndim != 2 or similarity_EE.shape[0] != similarity_EE.shape[1] or len(similarity_EE) == 0:
        raise ValueError(f"cluster_order got shape {tuple(similarity_EE.shape)}; give a square matrix [E, E]")
    if not similarity_EE.isfinite().all():
        raise ValueError("cluster_order got a similarity that is not finite; clip it first")
    ends = similarity_EE.double()
    between = ends.clone().fill_diagonal_(-torch.inf)  # mean similarity of two groups; −inf where there is no group
    groups = {e: [e] for e in range(len(ends))}
    while len(groups) > 1:
        i, j = sorted(divmod(int(between.argmax()), len(ends)))
        m, n = len(groups[i]), len(groups[j])
        between[i] = between[:, i] = (m * between[i] + n * between[j]) / (m + n)
        between[j] = between[:, j] = -torch.inf
        groups[i] = _side_by_side(groups[i], groups.pop(j), ends)
    return groups[min(groups)]


def _side_by_side(a: list[int], b: list[int], ends: Tensor) -> list[int]:
    ways = ((a, b), (a, b[::-1]), (a[::-1], b), (a[::-1], b[::-1]))
    left, right = max(ways, key=lambda way: float(ends[way[0][-1], way[1][0]]))
    return left + right
