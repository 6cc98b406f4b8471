"""A flat batch as a few padded ones: which sequences torch computes together, and which rows they read.

Shape suffixes: n sequences computed together, S tokens of each, K positions that they may see.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from labkit.kernels.paged_layout import Layout

SHORT = 128  # contexts up to here go together, however short they are


class Padded(NamedTuple):
    """One padded batch.

    Args:
        tokens_nS: [n, S] int64, places in the flat batch.
        rows_nK: [n, K] int64, rows of the store; where a sequence has none, one of its own that was written.
        mask_nSK: [n, S, K] bool, true where a token sees a row.
    """

    tokens_nS: Tensor
    rows_nK: Tensor
    mask_nSK: Tensor


def padded(layout: Layout, block_size: int, window: int, most: int) -> tuple[Padded, ...]:
    """Sequences of equally many tokens and similar contexts together, so that padding at most doubles the work.

    Args:
        layout: whose tensors are read; on a GPU the host waits.
        block_size: positions of a block.
        window: a token sees the last `window` positions; 0: all.
        most: rows of one batch, if it has more than one sequence.

    Returns the batches, kept in the layout for the next layer. Empty places are in none.
    """
    key = (block_size, window, most)
    if key not in layout.derived:
        layout.derived[key] = tuple(_batches(layout, *key))
    return layout.derived[key]


def _batches(layout: Layout, block_size: int, window: int, most: int) -> Iterator[Padded]:
    starts, lengths = layout.starts_N.tolist(), layout.lengths_N.tolist()
    alike: dict[tuple[int, int], list[int]] = {}
    for n, length in enumerate(lengths):
        if length:
            alike.setdefault((starts[n + 1] - starts[n], (max(length, SHORT) - 1).bit_length()), []).append(n)
    for (S, _), sequences in alike.items():
        longest = max(lengths[n] for n in sequences)
        each = max(1, most // longest)
        for at in range(0, len(sequences), each):
            yield _batch(layout, sequences[at : at + each], S, longest, block_size, window)


def _batch(layout: Layout, sequences: list[int], S: int, longest: int, b: int, window: int) -> Padded:
    device = layout.tables_NM.device
    sequence_n = torch.tensor(sequences, device=device)
    table_nM, length_n = layout.tables_NM[sequence_n].long(), layout.lengths_N[sequence_n].long()
    first_n, count = torch.zeros_like(length_n), longest
    if window and longest > S + window:
        first_n, count = (length_n - S - window + 1).clamp_min(0), S + window - 1
    key_nK = first_n[:, None] + torch.arange(count, device=device)
    query_nS = (length_n - S)[:, None] + torch.arange(S, device=device)
    mask_nSK = key_nK[:, None] <= query_nS[:, :, None]
    if window:
        mask_nSK &= key_nK[:, None] > query_nS[:, :, None] - window
    key_nK = torch.where(key_nK < length_n[:, None], key_nK, first_n[:, None])
    rows_nK = table_nM.gather(1, key_nK // b) * b + key_nK % b
    tokens_nS = layout.starts_N[sequence_n].long()[:, None] + torch.arange(S, device=device)
    return Padded(tokens_nS, rows_nK, mask_nSK)
