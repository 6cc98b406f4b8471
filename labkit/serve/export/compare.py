"""What an export is held against: the model in float32 on the CPU, on seeded tokens with padding and a cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from labkit.nn.cache import KVCache
from labkit.nn.model import Transformer, evaluating, filled
from labkit.nn.skeleton import skeleton

TOLERANCE = 1e-4
"""How far a logit may be from the model's, both in float32; times the largest logit where that is above one."""
_STEPS = (5, 2, 1)
Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Compared:
    """The largest difference of logits, the largest of the model's own, and at how many real positions."""

    difference: float
    largest: float
    positions: int

    def __str__(self) -> str:
        return f"logits at {self.positions} positions differ by at most {self.difference:.1e}"

    def need_close(self) -> Self:
        """Itself. Raises RuntimeError if a logit is further away than `TOLERANCE` allows."""
        allowed = TOLERANCE * max(1.0, self.largest)
        if not self.difference <= allowed:
            raise RuntimeError(
                f"logits differ by {self.difference:.1e}, more than {allowed:.0e}: what was made computes something "
                "else, and was not put in its place"
            )
        return self


def wide(model: Transformer, **changes: bool) -> Transformer:
    """The model in float32 on the CPU, in evaluation mode; what is float32 there already is shared, not copied.

    Args:
        changes: of its configuration, such as `tie_embeddings=False`: then the head gets memory of its own.
    """
    return shared(model, lambda tensor: tensor.detach().to("cpu", torch.float32), **changes)


def shared(model: Transformer, take: Callable[[Tensor], Tensor] = torch.Tensor.detach, **changes: bool) -> Transformer:
    """A model around the same tensors, each passed through `take`, with some of the configuration changed."""
    new = skeleton(model.config.replace(**changes))
    old = model.state_dict()
    state = {name: take(old[name]) for name in new.state_dict()}
    if not new.config.tie_embeddings and model.config.tie_embeddings:
        state["head.weight"] = state["embed.weight"].clone()
    return filled(new, state)


def farthest(model: Transformer, step: Step, *, seed: int = 0) -> Compared:
    """How far the logits of `step` are from a model's.

    Args:
        model: of any number format; it is computed in float32.
        step: called with the next ids [2, S] and the mask of all positions so far; gives their logits [2, S, V].

    Two rows, one of them padded on the left, in three cached steps. A NaN counts as infinitely far.
    """
    c, ours = model.config, wide(model)
    S = min(sum(_STEPS), c.max_context)
    ids_BS = torch.randint(c.vocab_size, (2, S), generator=torch.Generator().manual_seed(seed))
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[1, : S // 4] = 0
    cache, far, largest = KVCache(c, 2, S), 0.0, 0.0
    with torch.no_grad(), evaluating(ours):
        for start, end in itertools.pairwise(itertools.accumulate(_STEPS, initial=0)):
            if start < S:
                ids, mask = ids_BS[:, start:end], mask_BS[:, :end]
                wanted, real = ours(ids, mask, cache=cache).logits, mask_BS[:, start:end].bool()
                apart = (step(ids, mask) - wanted)[real].abs().max().nan_to_num(nan=float("inf"))
                far, largest = max(far, float(apart)), max(largest, float(wanted[real].abs().max()))
    return Compared(far, largest, int(mask_BS.sum()))
