"""What an exercise hands to an answer besides numbers: small layers to call.

They are plain data with a call, so that a case can be copied, compared and sent into a grader's sandbox. That is why
they do not live in `labs`, which the sandbox does not show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Norm:
    """Root-mean-square normalisation over the last dimension, with a scale."""

    weight_D: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight_D.shape, self.weight_D, 1e-6)

    def __repr__(self) -> str:
        return f"an RMSNorm of width {len(self.weight_D)}"


@dataclass(frozen=True, eq=False, repr=False)
class Mixer:
    """Stands for attention: every position gets the mean of itself and those before it, times a matrix."""

    weight_DD: Tensor

    def __call__(self, x_BSD: Tensor) -> Tensor:
        counts_S1 = torch.arange(1, x_BSD.shape[1] + 1)[:, None]
        return (x_BSD.cumsum(dim=1) / counts_S1) @ self.weight_DD

    def __repr__(self) -> str:
        return "an attention"


@dataclass(frozen=True, eq=False, repr=False)
class FeedForward:
    """SwiGLU on every position by itself."""

    gate_up_2FD: Tensor
    down_DF: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, self.gate_up_2FD).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down_DF)

    def __repr__(self) -> str:
        return "a feed-forward layer"


def input_gradient(answer: Callable[..., Tensor], x: Tensor, *others: Any) -> Tensor:
    """The gradient at an answer's first argument of its outputs' sum, weighted 1, 2, 3, …: for `Case.through`."""
    x = x.detach().requires_grad_()
    y = answer(x, *others)
    (y.flatten() * torch.arange(1.0, y.numel() + 1)).sum().backward()
    return x.grad


class OtherDevice(RuntimeError):
    """An answer made a tensor where its arguments are not."""


def on_another_device(answer: Callable[..., Any], *args: Any) -> Any:
    """What an answer returns where the default device is not that of its tensors: for `Case.through`.

    It stands for a GPU: what is made without `device=` has no memory here. What an answer moves to its arguments'
    device on purpose is right there and cannot be moved here; such an answer is called as it is.

    Raises OtherDevice when an answer mixes both, or returns what is elsewhere.
    """
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    try:
        with torch.device("meta"):
            found = answer(*args)
    except Exception as error:
        if "Cannot copy out of meta" in str(error):
            return answer(*args)
        if "meta" not in str(error).lower():
            raise
        raise OtherDevice("a tensor was made on the default device, and the arguments are on another") from None
    parts = found if isinstance(found, (list, tuple)) else (found,)
    if any(isinstance(part, Tensor) and part.device != device for part in parts):
        raise OtherDevice("the result is on the default device, and the arguments are on another")
    return found


@dataclass(frozen=True)
class Rotary:
    """Rotary positions, first half of a head against the second: `rotate(x_BHSd, positions_BS)` (lab 05)."""

    theta: float = 10_000.0

    def angles(self, width: int, positions_BS: Tensor) -> Tensor:
        """What each pair of dimensions turns by, [B, S, d/2], in radians."""
        return positions_BS[..., None] * self.theta ** -(torch.arange(0, width, 2) / width)

    def __call__(self, x_BHSd: Tensor, positions_BS: Tensor) -> Tensor:
        angles = self.angles(x_BHSd.shape[-1], positions_BS)[:, None]
        first, second = x_BHSd.chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
