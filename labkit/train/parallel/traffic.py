"""How many rows and bytes every rank sends to every other: counted from the choices, or in a running layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from labkit.train.parallel.plan import Plan
from labkit.train.parallel.wire import Wire, answer_wire, row_bytes

ID_BYTES, SCORE_BYTES = 4, 4


@dataclass(frozen=True, eq=False)
class Traffic:
    """One layer's forward pass, seen from above.

    Args:
        rows_RR: [R, R] int64, rows from rank (row) to rank (column); the diagonal stays at home.
        tokens_R: [R] int64, tokens of each rank.
        out_bytes, back_bytes: of a row on its way out (with the ids and scores beside it) and of the sum coming back.
        ranks_per_node: neighbours in numbers share a node.
    """

    rows_RR: np.ndarray
    tokens_R: np.ndarray
    out_bytes: int
    back_bytes: int
    ranks_per_node: int = 1

    @property
    def ranks(self) -> int:
        """R."""
        return len(self.tokens_R)

    @property
    def dispatch_RR(self) -> np.ndarray:
        """Bytes out, [R, R]."""
        return self.rows_RR * self.out_bytes

    @property
    def combine_RR(self) -> np.ndarray:
        """Bytes back, [R, R]: from the rank that computed (row) to the token's rank (column)."""
        return self.rows_RR.T * self.back_bytes

    @property
    def bytes_RR(self) -> np.ndarray:
        """Both ways, [R, R]."""
        return self.dispatch_RR + self.combine_RR

    @property
    def received_R(self) -> np.ndarray:
        """Rows that each rank computes, [R]."""
        return self.rows_RR.sum(0)

    @property
    def imbalance(self) -> float:
        """The busiest rank's rows over the mean; 1 is even, and nothing to do counts as even."""
        mean = self.received_R.mean()
        return float(self.received_R.max() / mean) if mean else 1.0

    def between(self, what_RR: np.ndarray) -> dict[str, int]:
        """The sum of a matrix at home, on the same node and across nodes.

        >>> Traffic(np.ones((4, 4), int), np.ones(4, int), 2, 2, ranks_per_node=2).between(np.ones((4, 4), int))
        {'home': 4, 'node': 4, 'network': 8}
        """
        node_R = np.arange(self.ranks) // self.ranks_per_node
        same_RR, home_RR = node_R[:, None] == node_R[None, :], np.eye(self.ranks, dtype=bool)
        masks = {"home": home_RR, "node": same_RR & ~home_RR, "network": ~same_RR}
        return {name: int(what_RR[mask].sum()) for name, mask in masks.items()}


def traffic(
    ids_by_rank: Sequence[Tensor],
    num_experts: int,
    d_model: int,
    *,
    wire: Wire = "same",
    dtype: torch.dtype = torch.float32,
    ranks_per_node: int = 1,
) -> Traffic:
    """What these choices cost, without sending anything.

    Args:
        ids_by_rank: for each rank the choices of its tokens, [T, K] int64; T may differ and be 0.
        num_experts: E; d_model: D; wire, dtype: the format of rows; ranks_per_node: 1 or more.

    >>> found = traffic([torch.tensor([[0, 1]]), torch.tensor([[0, 3]])], 4, d_model=8)
    >>> found.rows_RR.tolist(), found.dispatch_RR.tolist()
    ([[1, 0], [1, 1]], [[48, 0], [48, 48]])
    """
    ranks = len(ids_by_rank)
    rows = [Plan.of(ids_TK, num_experts, ranks).sent_R.tolist() for ids_TK in ids_by_rank]
    top_k = ids_by_rank[0].shape[1]
    return _record(rows, [len(ids) for ids in ids_by_rank], d_model, top_k, wire, dtype, ranks_per_node)


def gather_traffic(
    tokens: int,
    sent: Sequence[int],
    group: dist.ProcessGroup | None,
    *,
    d_model: int,
    top_k: int,
    wire: Wire,
    dtype: torch.dtype,
    ranks_per_node: int = 1,
) -> Traffic:
    """The record of all ranks, from what each one sent; every rank of the group must call it."""
    told = [(tokens, list(sent))]
    if group is not None:
        told = [None] * dist.get_world_size(group)
        dist.all_gather_object(told, (tokens, list(sent)), group=group)
    return _record([s for _, s in told], [t for t, _ in told], d_model, top_k, wire, dtype, ranks_per_node)


def _record(rows, tokens, d_model: int, top_k: int, wire: Wire, dtype: torch.dtype, ranks_per_node: int) -> Traffic:
    if ranks_per_node < 1 or len(tokens) % ranks_per_node:
        raise ValueError(f"ranks_per_node is {ranks_per_node}; give a divisor of the {len(tokens)} ranks")
    out = row_bytes(d_model, wire, dtype) + top_k * (ID_BYTES + SCORE_BYTES)
    back = row_bytes(d_model, answer_wire(wire), dtype)
    return Traffic(np.array(rows, dtype=np.int64), np.array(tokens, dtype=np.int64), out, back, ranks_per_node)
