"""One forward pass of any of the models that can be trained, and the objective of a training step."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from labkit.core.routing import Routing
from labkit.train.balance import switch_loss, z_loss
from labkit.train.crossentropy import shifted, token_losses
from labkit.train.feed import Micro
from labkit.train.settings import TrainConfig


@dataclass(frozen=True, eq=False)
class Forward:
    """Logits [B, S, V], the routers' records, and the logits of multi-token modules, [B, S − k, V] for the k-th."""

    logits: Tensor
    routing: tuple[Routing, ...] = ()
    mtp_logits: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Objective:
    """What a micro-batch adds to a step.

    Args:
        total: a scalar, to be differentiated.
        loss_BS: the loss of every position, in nats, without gradient.
        routing: the routers' records.
    """

    total: Tensor
    loss_BS: Tensor
    routing: tuple[Routing, ...] = field(default=())


def call(model: Any, ids_BS: Tensor, *, mtp: bool = False) -> Forward:
    """Run a model.

    Args:
        model: `nn.Transformer`; or a module called as `model(ids, return_routing=True)` that answers logits and
            records, such as `nn.WindowModel`; or one whose answer to `model(ids)` has `.logits` (transformers').
        ids_BS: [B, S] int64.
        mtp: whether multi-token modules run. Raises ValueError if they should and the model has none.
    """
    takes = inspect.signature(getattr(model, "_orig_mod", model).forward).parameters
    if mtp and "return_mtp" not in takes:
        raise ValueError(f"mtp_weight is set, but {type(model).__name__} has no multi-token modules; set it to 0")
    options = {"return_routing": True} if "return_routing" in takes else {}
    options |= {"return_mtp": mtp} if "return_mtp" in takes else {}
    output = model(ids_BS, **options)
    if isinstance(output, tuple):
        return Forward(output[0], tuple(output[1]))
    routing = (*(getattr(output, "routing", None) or ()), *getattr(output, "mtp_routing", ()))
    return Forward(output.logits, routing, tuple(getattr(output, "mtp_logits", None) or ()) if mtp else ())


def objective(output: Forward, micro: Micro, config: TrainConfig, count: int) -> Objective:
    """The share of a step's objective that one micro-batch has.

    Cross-entropy summed over the micro-batch and divided by the labels of the whole step; λ / D times the same for
    each of D multi-token modules (DeepSeek-V3, equations 24 and 25); and the routers' losses, a mean over layers,
    divided by the number of micro-batches.

    Args:
        output: of `call`; micro: what was put in.
        config: coefficients; count: real labels of the whole step.

    Raises ValueError for router losses of a model that shows no routing.
    """
    with torch.autocast(output.logits.device.type, enabled=False):
        loss_BS = token_losses(output.logits, micro.target_BS)
        total = loss_BS.sum() / count
        for depth, logits_BSV in enumerate(output.mtp_logits, 1):
            target_BS = shifted(micro.labels_BS, depth + 1)[:, : logits_BSV.shape[1]]
            ahead = token_losses(logits_BSV, target_BS).sum() / count
            total = total + config.mtp_weight / len(output.mtp_logits) * ahead
        total = total + router_losses(output.routing, config) / config.accumulate
    return Objective(total, loss_BS.detach(), output.routing)


def router_losses(records: tuple[Routing, ...], config: TrainConfig) -> Tensor | float:
    """The routers' losses with their coefficients, a mean over layers; 0 where the coefficients are.

    Raises ValueError if they are not and the model shows no routing.
    """
    if not (config.balance_loss or config.z_loss):
        return 0.0
    if not records:
        raise ValueError("balance_loss or z_loss is set, but the model shows no routing; set both to 0")
    total = records[0].logits_TE.new_zeros(())
    for record in records:
        if config.balance_loss:
            total = total + switch_loss(record, alpha=config.balance_loss)
        if config.z_loss:
            total = total + z_loss(record, coefficient=config.z_loss)
    return total / len(records)


def biased_routers(model: nn.Module) -> list[nn.Module]:
    """The routers with a selection bias, in the order of their layers."""
    return [module for module in model.modules() if getattr(module, "expert_bias_E", None) is not None]
