"""Lab 16's oracles: numpy's histogram, transformers' DeepSeek-V3 router, a search over every way to place slots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from labkit.core.config import MoEConfig
from labkit.course.attempt import Case
from labkit.nn.oracle import hf_route


def splits(ids_RTK: Sequence[Tensor], owner_E: Tensor, num_ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """numpy's histogram over pairs of ranks, of choices and of distinct pairs of token and rank."""
    source = np.repeat(range(num_ranks), [ids.numel() for ids in ids_RTK])
    token = np.concatenate([np.repeat(range(len(ids)), ids.shape[1]) for ids in ids_RTK])
    target = owner_E.numpy()[np.concatenate([ids.numpy().reshape(-1) for ids in ids_RTK])]
    bins = [np.arange(num_ranks + 1)] * 2
    send_RR = torch.from_numpy(np.histogram2d(source, target, bins=bins)[0]).long()
    trips = np.unique(np.stack([source, token, target]), axis=1)
    return send_RR, send_RR.T, torch.from_numpy(np.histogram2d(trips[0], trips[2], bins=bins)[0]).long()


def node_limited(scores_TE: Tensor, num_nodes: int, max_nodes: int, top_k: int) -> Tensor:
    """DeepSeek-V3's router with nodes for groups, put in order of the scores."""
    E = scores_TE.shape[1]
    config = MoEConfig(
        d_model=E, d_expert=2, num_experts=E, top_k=top_k, norm_topk=False, num_groups=num_nodes,
        top_groups=max_nodes, group_score="top2_sum", score_fn="sigmoid", selection_bias=True,
    )  # fmt: skip
    ids_TK = hf_route("deepseek_v3", config, torch.logit(scores_TE), torch.eye(E), torch.zeros(E))[0]
    return ids_TK.gather(1, scores_TE.gather(1, ids_TK).argsort(dim=1, descending=True))


def two_each(case: Case) -> bool:
    """Whether K/M is two, as the router has it, and the scores are such as a sigmoid gives."""
    scores_TE, _, max_nodes, top_k = case.args
    return top_k == 2 * max_nodes and len(scores_TE) > 0 and bool(scores_TE.min() > 0)
