"""The loss of a model on batches it is not trained on, domain by domain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from labkit.nn.model import evaluating
from labkit.train.crossentropy import token_losses
from labkit.train.feed import Micro
from labkit.train.forward import call
from labkit.train.meter import Meter


@torch.no_grad()
def losses(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    autocast: torch.dtype | None = None,
    names: tuple[str, ...] = (),
) -> dict[str, float]:
    """The mean loss of each domain in nats per token.

    Args:
        model: anything that `train` takes; it is in evaluation mode meanwhile, and then as it was.
        batches: with `ids_BS`, `labels_BS` (not shifted) and `domains`, as a token source gives them.
        autocast: the dtype to compute in under autocast; None: the model's own.
        names: of domains given as numbers.

    Returns the domains in the order in which they first occur. Raises ValueError without a label.
    """
    device = next(model.parameters()).device
    meter = Meter(device)
    with evaluating(model):
        for batch in batches:
            micro = Micro.of(batch, device, names)
            with torch.autocast(device.type, dtype=autocast) if autocast else contextlib.nullcontext():
                output = call(model, micro.ids_BS)
            meter.add(token_losses(output.logits, micro.target_BS), micro)
    found = meter.by_domain()
    if not found:
        raise ValueError("losses was given no batch with a label; every label was −100, or there was no batch")
    return found
