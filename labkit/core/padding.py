"""Which tokens of a batch are real: one reading of a mask for every function that is given one."""

from __future__ import annotations

import torch
from torch import Tensor


def real_tokens(mask_T: Tensor | None, num_tokens: int, device: torch.device | str | None = None) -> Tensor:
    """True where a token is real; [T], bool.

    Args:
        mask_T: [T] or any shape of T elements (an attention mask [B, S]), true or 1 where a token is real, false or 0
            for padding. None: every token is real.
        num_tokens: T; device: of the result, by default the mask's.

    Raises ValueError for another number of elements, and for other values than 0 and 1: an additive mask (0 for real
    tokens, −∞ for padding) would otherwise be read the wrong way round.

    >>> real_tokens(torch.tensor([[1, 1, 0]]), 3).tolist()
    [True, True, False]
    """
    if mask_T is None:
        return torch.ones(num_tokens, dtype=torch.bool, device=device)
    if mask_T.numel() != num_tokens:
        raise ValueError(f"mask_T has {mask_T.numel()} elements for {num_tokens} tokens; give one each")
    if mask_T.dtype != torch.bool and not ((mask_T == 0) | (mask_T == 1)).all():
        raise ValueError("mask_T holds other values than 0 and 1; give 1 where a token is real, 0 for padding")
    return mask_T.reshape(-1).to(device or mask_T.device).bool()
