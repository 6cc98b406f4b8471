"""Attention over a paged cache: what must come out, in torch, for a flat batch of many sequences.

A store holds entries in blocks, and a table says which blocks are a sequence's. A token sees the entries of its own
sequence up to its own position, and in a sliding window only the last of them. Kwon et al. 2023, PagedAttention (arXiv
2309.06180), section 4.1.

Shape suffixes: T tokens, H query heads, G key and value heads, d head width, v value width; A blocks of a store, b
positions in each; n sequences computed together, S tokens of each, K positions that they may see; N, M as in `Layout`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.kernels.paged_layout import Alike, Layout

__all__ = ["Layout", "attend", "write"]


def write(store_AbGd: Tensor, fresh_TGd: Tensor, layout: Layout) -> None:
    """Put the entries of the step's tokens into their rows, in the store's dtype.

    Args:
        store_AbGd: [A, b, G, d], contiguous; fresh_TGd: [T, G, d], any strides.
        layout: says the rows.
    """
    store_AbGd.view(-1, *store_AbGd.shape[2:]).index_copy_(0, layout.rows_T, fresh_TGd.to(store_AbGd.dtype))


def attend(
    query_THd: Tensor,
    key_AbGd: Tensor,
    value_AbGv: Tensor | None,
    layout: Layout,
    *,
    scale: float,
    window: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax of scaled products with the entries that each token sees, times the values.

    Args:
        query_THd: [T, H, d], any strides; G divides H.
        key_AbGd: [A, b, G, d]; value_AbGv: [A, b, G, v], or None: the keys are the values too (latent attention).
        layout: whose entries; they are written before.
        scale: of the products before the softmax.
        window: a token sees the last `window` positions, itself among them; 0: all.
        sinks: [H], one more logit in each head's softmax, with a value of zero.

    Returns [T, H, v] in the queries' dtype; zeros for an empty place. What stands in rows that nobody sees does not
    matter, were it no number. Raises ValueError for shapes that do not fit.

    >>> from types import SimpleNamespace as Chunk
    >>> layout = Layout.of([Chunk(start=1, tokens=(7,), blocks=(2, 0))], block_size=1)
    >>> store = torch.tensor([3.0, 9.0, 1.0]).view(3, 1, 1, 1)
    >>> attend(torch.zeros(1, 2, 1), store, store, layout, scale=1.0).flatten().tolist()
    [2.0, 2.0]
    """
    check(query_THd, key_AbGd, value_AbGv, layout, window, sinks)
    T, H, _ = query_THd.shape
    v = (key_AbGd if value_AbGv is None else value_AbGv).shape[-1]
    out_THv = query_THd.new_zeros(T, H, v)
    for group in layout.alike:
        _attend(out_THv, query_THd, key_AbGd, value_AbGv, layout, group, scale, window, sinks)
    return out_THv


def _attend(out_THv, query_THd, key_AbGd, value_AbGv, layout, group: Alike, scale, window, sinks) -> None:
    """One padded call for sequences alike."""
    (n, S), (H, G) = group.tokens.shape, (query_THd.shape[1], key_AbGd.shape[2])
    blocks_nC, unseen_nK, mask_nSK = _seen(layout, group, key_AbGd.shape[1], window)
    key_nGKd = _entries(key_AbGd, blocks_nC, unseen_nK, query_THd.dtype)
    value_nGKv = key_nGKd if value_AbGv is None else _entries(value_AbGv, blocks_nC, unseen_nK, query_THd.dtype)
    tokens = group.tokens.flatten()
    query_nSHd = query_THd.index_select(0, tokens).view(n, S, G, H // G, -1)
    rows_nGRd = query_nSHd.permute(0, 2, 3, 1, 4).reshape(n, G, H // G * S, -1)  # the heads of a group share its keys
    mask_n1RK = mask_nSK[:, None] if S == 1 else mask_nSK.repeat(1, H // G, 1)[:, None]
    if sinks is None:
        y_nGRv = F.scaled_dot_product_attention(rows_nGRd, key_nGKd, value_nGKv, attn_mask=mask_n1RK, scale=scale)
    else:
        y_nGRv = _with_sinks(rows_nGRd, key_nGKd, value_nGKv, mask_n1RK, scale, sinks.view(G, -1, 1).expand(-1, -1, S))
    y_nSHv = y_nGRv.view(n, G, H // G, S, -1).permute(0, 3, 1, 2, 4).reshape(n * S, H, -1)
    out_THv.index_copy_(0, tokens, y_nSHv)


def _seen(layout: Layout, group: Alike, b: int, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """The blocks to read, which of their rows hold nothing yet, and who sees which row."""
    S, table_nM = group.tokens.shape[1], layout.tables_NM.index_select(0, group.sequences).long()
    length_n = layout.lengths_N.index_select(0, group.sequences).long()
    count, first_n = -(-group.longest // b), torch.zeros_like(length_n)
    if window and group.longest > S + window:
        count = min(count, (S + window - 2) // b + 2)
        first_n = (length_n - S - window + 1).clamp_min(0) // b
    at_nC = first_n[:, None] + torch.arange(count, device=length_n.device)
    key_nK = (first_n * b)[:, None] + torch.arange(count * b, device=length_n.device)
    query_nS = (length_n - S)[:, None] + torch.arange(S, device=length_n.device)
    mask_nSK = key_nK[:, None] <= query_nS[:, :, None]
    if window:
        mask_nSK &= key_nK[:, None] > query_nS[:, :, None] - window
    return table_nM.gather(1, at_nC.clamp_max(table_nM.shape[1] - 1)), key_nK >= length_n[:, None], mask_nSK


def _entries(store_AbGd: Tensor, blocks_nC: Tensor, unseen_nK: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, G, K, d]: the entries of these blocks, zero where nothing is written: 0 · NaN would be NaN."""
    found = store_AbGd.index_select(0, blocks_nC.flatten()).to(dtype)
    found_nKGd = found.view(*unseen_nK.shape, *store_AbGd.shape[2:])
    return found_nKGd.masked_fill_(unseen_nK[:, :, None, None], 0).transpose(1, 2)


def _with_sinks(rows_nGRd, key_nGKd, value_nGKv, mask_n1RK, scale: float, sinks_GHS: Tensor) -> Tensor:
    """The plain formula, at least in float32, with one more column in the softmax."""
    wide = torch.promote_types(rows_nGRd.dtype, torch.float32)
    scores = (rows_nGRd.to(wide) @ key_nGKd.mT.to(wide) * scale).masked_fill_(~mask_n1RK, -torch.inf)
    sink_nGR1 = sinks_GHS.to(wide).reshape(1, scores.shape[1], -1, 1).expand(len(scores), -1, -1, -1)
    weights = torch.cat([scores, sink_nGR1], dim=-1).softmax(-1)[..., :-1]
    return (weights @ value_nGKv.to(wide)).to(rows_nGRd.dtype)


def check(
    query_THd: Tensor, key_AbGd: Tensor, value_AbGv: Tensor | None, layout: Layout, window: int, sinks: Tensor | None
) -> None:
    """Raise ValueError for shapes that do not fit."""
    value_AbGv = key_AbGd if value_AbGv is None else value_AbGv
    shapes = [tuple(t.shape) for t in (query_THd, key_AbGd, value_AbGv)]
    if (
        [len(shape) for shape in shapes] != [3, 4, 4] or shapes[1][:3] != shapes[2][:3]
        or shapes[0][2] != shapes[1][3] or shapes[0][1] % shapes[1][2]
    ):  # fmt: skip
        raise ValueError(
            f"queries, keys and values have shapes {shapes}; expected [T, H, d], [A, b, G, d] and [A, b, G, any width],"
            " with G a divisor of H"
        )
    if shapes[0][0] != len(layout.positions_T):
        raise ValueError(f"there are {shapes[0][0]} queries, the layout has {len(layout.positions_T)} tokens")
    if window < 0:
        raise ValueError(f"window is {window}; give 0 for all, or how many positions are seen")
    if sinks is not None and tuple(sinks.shape) != shapes[0][1:2]:
        raise ValueError(f"sinks has shape {tuple(sinks.shape)}; expected ({shapes[0][1]},), one for each head")
