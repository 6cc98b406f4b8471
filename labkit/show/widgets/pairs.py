"""Pairs of experts in one layer: how often they are chosen together, against chance, and for which tokens."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labkit.core.metrics import coactivation, coactivation_lift
from labkit.core.routing import Routing
from labkit.show.widgets.layers import evenly, neighbours
from labkit.show.widgets.seriation import cluster_order

CONTEXT = 5
EXAMPLES = 12
FARTHEST = 4.0  # the colour scale of a lift ends at 2⁴ and at 2⁻⁴ at most


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of one layer.

    Args:
        record: the layer's Routing.
        count_EE: tokens that chose both experts; on the diagonal, that chose the expert.
        lift_EE: count over what the loads alone explain (`metrics.coactivation_lift`); 1 on the diagonal.
    """

    record: Routing
    count_EE: Tensor
    lift_EE: Tensor

    @classmethod
    def of(cls, record: Routing) -> Pairs:
        """Counted from the record."""
        return cls(record, coactivation(record), coactivation_lift(record).double())

    @property
    def apart_EE(self) -> Tensor:
        """True for two different experts."""
        return ~torch.eye(len(self.count_EE), dtype=torch.bool)

    @property
    def paired_EE(self) -> Tensor:
        """True for two different experts that were both chosen beside others: where a lift says something."""
        met_E = self.count_EE.sum(1) > self.count_EE.diagonal()
        return self.apart_EE & met_E & met_E[:, None]

    @property
    def share_EE(self) -> Tensor:
        """The share of all tokens that chose both."""
        return self.count_EE / self.record.num_tokens

    @property
    def random_share(self) -> float:
        """The share of tokens for a pair if K of E different experts are drawn at random: K(K − 1) / (E(E − 1))."""
        E, K = self.record.num_experts, self.record.top_k
        return K * (K - 1) / (E * (E - 1)) if E > 1 else 0.0

    @property
    def random_ratio(self) -> float:
        """P(i, j) / (P(i) P(j)) of that random router: ((K − 1) / K) · (E / (E − 1)), below 1 unless K = E.

        Because P(i) = K / E, and P(i, j) is `random_share`: once i is chosen, j is one of K − 1 out of E − 1.
        """
        E, K = self.record.num_experts, self.record.top_k
        return (K - 1) / K * E / (E - 1) if E > 1 else 0.0

    def busiest(self) -> list[int]:
        """The pair with the most tokens, the first of equals; (0, 0) if there is one expert."""
        counts = self.count_EE.where(self.apart_EE, torch.tensor(-1))
        return list(divmod(int(counts.argmax()), len(counts)))

    def farthest(self) -> float:
        """Where the colours of lift end, as a power of two on either side of 1."""
        seen = self.lift_EE[self.paired_EE & (self.lift_EE > 0)].log2().abs()
        return min(FARTHEST, max(1.0, float(seen.max()) if len(seen) else 1.0))

    def order(self) -> list[int]:
        """Experts that are chosen together are neighbours: average linkage on the logarithm of the lift."""
        return cluster_order(self.lift_EE.clamp(2**-FARTHEST, 2**FARTHEST).log2())

    def tokens_of(self, i: int, j: int) -> Tensor:
        """The positions of the tokens that chose both experts; [n], int64."""
        ids_TK = self.record.topk_ids_TK
        return ((ids_TK == i).any(1) & (ids_TK == j).any(1)).nonzero()[:, 0]

    def examples(self, positions: Tensor) -> list[dict[str, Any]]:
        """At most twelve of these tokens, evenly spaced, each with what stands before and after it in its sequence."""
        chosen = positions[evenly(len(positions), EXAMPLES)].tolist()
        return [self._in_context(t) for t in chosen]

    def _in_context(self, t: int) -> dict[str, Any]:
        before, token, after = neighbours(self.record, t, CONTEXT, CONTEXT)
        domain = self.record.domains[t] if self.record.domains else ""
        return {"position": t, "before": before, "token": token.strip(), "after": after, "domain": domain}

    def by_domain(self, positions: Tensor) -> list[dict[str, Any]]:
        """Each domain's share among these tokens, and among all: the baseline. Empty without domains or tokens."""
        domains = self.record.domains
        if domains is None or len(positions) == 0:
            return []
        everywhere, here = Counter(domains), Counter(domains[t] for t in positions.tolist())
        n, T = len(positions), self.record.num_tokens
        return [
            {"domain": name, "count": here[name], "share": here[name] / n, "baseline": everywhere[name] / T}
            for name in sorted(everywhere)
        ]


def chance_range(expected: float, num_tokens: int) -> tuple[float, float]:
    """The lifts that chance gives where so many of the tokens are expected: two standard deviations around 1.

    The count is taken as binomial, so tokens as independent; neighbours in a text are not, and vary more.

    >>> low, high = chance_range(100.0, 1_000_000)
    >>> round(low, 2), round(high, 2)
    (0.8, 1.2)
    """
    off = 2 * math.sqrt(max(0.0, 1 - expected / num_tokens) / expected)
    return max(0.0, 1 - off), 1 + off
