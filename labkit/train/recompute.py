"""Activation checkpointing: keep less for the backward pass, compute it a second time.

"full" keeps a block's input only (Chen et al. 2016, arXiv 1604.06174). "selective" keeps also what is dear to compute,
the outputs of matrix products and of attention, and recomputes the cheap rest (the idea of Korthikanti et al. 2022,
arXiv 2205.05198, section 5). The random state is put back for the second pass, so dropout and noise are the same.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Policy = Literal["none", "full", "selective"]
POLICIES = ("none", "full", "selective")
DEAR = (
    "mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "_scaled_mm", "linear", "convolution",
    "experts", "attention",  # our own kernels
)  # fmt: skip


@contextlib.contextmanager
def recompute(model: nn.Module, policy: Policy = "selective") -> Iterator[tuple[nn.Module, ...]]:
    """Inside the block, every block of the model is recomputed in the backward pass as the policy says.

    Args:
        model: its blocks are found by `blocks_of`.
        policy: "none", "full" or "selective".

    Gives the blocks concerned. Gradients are those of "none". Raises ValueError for another policy.

    >>> with recompute(nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])}), "full") as blocks:
    ...     len(blocks)
    1
    """
    if policy not in POLICIES:
        raise ValueError(f"recompute is {policy!r}; choose one of {', '.join(POLICIES)}")
    blocks = blocks_of(model) if policy != "none" else ()
    for block in blocks:
        block.forward = _checkpointed(block.forward, policy)
    try:
        yield blocks
    finally:
        for block in blocks:
            del block.forward


def blocks_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """The blocks of a model: the members of every `layers` list, and the block of every multi-token-prediction module.

    Raises ValueError for a model that has none.
    """
    found: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in ("layers", "mtp"):
            found += [getattr(member, "block", member) for member in module]
    if not found:
        raise ValueError(f"{type(model).__name__} has no list called `layers`, so nothing to recompute; use 'none'")
    return tuple(found)


def _checkpointed(forward: Callable[..., Any], policy: Policy) -> Callable[..., Any]:
    context = {"context_fn": _selective_contexts} if policy == "selective" else {}

    @functools.wraps(forward)
    def run(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=True, **context, **named)

    return run


def _selective_contexts() -> tuple[Any, Any]:
    return create_selective_checkpoint_contexts(_keep_what_is_dear)


def _keep_what_is_dear(context: Any, operator: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    name = getattr(operator, "_opname", "")
    dear = name in DEAR or name.startswith("_scaled_dot_product")
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE
