"""A kernel that starts while the one before it still runs: what needs no result of that one is done meanwhile.

CUDA's programmatic dependent launch, on Hopper and later: `wait` stands before the first read of what the kernel before
wrote, and before the first write; `next_may_start` says that the kernel after may come. A kernel that has waited may
say so at once: the one after waits for its end in turn. Of a kernel launched without it both are nothing.
"""

from __future__ import annotations

import functools

import torch

from labkit.kernels.language import INTERPRETED, tl, triton


@triton.jit
def wait(EARLY: tl.constexpr):
    """Until the kernel before has ended and all it wrote can be seen."""
    if EARLY:
        tl.extra.cuda.gdc_wait()


@triton.jit
def next_may_start(EARLY: tl.constexpr):
    """Once every program has said so, the kernel after is started beside this one."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@functools.cache
def can(device: torch.device) -> bool:
    """Whether this GPU starts kernels early."""
    return not INTERPRETED and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def launch(early: bool) -> dict[str, bool]:
    """What a kernel's launch takes besides its arguments and EARLY.

    >>> launch(False)
    {}
    """
    return {"launch_pdl": True} if early else {}
