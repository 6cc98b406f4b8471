"""What the kernels of flash attention share: tiles of a head, where their rows lie, and how large they are.

Shape suffixes: B batch, S queries, K keys, H query heads, G key and value heads, d head width.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.kernels.language import INTERPRETED, tl, triton

LOG2E = 1.4426950408889634  # kernels work with powers of two: exp(x) is exp2(x · log₂ e), and the GPU has exp2 only


@dataclass(frozen=True)
class Block:
    """Queries and keys of a tile, warps that compute it, stages of the pipeline that loads what it walks over."""

    queries: int
    keys: int
    warps: int
    stages: int

    @property
    def launch(self) -> dict[str, int]:
        """What a kernel's launch takes besides its arguments."""
        return {"QUERIES": self.queries, "KEYS": self.keys, "num_warps": self.warps, "num_stages": self.stages}


INTERPRETED_BLOCK = Block(32, 32, 4, 1)


@triton.jit
def tile(desc, batch, head, row, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of one head, with zeros beyond the last row and beyond the head's width."""
    return desc.load([batch, head, row, 0]).reshape(ROWS, WIDTH)


@triton.jit
def place(head, row, S, d, H, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Offsets and mask of a tile of rows in a tensor laid out [B, S, H, d]; `head` counts through the batch."""
    row = row + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    start = (head // H).to(tl.int64) * S * H * d + (head % H) * d
    return start + row.to(tl.int64)[:, None] * H * d + column[None, :], (row < S)[:, None] & (column < d)[None, :]


def merged(like_BHSd: Tensor) -> Tensor:
    """An empty [B, H, S, d] whose memory is [B, S, H, d]: heads are merged and split by a view."""
    B, H, S, d = like_BHSd.shape
    return like_BHSd.new_empty(B, S, H, d).transpose(1, 2)


def padded(d: int) -> int:
    """The width of a tile for heads of width d: a power of two, 16 or more."""
    return max(16, triton.next_power_of_2(d))


def descriptor(x_BHSd: Tensor, rows: int) -> Any:
    """Tiles of so many rows of one head. Rows that do not begin at multiples of 16 bytes are copied."""
    d, size = x_BHSd.shape[-1], x_BHSd.element_size()
    steps = x_BHSd.stride()
    if x_BHSd.data_ptr() % 16 or steps[-1] != 1 or 0 in steps or any(step * size % 16 for step in steps[:-1]):
        x_BHSd = F.pad(x_BHSd, (0, -d % (16 // size))).contiguous()
    return triton.tools.tensor_descriptor.TensorDescriptor(
        x_BHSd, [*x_BHSd.shape[:-1], d], list(x_BHSd.stride()), [1, 1, rows, padded(d)]
    )


def blocks(half: dict[int, dict[int, Block]], single: dict[int, Block], x: Tensor) -> Block:
    """The block for a tensor's GPU, dtype and head width; without a GPU one that the interpreter is quick with."""
    if INTERPRETED:
        return INTERPRETED_BLOCK
    table = single if x.dtype == torch.float32 else half[min(9, max(7, _generation(x.device.index or 0)))]
    return table[max(64, padded(x.shape[-1]))]


@functools.cache
def _generation(index: int) -> int:
    return torch.cuda.get_device_capability(index)[0]
