"""Lab 16: right answers, as `reveal` shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def splits(ids_RTK: Sequence[Tensor], owner_E: Tensor, num_ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    send_RR = torch.stack([owner_E[ids_TK.flatten()].bincount(minlength=num_ranks) for ids_TK in ids_RTK])
    visits_RR = [(owner_E[ids_TK][..., None] == torch.arange(num_ranks)).any(dim=1).sum(dim=0) for ids_TK in ids_RTK]
    return send_RR, send_RR.T.contiguous(), torch.stack(visits_RR)


def dispatch(
    x_TD: Tensor, ids_TK: Tensor, scores_TK: Tensor, owner_E: Tensor, num_ranks: int, exchange: Callable[..., Tensor],
    experts: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:  # fmt: skip
    flat_N, ones = ids_TK.flatten(), [1] * num_ranks
    order_N = owner_E[flat_N].argsort(stable=True)
    send_R = owner_E[flat_N].bincount(minlength=num_ranks)
    receive_R = exchange(send_R, ones, ones)
    rows_MD = exchange(x_TD[order_N // ids_TK.shape[1]], send_R, receive_R)
    ids_M = exchange(flat_N[order_N], send_R, receive_R)
    back_ND = exchange(experts(rows_MD, ids_M), receive_R, send_R)
    y_NKD = back_ND[order_N.argsort()].view(*ids_TK.shape, x_TD.shape[1])
    return (y_NKD * scores_TK[..., None]).sum(dim=1)


def node_limited(scores_TE: Tensor, num_nodes: int, max_nodes: int, top_k: int) -> Tensor:
    scores_TNe = scores_TE.unflatten(1, (num_nodes, -1))
    worth_TN = scores_TNe.topk(top_k // max_nodes, dim=2).values.sum(dim=2)
    open_TN = torch.zeros_like(worth_TN, dtype=torch.bool).scatter(1, worth_TN.topk(max_nodes).indices, True)
    return scores_TNe.masked_fill(~open_TN[..., None], -torch.inf).flatten(1).topk(top_k).indices


def replicate(load_E: Sequence[float], num_slots: int) -> list[int]:
    if num_slots < len(load_E):
        raise ValueError(f"{num_slots} slots for {len(load_E)} experts; each expert needs one")
    copies_E = [1] * len(load_E)
    for _ in range(num_slots - len(load_E)):
        hottest = max(range(len(load_E)), key=lambda e: load_E[e] / copies_E[e])
        copies_E[hottest] += 1
    return copies_E


def pack(load_S: Sequence[float], num_ranks: int) -> list[int]:
    if len(load_S) % num_ranks:
        raise ValueError(f"{len(load_S)} slots on {num_ranks} ranks; each rank holds as many as every other")
    room = [len(load_S) // num_ranks] * num_ranks
    total, rank_S = [0] * num_ranks, [0] * len(load_S)
    for slot in sorted(range(len(load_S)), key=lambda slot: -load_S[slot]):
        rank_S[slot] = rank = min((r for r in range(num_ranks) if room[r]), key=lambda r: total[r])
        total[rank] += load_S[slot]
        room[rank] -= 1
    return rank_S


def step_time(
    compute: float, network_bytes: float, nvlink_bytes: float, network_gbit: float, nvlink_gbyte: float, stages: int,
    micro_batches: int, overlap: bool,
) -> tuple[float, float, str]:  # fmt: skip
    parts = {
        "compute": compute,
        "network": network_bytes / (network_gbit * 1e9 / 8),
        "nvlink": nvlink_bytes / (nvlink_gbyte * 1e9),
    }
    exchange = max(parts["network"], parts["nvlink"])
    one = max(compute, exchange) if overlap else compute + exchange
    slots = micro_batches + stages - 1
    return slots * one, (stages - 1) / slots, max(parts, key=parts.get)
