"""The numbers of the domain lift view: one layer's table, what chance gives for it, and what a set of experts takes.

Legend: T tokens, E experts, K experts per token, G domains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.core import metrics
from labkit.core.routing import Routing
from labkit.show.widgets.layers import visible

ROUNDS = 200


@dataclass(frozen=True, eq=False)
class LayerTable:
    """One layer: the lift of every cell, the interval that shuffled labels give, and which cells lie outside.

    Args:
        domains: names of the rows.
        lift_GE, low_GE, high_GE: the table and the interval of each cell by itself.
        outside_GE: bool, outside that interval; surely_GE: bool, out even among all G·E cells at once.
        load_E: each expert's share of all choices.
        unit: what was shuffled, "sequence" or "token".
    """

    domains: tuple[str, ...]
    lift_GE: Tensor
    low_GE: Tensor
    high_GE: Tensor
    outside_GE: Tensor
    surely_GE: Tensor
    load_E: Tensor
    unit: str


@dataclass(frozen=True)
class Share:
    """What a set of experts takes of one domain's choices, what it takes when labels are shuffled, and if that differs.

    `low` to `high` is what shuffled labels give; `lift` is the share divided by the set's share of all choices.
    """

    share: float
    low: float
    high: float
    lift: float
    outside: bool


def layer_table(record: Routing) -> LayerTable:
    """The table of one layer. Raises ValueError for a record without domains."""
    table, chance = metrics.lift_by_domain(record), metrics.permuted_lift(record, ROUNDS)
    return LayerTable(
        table.domains,
        table.lift_GE,
        chance.low_GE,
        chance.high_GE,
        chance.exceeded_by(table),
        chance.exceeded_anywhere_by(table),
        metrics.load(record),
        chance.unit,
    )


def set_shares(record: Routing, experts: Sequence[int], unit: str) -> dict[str, Share]:
    """What these experts together take of each domain's choices, beside what shuffled labels give.

    Args:
        unit: what is shuffled, as in the layer's table: "sequence" or "token".

    The set becomes one expert and all others a second one; a token's K choices stay together when labels are shuffled.
    """
    T, K = record.topk_ids_TK.shape
    others_N = (~_chose(record, experts)).long().flatten()
    unit_T = record.sequence_T if unit == "sequence" else torch.arange(T)
    merged = Routing.of(
        torch.zeros(T * K, 2), others_N[:, None], torch.ones(T * K, 1),
        domains=tuple(domain for domain in record.domains for _ in range(K)), sequence_T=unit_T.repeat_interleave(K),
    )  # fmt: skip
    table, chance = metrics.lift_by_domain(merged), metrics.permuted_lift(merged, ROUNDS)
    overall = float(metrics.load(merged)[0])
    columns = (table.lift_GE, chance.low_GE, chance.high_GE, chance.exceeded_by(table))
    rows = zip(table.domains, *(column[:, 0].tolist() for column in columns), strict=True)
    return {
        name: Share(lift * overall, low * overall, high * overall, lift, outside)
        for name, lift, low, high, outside in rows
    }


def examples(record: Routing, experts: Sequence[int], domain: str, limit: int = 6) -> list[tuple[str, int]]:
    """The commonest tokens of a domain that chose one of these experts, each with how often; none without texts."""
    if record.tokens is None:
        return []
    here = _chose(record, experts).any(1).nonzero().flatten().tolist()
    common = Counter(record.tokens[t] for t in here if record.domains[t] == domain).most_common(limit)
    return [(visible(token), count) for token, count in common]


def _chose(record: Routing, experts: Sequence[int]) -> Tensor:
    """Which choices fell on one of these experts; [T, K], bool."""
    return torch.isin(record.topk_ids_TK, torch.tensor(list(experts), dtype=torch.int64))
