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
        ranks_per_node: neighbours in number share a node.
        computed_R: [R] int64, rows that each rank's experts read; None: all that came.
    """

    rows_RR: np.ndarray
    tokens_R: np.ndarray
    out_bytes: int
    back_bytes: int
    ranks_per_node: int = 1
    computed_R: np.ndarray | None = None

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
        return self.rows_RR.sum(0) if self.computed_R is None else self.computed_R

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
    by_node: bool = False,
) -> Traffic:
    """What these choices cost, without sending anything.

    Args:
        ids_by_rank: for each rank the choices of its tokens, [T, K] int64; T may differ and be 0.
        num_experts: E; d_model: D; wire, dtype: the format of rows; ranks_per_node: a divisor of the ranks.
        by_node: whether a token goes once to each node and on from there, instead of straight to every rank.

    >>> found = traffic([torch.tensor([[0, 1]]), torch.tensor([[0, 3]])], 4, d_model=8)
    >>> found.rows_RR.tolist(), found.dispatch_RR.tolist()
    ([[1, 0], [1, 1]], [[48, 0], [48, 48]])
    """
    ranks, near = len(ids_by_rank), ranks_per_node
    _check_nodes(ranks, near)
    if not by_node:
        sent = [[Plan.of(ids, num_experts, ranks).sent_R.tolist()] for ids in ids_by_rank]
    else:
        nodes = ranks // near
        plans = [Plan.of(ids, num_experts, nodes) for ids in ids_by_rank]
        parts = [plan.ids_MK.split(plan.sent_R.tolist()) for plan in plans]
        sent = []
        for rank in range(ranks):
            node, place = divmod(rank, near)
            arrived = torch.cat([parts[other * near + place][node] for other in range(nodes)])
            further = Plan.of(arrived, num_experts // nodes, near)
            sent.append([plans[rank].sent_R.tolist(), further.sent_R.tolist()])
    tokens, top_k = [len(ids) for ids in ids_by_rank], ids_by_rank[0].shape[1]
    return _record(sent, tokens, d_model, top_k, wire, dtype, near)


def gather_traffic(
    tokens: int,
    sent: Sequence[Sequence[int]],
    group: dist.ProcessGroup | None,
    *,
    d_model: int,
    top_k: int,
    wire: Wire,
    dtype: torch.dtype,
    ranks_per_node: int = 1,
) -> Traffic:
    """The record of all ranks, from what each one sent on each hop; every rank of the group must call it."""
    told = [(tokens, list(sent))]
    if group is not None:
        told = [None] * dist.get_world_size(group)
        dist.all_gather_object(told, (tokens, list(sent)), group=group)
    return _record([s for _, s in told], [t for t, _ in told], d_model, top_k, wire, dtype, ranks_per_node)


def _record(
    sent: Sequence[Sequence[Sequence[int]]],
    tokens: Sequence[int],
    d_model: int,
    top_k: int,
    wire: Wire,
    dtype: torch.dtype,
    near: int,
) -> Traffic:
    ranks = len(tokens)
    _check_nodes(ranks, near)
    hops = np.zeros((max(len(one) for one in sent), ranks, ranks), dtype=np.int64)
    for rank, one in enumerate(sent):
        for hop, rows in enumerate(one):
            hops[hop, rank, _reached(rank, hop, len(one), ranks, near)] = rows
    out = row_bytes(d_model, wire, dtype) + top_k * (ID_BYTES + SCORE_BYTES)
    back = row_bytes(d_model, answer_wire(wire), dtype)
    computed_R = hops[-1].sum(0) if len(hops) else np.zeros(ranks, dtype=np.int64)
    return Traffic(hops.sum(0), np.array(tokens, dtype=np.int64), out, back, near, computed_R)


def _reached(rank: int, hop: int, hops: int, ranks: int, near: int) -> slice:
    """The ranks that a hop goes to: all; or those of the same place in each node, then those of the same node."""
    if hops == 1:
        return slice(0, ranks)
    return slice(rank % near, ranks, near) if hop == 0 else slice(rank // near * near, (rank // near + 1) * near)


def _check_nodes(ranks: int, ranks_per_node: int) -> None:
    if ranks_per_node < 1 or ranks % ranks_per_node:
        raise ValueError(f"ranks_per_node is {ranks_per_node}; give a divisor of the {ranks} ranks")
