"""Tile sizes of the grouped products: a short list for each kind of GPU, looked up and never searched during a call.

A tile is `block_m` rows of one expert times `block_n` columns of its matrix. Larger tiles read less: a step over
`block_k` moves (m + n)·k values for 2·m·n·k operations. Smaller ones waste less on an expert's last, half-empty tile,
and fit where shared memory is small. While one step is multiplied, those of the next `stages` are loaded.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from labkit.kernels.language import INTERPRETED


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a tile; warps that compute it; stages of its pipeline; programs per multiprocessor."""

    block_m: int
    block_n: int
    block_k: int
    warps: int = 8
    stages: int = 3
    programs: int = 1

    @property
    def launch(self) -> dict[str, int]:
        """What a kernel's launch takes besides its arguments."""
        return {"num_warps": self.warps, "num_stages": self.stages}


# Operands of two bytes. Hopper: 128 × 256 is the largest tile whose sums fit in the registers of two warpgroups.
# Ampere and Ada have less shared memory and no wgmma, Turing 64 kB; measured on Hopper only (docs/kernels.md).
_HALF = {
    9: {
        "many": Tile(128, 256, 64, 8, 4),
        "some": Tile(32, 128, 128, 4, 3, 2),
        "few": Tile(16, 128, 128, 4, 3, 2),
        "weights": Tile(128, 256, 64, 8, 5),
    },
    8: {
        "many": Tile(128, 128, 32, 8, 3),
        "some": Tile(32, 64, 64, 4, 3, 2),
        "few": Tile(16, 64, 64, 4, 3, 2),
        "weights": Tile(128, 128, 32, 8, 3),
    },
    7: {
        "many": Tile(64, 128, 32, 4, 2),
        "some": Tile(32, 64, 32, 4, 2, 2),
        "few": Tile(16, 64, 32, 4, 2, 2),
        "weights": Tile(64, 128, 32, 4, 2),
    },
}
_SINGLE = {
    "many": Tile(64, 64, 32, 4, 2),
    "some": Tile(32, 64, 32, 4, 2, 2),
    "few": Tile(16, 64, 32, 4, 2, 2),
    "weights": Tile(64, 64, 32, 4, 2),
}
_INTERPRETED = {
    "many": Tile(64, 64, 64),
    "some": Tile(32, 64, 64),
    "few": Tile(16, 64, 64),
    "weights": Tile(64, 64, 32),
}
FEW, SOME = 12, 48
"""Up to so many rows for an average expert, a tile holds 16 or 32 rows: reading the matrix is what takes the time."""


def tiles(dtype: torch.dtype, rows: float, device: torch.device) -> tuple[Tile, Tile]:
    """The tile of the products over rows and of the weights' gradients.

    Args:
        dtype: of the operands. rows: of an average expert, N / E. device: where they are.
    """
    kind = "few" if rows <= FEW else "some" if rows <= SOME else "many"
    if INTERPRETED:
        return _INTERPRETED[kind], _INTERPRETED["weights"]
    if dtype == torch.float32:
        return _SINGLE[kind], _SINGLE["weights"]
    table = _HALF[min(9, max(7, _generation(device.index or 0)))]
    return table[kind], table["weights"]


def programs(tile: Tile, most: int, device: torch.device) -> int:
    """How many programs to start: all that run at once, but no more than there can be tiles."""
    return max(1, min(most, tile.programs * (2 if INTERPRETED else _multiprocessors(device.index or 0))))


@functools.cache
def _generation(index: int) -> int:
    return torch.cuda.get_device_capability(index)[0]


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
