"""Lab 12: right answers, as `reveal` shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def left_pad(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    if not prompts or not all(prompts):
        raise ValueError("there is no prompt, or an empty one; each needs a token to be answered")
    longest = max(map(len, prompts))
    ids_BS = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask_BS = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions_BS = (mask_BS.cumsum(1) - 1).clamp(min=0)
    return ids_BS, mask_BS, positions_BS


def bucket(lengths: Sequence[int], size: int, percent: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        padding = 100 * (lengths[i] - lengths[batches[-1][0]]) if batches else 0
        if batches and len(batches[-1]) < size and padding <= percent * lengths[i]:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def next_step(
    running: Sequence[Mapping], waiting: Sequence[Mapping], free: int, budget: int, block_size: int
) -> tuple[list[tuple[str, int]], list[str], int]:
    running, chunks, preempted, prompts = list(running), [], [], []
    at = 0
    while at < len(running):
        sequence = running[at]
        if sequence["tokens"] - sequence["computed"] > 1:
            prompts.append(sequence)
        else:
            needs = sequence["computed"] == sequence["blocks"] * block_size
            while needs and not free and at < len(running):
                last = running.pop()
                free += last["blocks"]
                preempted.append(last["id"])
            if at == len(running):  # it was the last itself
                break
            free -= needs
            chunks.append((sequence["id"], 1))
        at += 1
    budget -= len(chunks)
    for sequence in prompts:
        chunk = min(budget, sequence["tokens"] - sequence["computed"])
        if chunk:
            chunks.append((sequence["id"], chunk))
            budget -= chunk
    for sequence in waiting:
        blocks = -(-sequence["tokens"] // block_size)
        if preempted or not budget or blocks > free:
            break
        chunk = min(budget, sequence["tokens"])
        chunks.append((sequence["id"], chunk))
        free, budget = free - blocks, budget - chunk
    return chunks, preempted, free


def place(
    position: int, table: Sequence[int], holders: Sequence[int], block_size: int
) -> tuple[int, list[int], list[int], tuple[int, int] | None]:
    table, holders, copy = list(table), list(holders), None
    at, offset = divmod(position, block_size)
    new = at == len(table)
    if new or holders[table[at]] > 1:
        if 0 not in holders:
            raise ValueError("no block is free; somebody has to go first")
        block = holders.index(0)
        holders[block] = 1
        if new:
            table.append(block)
        else:
            copy = (table[at], block)
            holders[table[at]] -= 1
            table[at] = block
    return table[at] * block_size + offset, table, holders, copy


def paged_attention(
    query_NHd: Tensor, key_BSGd: Tensor, value_BSGd: Tensor, tables_NM: Tensor, lengths_N: Tensor, scale: float
) -> Tensor:
    size, heads = key_BSGd.shape[1], query_NHd.shape[1] // key_BSGd.shape[2]
    position_P = torch.arange(tables_NM.shape[1] * size)
    rows_NP = tables_NM[:, position_P // size] * size + position_P % size
    seen_NP = position_P < lengths_N[:, None]
    key_NPHd, value_NPHd = (
        pool.flatten(0, 1)[rows_NP].masked_fill(~seen_NP[..., None, None], 0.0).repeat_interleave(heads, dim=2)
        for pool in (key_BSGd, value_BSGd)
    )
    logits_NHP = scale * torch.einsum("nhd,nphd->nhp", query_NHd, key_NPHd)
    weights_NHP = logits_NHP.masked_fill(~seen_NP[:, None], -torch.inf).softmax(dim=-1)
    return torch.einsum("nhp,nphd->nhd", weights_NHP, value_NPHd)


def latencies(
    arrived: Mapping[str, float], tokens: Sequence[tuple[float, str]], percent: int
) -> tuple[float | None, float | None]:
    first, gaps, last = [], [], {}
    for second, id in tokens:
        if id in last:
            gaps.append(second - last[id])
        else:
            first.append(second - arrived[id])
        last[id] = second

    def at_percent(values: list[float]) -> float | None:
        rank = -(-percent * len(values) // 100)  # so many of them, rounded up
        return sorted(values)[rank - 1] if values else None

    return at_percent(first), at_percent(gaps)
