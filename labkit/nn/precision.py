"""What attention does about autocast: cast once, and keep the norms of queries and keys narrow.

Autocast casts the inputs of every product anew, and leaves a norm of narrow inputs with wide weights to a slow path.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def in_autocast_dtype(x: Tensor) -> Tensor:
    """x in the dtype that autocast's products want, so that several of them cast it once; as it is without autocast."""
    if not torch.is_autocast_enabled(x.device.type) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def normed(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """The norm in x's dtype also under autocast, which would widen x; inside, it adds up in float32 anyway.

    >>> normed(torch.ones(2, 4, dtype=torch.bfloat16), nn.RMSNorm(4)).dtype
    torch.bfloat16
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)
