"""Tiles of a grouped product: what an expert's half-empty last tile wastes, and what a small tile reads again.

The product's rows are pairs of a token and an expert, laid out expert by expert. A tile is `block_m` rows of one expert
times `block_n` columns, computed by one program. Pure arithmetic, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

BLOCKS_M = (8, 16, 32, 64, 128, 256)
"""Heights of a tile that are looked at, smallest first."""

MULTIPROCESSORS: Mapping[str, int] = MappingProxyType({"T4": 40, "A100": 108, "H100 PCIe": 114, "H100 SXM, H200": 132})
"""Streaming multiprocessors of some GPUs, as CUDA's device properties count them."""

SUM_BYTES = 4
REGISTER_BYTES = 256 * 1024  # of one multiprocessor: 65,536 registers of 32 bits, since Volta


def rows_of_experts(tokens_per_expert_E: Any, who: str = "tiling") -> tuple[int, ...]:
    """The rows of each expert as plain numbers.

    Args:
        tokens_per_expert_E: [E], a list, an array or a tensor of whole numbers of zero or more; or whatever has it as
            its `tokens_per_expert_E`, such as a `Routing`.

    Raises ValueError, in the name of `who`, for no expert and for anything else.

    >>> rows_of_experts([3, 0, 5])
    (3, 0, 5)
    """
    given = getattr(tokens_per_expert_E, "tokens_per_expert_E", tokens_per_expert_E)
    given = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__iter__"):
        raise ValueError(
            f"{who} got {type(tokens_per_expert_E).__name__}; give the tokens of each expert, one number an expert, or "
            "a Routing"
        )
    rows_E = tuple(_number(n) for n in given)
    if not rows_E:
        raise ValueError(f"{who} got no experts; give the tokens of each expert, at least one number")
    for e, n in enumerate(rows_E):
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ValueError(f"{who}: expert {e} has {n!r} tokens; give a whole number of zero or more for each expert")
    return rows_E


def _number(n: Any) -> Any:
    """What a single-number array or tensor holds; anything else as it is."""
    return n.tolist() if hasattr(n, "tolist") else n


@dataclass(frozen=True)
class Tiling:
    """One grouped product cut into tiles; see `tiling`, which builds it.

    `rows_E`: rows of each expert. A tile has `block_m` rows and `block_n` columns of a product that is `width` columns
    wide, and one of the `multiprocessors` computes one tile at a time. Operands have `bytes_per_value` bytes.
    """

    rows_E: tuple[int, ...]
    block_m: int
    block_n: int
    width: int
    multiprocessors: int
    bytes_per_value: float

    @cached_property
    def tiles_E(self) -> tuple[int, ...]:
        """Tiles down the rows of each expert, ⌈rows / block_m⌉: none without rows."""
        return tuple(-(-n // self.block_m) for n in self.rows_E)

    @property
    def padding_E(self) -> tuple[int, ...]:
        """Rows of each expert's last tile that belong to nobody."""
        return tuple(t * self.block_m - n for t, n in zip(self.tiles_E, self.rows_E, strict=True))

    @cached_property
    def rows(self) -> int:
        """Rows that are wanted: N = T·K, if no token was dropped."""
        return sum(self.rows_E)

    @cached_property
    def tiles(self) -> int:
        """Row tiles of all experts."""
        return sum(self.tiles_E)

    @property
    def computed(self) -> int:
        """Rows that are multiplied, padding included."""
        return self.tiles * self.block_m

    @property
    def padding(self) -> int:
        """Rows that are multiplied for nobody."""
        return self.computed - self.rows

    @property
    def waste(self) -> float:
        """The share of the multiplied rows that is padding; 0 where nothing is multiplied."""
        return self.padding / self.computed if self.computed else 0.0

    @property
    def columns(self) -> int:
        """Column tiles, ⌈width / block_n⌉."""
        return -(-self.width // self.block_n)

    @property
    def programs(self) -> int:
        """Tiles of the whole product: row tiles times column tiles."""
        return self.tiles * self.columns

    @property
    def waves(self) -> int:
        """Rounds in which every multiprocessor takes at most one program: ⌈programs / multiprocessors⌉."""
        return -(-self.programs // self.multiprocessors)

    @property
    def last_wave(self) -> float:
        """The share of the multiprocessors that have a program in the last wave; 0 where there is none."""
        return (self.programs - (self.waves - 1) * self.multiprocessors) / self.multiprocessors if self.waves else 0.0

    @property
    def intensity(self) -> float:
        """FLOPs of a tile for each byte that it reads: 2·m·n / ((m + n)·bytes a value), whatever the depth.

        A step over depth k reads (m + n)·k values for 2·m·n·k FLOPs. What it reads comes from the L2 cache at best.
        """
        return 2 * self.block_m * self.block_n / ((self.block_m + self.block_n) * self.bytes_per_value)

    @property
    def read_per_flop(self) -> float:
        """Bytes that all tiles read for each FLOP that is wanted; NaN where nothing is.

        Wanted are the rows that belong to an expert and the columns within the width: padding reads as well.
        """
        if not self.rows:
            return math.nan
        read = self.programs * (self.block_m + self.block_n) * self.bytes_per_value
        return read / (2 * self.rows * self.width)

    @property
    def busiest_computed(self) -> int:
        """Rows that would be multiplied if every expert were padded to the busiest one, and then cut into tiles."""
        return len(self.rows_E) * max(self.tiles_E) * self.block_m

    @property
    def busiest_waste(self) -> float:
        """The share of these that would be padding."""
        return 1 - self.rows / self.busiest_computed if self.busiest_computed else 0.0

    @property
    def register_share(self) -> float:
        """The part of a multiprocessor's registers that a tile's sums take, m·n float32; from 1 on it cannot run."""
        return self.block_m * self.block_n * SUM_BYTES / REGISTER_BYTES


def tiling(
    tokens_per_expert_E: Any,
    block_m: int,
    block_n: int = 256,
    *,
    width: int = 2048,
    multiprocessors: int = 132,
    bytes_per_value: float = 2,
) -> Tiling:
    """Cut the rows of each expert into tiles, and count.

    Args:
        tokens_per_expert_E: [E], whole numbers; see `rows_of_experts`.
        block_m: rows of a tile. block_n: columns of a tile.
        width: columns of the product: 2·F for gate and up together, D for down.
        multiprocessors: how many programs run at a time.
        bytes_per_value: of the operands.

    Raises ValueError for no expert and for a number out of range.

    >>> t = tiling([5, 1, 0, 8], block_m=4, block_n=64, width=128, multiprocessors=4)
    >>> t.tiles_E, t.computed, t.padding, t.programs, t.waves, t.last_wave
    ((2, 1, 0, 2), 20, 6, 10, 3, 0.5)
    """
    sizes = {"block_m": block_m, "block_n": block_n, "width": width, "multiprocessors": multiprocessors}
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"tiling: {name} is {value!r}; give a whole number of one or more")
    if not bytes_per_value > 0:
        raise ValueError(f"tiling: bytes_per_value is {bytes_per_value}; give a positive number")
    return Tiling(rows_of_experts(tokens_per_expert_E), **sizes, bytes_per_value=bytes_per_value)
