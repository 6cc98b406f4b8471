"""Which row goes to which rank: the router's choices seen from the ranks that own the experts.

Experts are split in order: of E experts over R ranks, rank r owns r·E/R … (r + 1)·E/R − 1, so that groups of a router
that decides by groups (DeepSeek-V3, section 2.1.2) stay together on a node. A token goes to a rank once, however many
of its experts live there; the scores go along, and one weighted sum comes back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """The M rows that one rank sends, those for rank 0 first and in the tokens' order for each.

    Args:
        token_M: [M] int64, whose row each is.
        sent_R: [R] int64, rows for each rank.
        ids_MK: [M, K] int32, the token's experts as numbered on the rank it goes to, −1 where an expert is elsewhere.
        here_MK: [M, K] bool, where they are not −1.
    """

    token_M: Tensor
    sent_R: Tensor
    ids_MK: Tensor
    here_MK: Tensor

    @classmethod
    def of(cls, topk_ids_TK: Tensor, num_experts: int, ranks: int) -> Plan:
        """The plan for these choices, [T, K] integers, of which −1 is none; ValueError unless ranks divide experts.

        >>> plan = Plan.of(torch.tensor([[0, 1], [3, 0]]), num_experts=4, ranks=2)
        >>> plan.token_M.tolist(), plan.sent_R.tolist(), plan.ids_MK.tolist()
        ([0, 1, 1], [2, 1], [[0, 1], [-1, 0], [1, -1]])
        """
        local = local_experts(num_experts, ranks)
        rank_TK = topk_ids_TK.long() // local
        goes_RT = _goes(rank_TK, ranks).T
        rank_M, token_M = goes_RT.nonzero(as_tuple=True)
        here_MK = rank_TK[token_M] == rank_M[:, None]
        ids_MK = (topk_ids_TK[token_M] - rank_M[:, None] * local).masked_fill(~here_MK, -1).int()
        return cls(token_M, goes_RT.sum(1), ids_MK, here_MK)


def local_experts(num_experts: int, ranks: int) -> int:
    """How many experts each rank owns. Raises ValueError unless all own the same number, at least one.

    >>> local_experts(256, 32)
    8
    """
    if ranks < 1 or num_experts % ranks:
        fits = [n for n in range(1, num_experts + 1) if num_experts % n == 0]
        raise ValueError(f"{num_experts} experts cannot be split over {ranks} ranks; take one of {fits}")
    return num_experts // ranks


def copies(topk_ids_TK: Tensor, num_experts: int, places: int) -> Tensor:
    """To how many places (ranks, or nodes) each token goes: [T] int64.

    >>> copies(torch.tensor([[0, 1], [3, 0]]), num_experts=4, places=2).tolist()
    [1, 2]
    """
    return _goes(topk_ids_TK.long() // local_experts(num_experts, places), places).sum(1)


def _goes(rank_TK: Tensor, ranks: int) -> Tensor:
    goes_TR = torch.zeros(len(rank_TK), ranks + 1, dtype=torch.bool, device=rank_TK.device)
    return goes_TR.scatter_(1, rank_TK.where(rank_TK >= 0, ranks), True)[:, :ranks]  # the last column is nowhere
