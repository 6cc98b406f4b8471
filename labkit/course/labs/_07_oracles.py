"""Lab 07's oracles: torch's checkpointing and Muon, one big batch, and the schedules and losses of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.attempt import Case
from labkit.course.watch import Bigram

MUON = (3.4445, -4.7750, 2.0315)


def schedule(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    """The factor that transformers' `get_wsd_schedule` sets after `step` steps of its own, which it counts from 0."""
    from transformers import get_wsd_schedule

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    made = get_wsd_schedule(
        optimizer, num_warmup_steps=warmup, num_decay_steps=decay, num_stable_steps=steps - warmup - decay,
        decay_type="linear", min_lr_ratio=final,
    )  # fmt: skip
    return float(made.lr_lambdas[0](step))


def in_wsd(case: Case) -> bool:
    """Whether transformers' schedule has the same point: its warm-up begins at `final`, and it refuses nothing."""
    step, steps, warmup, decay, *final = case.args
    return warmup + decay <= steps and decay > 0 and (step >= warmup or not any(final))


def accumulate(model: Bigram, micro_batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Torch's mean over one big batch; the micro-batches only pass by, to be counted."""
    with torch.no_grad():
        for ids_BS, _ in micro_batches:
            model(ids_BS)
    ids_BS, target_BS = (torch.cat(tensors) for tensors in zip(*micro_batches, strict=True))
    if (target_BS == -100).all():
        raise ValueError("no target")
    loss = F.cross_entropy(model.unwatched(ids_BS).flatten(0, 1), target_BS.flatten())
    loss.backward()
    return loss.item()


def recompute(block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Torch's own activation checkpointing."""
    from torch.utils.checkpoint import checkpoint

    return checkpoint(block, *inputs, use_reentrant=False)


class Wide(Tensor):
    """A tensor that stays as wide as it is where torch's Muon asks for bfloat16."""

    def bfloat16(self, *_: object) -> Tensor:
        return self.clone()


def newton_schulz(matrices: Tensor, steps: int = 5) -> Tensor:
    """The iteration of torch.optim.Muon, matrix by matrix, kept in the input's format."""
    from torch.optim._muon import _zeropower_via_newtonschulz

    flat = matrices.reshape(-1, *matrices.shape[-2:])
    done = [_zeropower_via_newtonschulz(one.as_subclass(Wide), MUON, steps, 1e-7).as_subclass(Tensor) for one in flat]
    return torch.stack(done).view(matrices.shape)


def mtp_loss(mtp_logits: Sequence[Tensor], labels_BS: Tensor, weight: float) -> Tensor:
    """transformers' loss of a causal language model, once for each depth, divided by the items of the main one."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    count = (labels_BS[:, 1:] != -100).sum()
    losses = []
    for k, logits_BSV in enumerate(mtp_logits, start=1):
        S = logits_BSV.shape[1]
        ahead_BS = F.pad(labels_BS, (0, k + 1), value=-100)[:, k + 1 : k + 1 + S].contiguous()
        losses.append(
            ForCausalLMLoss(
                logits_BSV.contiguous(), None, logits_BSV.shape[-1], num_items_in_batch=count, shift_labels=ahead_BS
            )
        )
    return weight * torch.stack(losses).mean()
