"""What an export is held against: the model in float32 on the CPU, on seeded tokens with padding and a cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from labkit.nn.cache import KVCache
from labkit.nn.model import Transformer, evaluating, filled

TOLERANCE = 1e-4
"""How far a logit may be from the model's, in absolute numbers, both in float32."""
_STEPS = (5, 2, 1)
Step = Callable[[Tensor, Tensor], Tensor]


def wide(model: Transformer, **changes: bool) -> Transformer:
    """The model in float32 on the CPU, in evaluation mode; what is float32 there already is shared, not copied.

    Args:
        changes: of its configuration, such as `tie_embeddings=False`: then the head gets memory of its own.
    """
    return shared(model, lambda tensor: tensor.detach().to("cpu", torch.float32), **changes)


def shared(model: Transformer, take: Callable[[Tensor], Tensor] = torch.Tensor.detach, **changes: bool) -> Transformer:
    """A model around the same tensors, each passed through `take`, with some of the configuration changed."""
    with torch.device("meta"):
        new = Transformer(model.config.replace(**changes))
    old = model.state_dict()
    state = {name: take(old[name]) for name in new.state_dict()}
    if not new.config.tie_embeddings and model.config.tie_embeddings:
        state["head.weight"] = state["embed.weight"].clone()
    return filled(new, state)


def farthest(model: Transformer, step: Step, *, seed: int = 0) -> tuple[float, int]:
    """The largest difference of logits at real tokens, and how many positions were compared.

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
    cache, far = KVCache(c, 2, S), 0.0
    with torch.no_grad(), evaluating(ours):
        for start, end in itertools.pairwise(itertools.accumulate(_STEPS, initial=0)):
            ids, mask = ids_BS[:, start:end], mask_BS[:, :end]
            if start < S:
                apart = (step(ids, mask) - ours(ids, mask, cache=cache).logits).abs()
                apart = apart[mask_BS[:, start:end].bool()].max().nan_to_num(nan=float("inf"))
                far = max(far, float(apart))
    return far, int(mask_BS.sum())


def close(found: tuple[float, int]) -> tuple[float, int]:
    """The same, if it is within `TOLERANCE`. Raises RuntimeError if not."""
    if found[0] > TOLERANCE:
        raise RuntimeError(
            f"logits differ by {found[0]:.1e}, more than {TOLERANCE:.0e}: what was made computes something else, and "
            "was not put in its place"
        )
    return found
