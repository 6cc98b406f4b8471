"""A rank's share of a step's objective, so that the shares of all ranks add up to what one process would compute.

Cross-entropy and z-loss are sums over tokens, but the balance loss is a product of two means over all tokens: the loads
are counted over all ranks first, and what is differentiated is linear in each token (GShard and Switch Transformers
multiply means of each device instead, which is another loss).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from labkit.core.routing import Routing
from labkit.kernels.reference import widen
from labkit.train.crossentropy import token_losses
from labkit.train.feed import Micro
from labkit.train.forward import Forward
from labkit.train.settings import TrainConfig


def count_loads(records: tuple[Routing, ...]) -> tuple[Tensor, int]:
    """Tokens per expert of every layer over all ranks, [L, E] int64, and all ranks' tokens; every rank must call it."""
    if not records:
        return torch.zeros(0, 0, dtype=torch.int64), 0
    told = torch.stack([torch.cat([r.tokens_per_expert_E, r.tokens_per_expert_E.new_tensor([r.num_tokens])])
                        for r in records])  # fmt: skip
    if dist.is_initialized():
        dist.all_reduce(told)
    return told[:, :-1], int(told[0, -1])


def share(
    output: Forward, micro: Micro, config: TrainConfig, count: int, loads_LE: Tensor, tokens: int
) -> tuple[Tensor, Tensor]:
    """This rank's share of the objective, to be differentiated, and of the cross-entropy, both scalars.

    Args:
        output: of `forward.call`; micro: what was put in. config: coefficients.
        count: real labels of the whole step on all ranks. loads_LE, tokens: of `count_loads`.
    """
    with torch.autocast(output.logits.device.type, enabled=False):
        loss = token_losses(output.logits, micro.target_BS).sum() / count
        total = loss
        if config.balance_loss or config.z_loss:
            layers = [
                _router_share(r, load_E, tokens, config) for r, load_E in zip(output.routing, loads_LE, strict=True)
            ]
            total = total + sum(layers) / len(layers) / config.accumulate
    return total, loss.detach()


def _router_share(record: Routing, load_E: Tensor, tokens: int, config: TrainConfig) -> Tensor:
    """`balance.switch_loss` and `balance.z_loss` of all ranks' tokens, as far as they are this rank's."""
    logits_TE = widen(record.logits_TE)
    probability_E = logits_TE.softmax(-1).sum(0) / tokens
    switch = record.num_experts * (load_E.to(probability_E.dtype) / tokens * probability_E).sum()
    z = logits_TE.logsumexp(-1).square().sum() / tokens
    return config.balance_loss * switch + config.z_loss * z
