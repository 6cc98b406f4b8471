"""Flat batches over shuffled blocks, and attention over them without any: the same sequences, one after the other."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from labkit.kernels.paged_layout import Layout


def batch(sizes: list[tuple[int, int]], b: int, *, spare: int = 3, seed: int = 0, device: str = "cpu") -> Layout:
    """A layout of sequences (positions before, new tokens), whose blocks lie anywhere and hold one position more."""
    needed = [-(-(start + new + 1) // b) for start, new in sizes]
    free = iter(torch.randperm(sum(needed) + spare, generator=torch.Generator().manual_seed(seed)).tolist())
    chunks = [
        SimpleNamespace(start=start, tokens=(0,) * new, blocks=tuple(next(free) for _ in range(count)))
        for (start, new), count in zip(sizes, needed, strict=True)
    ]
    return Layout.of(chunks, b, device)


def num_blocks(layout: Layout, spare: int = 3) -> int:
    """More than any block of the layout's tables."""
    return int(layout.tables_NM.max()) + 1 + spare


def draw(layout: Layout, b: int, H: int, G: int, d: int, *, seed: int = 0, dtype=torch.float32, latent: int = 0):
    """Queries [T, H, d] and stores whose rows that nobody holds are NaN; of a latent, so many numbers are no value."""
    device = layout.tables_NM.device
    g = torch.Generator(device).manual_seed(seed)
    shape = (num_blocks(layout), b, G, d)
    query = torch.randn(len(layout.positions_T), H, d, generator=g, device=device, dtype=dtype)
    stores = [torch.full(shape, torch.nan, device=device, dtype=dtype) for _ in range(1 if latent else 2)]
    for store in stores:
        for table, length in zip(layout.tables_NM, layout.lengths_N.tolist(), strict=True):
            rows = torch.arange(length, device=device)
            fresh = torch.randn(length, G, d, generator=g, device=device, dtype=dtype)
            store[table[rows // b].long(), rows % b] = fresh
    return query, stores[0], stores[0][..., : d - latent] if latent else stores[1]


def plain(query: Tensor, key: Tensor, value: Tensor, layout: Layout, *, scale, window=0, sinks=None) -> Tensor:
    """Every token by itself in float64, from the formula."""
    (T, H, _), (b, G) = query.shape, key.shape[1:3]
    out = torch.zeros(T, H, value.shape[-1], dtype=torch.float64, device=query.device)
    starts, lengths = layout.starts_N.tolist(), layout.lengths_N.tolist()
    for n, length in enumerate(lengths):
        for token in range(starts[n], starts[n + 1]):
            if not length:
                continue
            position = length - starts[n + 1] + token
            rows = torch.arange(max(0, position - window + 1) if window else 0, position + 1, device=query.device)
            blocks = layout.tables_NM[n, rows // b].long()
            keys, values = (t[blocks, rows % b].double().repeat_interleave(H // G, 1) for t in (key, value))
            scores = torch.einsum("hd,khd->hk", query[token].double(), keys) * scale
            if sinks is not None:
                scores = torch.cat([scores, sinks.double()[:, None]], 1)
            weights = scores.softmax(1)[:, : len(rows)]
            out[token] = torch.einsum("hk,khd->hd", weights, values)
    return out
