"""How many choices go from each group to each expert, how many of them get a place, and where that is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GAPS = (0.12, 0.2)  # the share of the height that is empty, left and right, at most


@dataclass(frozen=True, eq=False)
class Counts:
    """Choices by group and expert; [G, E], int64: all of them, and those that got a place."""

    all_GE: Tensor
    kept_GE: Tensor

    @property
    def total(self) -> int:
        """All choices: T·K."""
        return int(self.all_GE.sum())


def count(group_T: Tensor, topk_ids_TK: Tensor, num_groups: int, num_experts: int, kept_TK: Tensor | None) -> Counts:
    """The choices of each group for each expert; without `kept_TK` every choice has its place."""
    cell_TK = group_T[:, None] * num_experts + topk_ids_TK

    def table(cells: Tensor) -> Tensor:
        return torch.bincount(cells.reshape(-1), minlength=num_groups * num_experts).view(num_groups, num_experts)

    all_GE = table(cell_TK)
    return Counts(all_GE, all_GE if kept_TK is None else table(cell_TK[kept_TK]))


def place(counts: Counts) -> dict[str, Any]:
    """Bars and paths in a square of height one, from the top: what both the browser and the picture draw.

    `unit` is the height of one choice. `left` and `right` are [top, choices, kept] of each group and expert. `paths`
    are [group, expert, choices, kept, top on the left, top of the kept part on the right, top of the dropped part].
    An expert's bar holds what it keeps above what it drops.
    """
    all_GE, kept_GE = counts.all_GE.tolist(), counts.kept_GE.tolist()
    G, E = counts.all_GE.shape
    least = [min(most, 0.02 * n) if n > 1 else 0.0 for most, n in zip(GAPS, (G, E), strict=True)]
    unit = (1 - max(least)) / counts.total
    groups, experts = counts.all_GE.sum(1).tolist(), counts.all_GE.sum(0).tolist()
    kept_G, kept_E = counts.kept_GE.sum(1).tolist(), counts.kept_GE.sum(0).tolist()
    top_G, top_E = _tops(groups, unit), _tops(experts, unit)
    left, kept_at = list(top_G), list(top_E)
    lost_at = [top + unit * kept for top, kept in zip(top_E, kept_E, strict=True)]
    paths = []
    for g in range(G):
        for e in range(E):
            if n := all_GE[g][e]:
                k = kept_GE[g][e]
                paths.append([g, e, n, k, *(round(y, 5) for y in (left[g], kept_at[e], lost_at[e]))])
                left[g] += unit * n
                kept_at[e] += unit * k
                lost_at[e] += unit * (n - k)
    return {
        "unit": unit,
        "left": [[round(y, 5), n, k] for y, n, k in zip(top_G, groups, kept_G, strict=True)],
        "right": [[round(y, 5), n, k] for y, n, k in zip(top_E, experts, kept_E, strict=True)],
        "paths": paths,
    }


def _tops(counts: list[int], unit: float) -> list[float]:
    """The top of each bar, the gaps between them equal."""
    gap = (1 - unit * sum(counts)) / (len(counts) - 1) if len(counts) > 1 else 0.0
    top = 0.0 if len(counts) > 1 else (1 - unit * sum(counts)) / 2
    tops = []
    for n in counts:
        tops.append(top)
        top += unit * n + gap
    return tops
