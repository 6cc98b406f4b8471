"""Rows to their experts and back: each of the two moves is the other's gradient, so neither needs a scatter.

Shape suffixes: T tokens, K experts per token, D width, N = T·K pairs in the order of `reference.sort_by_expert`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def spread(x_TD: Tensor, token_N: Tensor, place_TK: Tensor) -> Tensor:
    """A token's row for each of its pairs: [T, D] to [N, D].

    Args:
        token_N: [N] int64, whose token each pair is; place_TK: [T, K] int64, where each token's pairs stand.

    >>> x, token, place = torch.tensor([[1.0], [2.0]]), torch.tensor([1, 0]), torch.tensor([[1], [0]])
    >>> spread(x, token, place).flatten().tolist()
    [2.0, 1.0]
    """
    return _Spread.apply(x_TD, token_N, place_TK)


def gather_sum(y_ND: Tensor, token_N: Tensor, place_TK: Tensor) -> Tensor:
    """The sum of each token's pairs: [N, D] to [T, D] in y's dtype, added up in float32 or wider.

    >>> token, place = torch.tensor([0, 0]), torch.tensor([[1, 0]])
    >>> gather_sum(torch.tensor([[1.0], [10.0]]), token, place).tolist()
    [[11.0]]
    """
    return _GatherSum.apply(y_ND, token_N, place_TK)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x_TD: Tensor, token_N: Tensor, place_TK: Tensor) -> Tensor:
        context.save_for_backward(token_N, place_TK)
        return x_TD[token_N]

    @staticmethod
    def backward(context: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        return gather_sum(grad_ND, *context.saved_tensors), None, None


class _GatherSum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, y_ND: Tensor, token_N: Tensor, place_TK: Tensor) -> Tensor:
        context.save_for_backward(token_N, place_TK)
        return y_ND[place_TK].sum(dim=1)

    @staticmethod
    def backward(context: Any, grad_TD: Tensor) -> tuple[Tensor, None, None]:
        return spread(grad_TD, *context.saved_tensors), None, None
