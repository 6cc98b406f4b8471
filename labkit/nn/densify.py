"""A dense student out of a sparse teacher: its experts side by side in one feed-forward layer, or their average.

What a sparse layer gives on average is Σ s_e · f_e(x), with s_e an expert's mean score over all tokens (0 where it was
not chosen). Side by side, scaled by s_e, the experts compute exactly that: right where scores do not depend on the
token, and a start for training elsewhere (Xue et al. 2022, "One Student Knows All Experts Know", arXiv 2201.10890).

Legend: E experts, D model width, F expert width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from labkit.core.routing import Routing
from labkit.nn.merge import Groups, merged
from labkit.nn.model import Transformer
from labkit.nn.moe import MoE
from labkit.nn.prune import most_used, use
from labkit.nn.rebuild import by_layer, check_sparse, rebuilt


def densify(
    model: Transformer,
    records: Iterable[Routing],
    *,
    experts: int | None = None,
    how: Literal["concat", "average"] = "concat",
) -> Transformer:
    """A dense model of the same depth and width, in evaluation mode; the old one stays as it is.

    Args:
        model: of labkit; records: what its routers decide on typical text (`nn.trace`).
        experts: how many of each layer, those with the largest scores, take part; None: all.
        how: "concat" puts them side by side, width `experts`·F; "average" aligns their units and averages them by
            score, width F. Shared experts join at the side, unweighted, as they were.

    The kept experts' scores are scaled to the sum of all. Raises ValueError for experts with biases or another
    activation, dense layers of another width, and numbers out of range.
    """
    config = check_sparse(model, "densify")
    moe = config.moe
    if moe.expert_bias or moe.activation != "swiglu":
        raise ValueError("densify puts experts into a plain SwiGLU layer; these have biases or another activation")
    if how not in ("concat", "average"):
        raise ValueError(f"how is {how!r}; choose 'concat' or 'average'")
    number = moe.num_experts if experts is None else experts
    width = moe.d_expert * ((number if how == "concat" else 1) + moe.num_shared_experts)
    if config.num_dense_layers and config.d_dense != width:
        raise ValueError(
            f"the dense layers have width {config.d_dense}, the new ones would have {width}; a model has one"
        )
    changed = {}
    for layer, record in by_layer(records, config, "densify").items():
        gate_up, down = _layer(model.layers[layer].ffn, record, number, how)
        changed |= {f"layers.{layer}.ffn.gate_up_2FD": gate_up, f"layers.{layer}.ffn.down_DF": down}
    return rebuilt(model, config.replace(moe=None, num_dense_layers=config.num_layers, d_dense=width), changed)


def _layer(ffn: MoE, record: Routing, number: int, how: str) -> tuple[Tensor, Tensor]:
    """Gate and up rows [2·width, D], and down columns [D, width]."""
    F, bank = ffn.config.d_expert, ffn.experts
    share_E = use(record, "scores").to(bank.down_EDF.device)
    kept = most_used(share_E, number)
    share_E = torch.zeros_like(share_E).scatter_(0, torch.tensor(kept, device=share_E.device), 1.0) * share_E
    share_E = share_E / share_E.sum()
    mean_total = float(record.topk_scores_TK.detach().double().sum(1).mean())
    if how == "average":
        leader = int(share_E.argmax())
        one = merged(bank, Groups((leader,), torch.zeros_like(share_E, dtype=torch.int64), share_E))
        gate_up_N2FD, scaled_NDF = one["gate_up_E2FD"], mean_total * one["down_EDF"]
    else:
        gate_up_N2FD = bank.gate_up_E2FD[list(kept)]
        scale_N11 = (mean_total * share_E[list(kept)])[:, None, None].to(bank.down_EDF.dtype)
        scaled_NDF = bank.down_EDF[list(kept)] * scale_N11
    gates, ups, downs = [gate_up_N2FD[:, :F].flatten(0, 1)], [gate_up_N2FD[:, F:].flatten(0, 1)], list(scaled_NDF)
    if ffn.shared is not None:
        gate, up = ffn.shared.gate_up_2FD.chunk(2)
        gates, ups, downs = [*gates, gate], [*ups, up], [*downs, ffn.shared.down_DF]
    return torch.cat([*gates, *ups]), torch.cat(downs, 1)
