"""Who may look at whom: never ahead, never at padding, and in sliding layers not far back."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_mask(
    S: int,
    total: int | None = None,
    padding_mask: Tensor | None = None,
    *,
    window: int = 0,
    device: torch.device | str | None = None,
) -> Tensor | None:
    """What scaled dot-product attention needs: True where query i may look at key j.

    Args:
        S: how many queries there are, the last ones of the sequence.
        total: how many keys there are, S with what a cache holds; left out, S.
        padding_mask: [B, total], 1 where a token is real, on either side of padding.
        window: a query sees the last `window` positions, itself among them; 0: all.
        device: of the result; left out, the padding mask's.

    Returns [B or 1, 1, S, total] bool; or None where causality alone decides (then SDPA's `is_causal` says it, and its
    fast backends apply) and for a single query that may see everything. A padding query sees itself, and nothing of
    it is read later, so that no row is empty and no output NaN. Raises ValueError for sizes that do not fit.

    >>> attention_mask(2, 3, window=2)[0, 0].tolist()
    [[True, True, False], [False, True, True]]
    """
    total = S if total is None else total
    if not 1 <= S <= total:
        raise ValueError(f"there are {S} queries and {total} keys; the queries are the last of the keys")
    if window < 0:
        raise ValueError(f"window is {window}; give 0 for all, or how many positions are seen")
    if padding_mask is None and S in (1, total) and not 0 < window < total:
        return None
    if device is None and padding_mask is not None:
        device = padding_mask.device
    query = torch.arange(total - S, total, device=device)[:, None]
    key = torch.arange(total, device=device)[None]
    seen = key <= query
    if window:
        seen = seen & (key > query - window)
    if padding_mask is None:
        return seen[None, None]
    if padding_mask.ndim != 2 or padding_mask.shape[1] != total:
        raise ValueError(f"padding_mask has shape {tuple(padding_mask.shape)}; expected (B, {total})")
    real_BK = padding_mask.to(seen.device) != 0
    return (seen & real_BK[:, None, None, :]) | (key == query)
