"""Tiles of a grouped product: how each expert's rows are cut, what its last tile wastes, and what small tiles cost.

The arithmetic is `core.tiling`, done for every height of a tile; JavaScript draws the one in hand beside the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import traitlets
from torch import Tensor

from labkit.core.routing import Routing
from labkit.core.tiling import BLOCKS_M, MULTIPROCESSORS, Tiling, rows_of_experts, tiling
from labkit.show.picture import Picture
from labkit.show.widgets.base import LabWidget, esm
from labkit.show.widgets.bounds import OutOfRange, within
from labkit.show.widgets.layers import counted, percent

BLOCKS_N = (16, 32, 64, 128, 256)
MOST_EXPERTS = 512
MOST_PROCESSORS = 4096
SMALL_PRINT = (
    "A box is a tile, hatched or blue is padding. A wave lasts as long as its tile is large: twice the rows, twice the "
    "time, where arithmetic is the limit; one program at a time on each multiprocessor. Bytes are of 16-bit operands "
    "that every program reads for itself, from the L2 cache at best."
)


class Tiles(LabWidget):
    """A live view of tiles and padding.

    Args:
        tokens_per_expert_E: rows of each expert, [E] whole numbers, or a Routing; 1 to 512 experts.
        block_m: rows of a tile, one of `core.tiling.BLOCKS_M`. block_n: columns of a tile, one of `BLOCKS_N`.
        width: columns of the product: 2·F for gate and up together, D for down.
        multiprocessors: how many programs run at a time, one on each; 132 on an H100 SXM or H200.

    Traits that browser and kernel share: `block_m`, `block_n`, `multiprocessors`, and `expert`, the one in hand.
    `tiling` holds the numbers of the tile in hand (`core.tiling.Tiling`), `tilings` those of every height.
    Raises ValueError for no expert or too many, for what is no number of tokens, and for values out of range.
    """

    _esm = esm("tiles")

    block_m = traitlets.Int(128).tag(sync=True)
    block_n = traitlets.Int(256).tag(sync=True)
    multiprocessors = traitlets.Int(132).tag(sync=True)
    expert = traitlets.Int(0).tag(sync=True)
    rows_E = traitlets.List(traitlets.Int()).tag(sync=True)
    blocks_m = traitlets.List(traitlets.Int(), list(BLOCKS_M)).tag(sync=True)
    blocks_n = traitlets.List(traitlets.Int(), list(BLOCKS_N)).tag(sync=True)
    tiles_ME = traitlets.List().tag(sync=True)
    machines = traitlets.List().tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    note = traitlets.Unicode("").tag(sync=True)
    detail = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        tokens_per_expert_E: Routing | Tensor | Sequence[int],
        block_m: int = 128,
        block_n: int = 256,
        width: int = 2048,
        multiprocessors: int = 132,
    ) -> None:
        rows_E = rows_of_experts(tokens_per_expert_E, "tiles")
        if len(rows_E) > MOST_EXPERTS:
            raise ValueError(f"tiles got {len(rows_E)} experts; give at most {MOST_EXPERTS}, a part of them")
        tiling(rows_E, block_m, block_n, width=width, multiprocessors=multiprocessors)
        self._rows_E, self._width = rows_E, width
        super().__init__(
            rows_E=list(rows_E), expert=rows_E.index(max(rows_E)), block_m=block_m, block_n=block_n,
            multiprocessors=multiprocessors, sampled=SMALL_PRINT,
        )  # fmt: skip
        self._send_view()
        self._send_words()
        self.observe(self._send_view, names=["block_n", "multiprocessors"])
        self.observe(self._send_words, names=["block_m", "expert", "view"])

    @property
    def tilings(self) -> dict[int, Tiling]:
        """The numbers of every height of a tile, by its rows."""
        return {t.block_m: t for t in self._tilings}

    @property
    def tiling(self) -> Tiling:
        """The numbers of the tile in hand."""
        return self.tilings[self.block_m]

    @traitlets.validate("block_m", "block_n")
    def _check_block(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        choices = BLOCKS_M if name == "block_m" else BLOCKS_N
        if value not in choices:
            raise OutOfRange(f"Tiles.{name} is {value}; choose one of {', '.join(map(str, choices))}")
        return value

    @traitlets.validate("multiprocessors")
    def _check_multiprocessors(self, proposal: Any) -> int:
        return within("Tiles.multiprocessors", proposal["value"], 1, MOST_PROCESSORS)

    @traitlets.validate("expert")
    def _check_expert(self, proposal: Any) -> int:
        return within("Tiles.expert", proposal["value"], 0, len(self._rows_E) - 1)

    def _send_view(self, change: Any = None) -> None:
        sizes = {"width": self._width, "multiprocessors": self.multiprocessors}
        self._tilings = [tiling(self._rows_E, block_m, self.block_n, **sizes) for block_m in BLOCKS_M]
        self.tiles_ME = [list(t.tiles_E) for t in self._tilings]
        named = {self.multiprocessors: ""} | {count: f", {name}" for name, count in MULTIPROCESSORS.items()}
        self.machines = [[count, f"{count}{name}"] for count, name in sorted(named.items())]
        self.view = {
            "waste": [t.waste for t in self._tilings],
            "busiest_waste": [t.busiest_waste for t in self._tilings],
            "waves": [t.waves for t in self._tilings],
            "read": [1000 / t.intensity for t in self._tilings],
            "read_wanted": [1000 * t.read_per_flop if t.rows else None for t in self._tilings],
            "totals": [totals(t) for t in self._tilings],
        }

    def _send_words(self, change: Any = None) -> None:
        self.note = self._note()
        self.detail = self._expert_in_words()

    def _note(self) -> str:
        t = self.tiling
        idle = sum(n == 0 for n in t.rows_E)
        nobody = f" Experts without a row, and so without a tile: {idle}." if idle else ""
        edge = 1 - t.width / (t.columns * t.block_n)
        beyond = f", {percent(edge)} of whose columns lie beyond the matrix" if edge else ""
        if not t.rows:
            return f"No expert has a row: nothing to multiply, and nothing is padded.{nobody}"
        return (
            f"{counted(t.rows, 'row')} of {counted(len(t.rows_E), 'expert')} in tiles of {t.block_m} rows: "
            f"{counted(t.computed, 'row')} multiplied, {percent(t.waste)} of them padding; with every expert padded to "
            f"the busiest {percent(t.busiest_waste)}.{nobody} Over {t.width:,} columns that is "
            f"{counted(t.programs, 'program')}{beyond}. A tile of {t.block_m} × {t.block_n} reads a byte for every "
            f"{t.intensity:.3g} FLOP. {self._registers(t)}"
        )

    @staticmethod
    def _registers(t: Tiling) -> str:
        if t.register_share >= 1:
            return "Its sums would fill a multiprocessor's registers: it cannot run."
        return f"Its sums take {percent(t.register_share)} of a multiprocessor's registers."

    def _expert_in_words(self) -> str:
        e, t = self.expert, self.tiling
        n, tiles, padding = t.rows_E[e], t.tiles_E[e], t.padding_E[e]
        if not n:
            return f"Expert {e}: no rows, no tile, no padding."
        share = percent(padding / (tiles * t.block_m))
        return (
            f"Expert {e}: {counted(n, 'row')}, {counted(tiles, 'tile')} of {t.block_m}, {counted(padding, 'row')} of "
            f"padding, {share} of what is multiplied for it."
        )

    def picture(self) -> Picture:
        """The rows of each expert in tiles, and below them waste, waves and reading by the height of a tile."""
        from labkit.show.widgets.tiles_picture import draw

        return draw(self)


def totals(t: Tiling) -> list[list[str]]:
    """The sums of one tiling as (what, value in words).

    >>> totals(tiling([5, 0], 4, 64, width=128, multiprocessors=3))[:3]
    [['tiles', '2'], ['rows multiplied', '8'], ['of them padding', '3 (37.5 %)']]
    """
    return [
        ["tiles", f"{t.tiles:,}"],
        ["rows multiplied", f"{t.computed:,}"],
        ["of them padding", f"{t.padding:,} ({percent(t.waste)})"],
        ["programs", f"{t.programs:,} = {t.tiles:,} × {t.columns:,}"],
        ["waves", f"{t.waves:,}"],
        ["last wave", f"{percent(t.last_wave)} full" if t.waves else "–"],
        ["FLOP per byte read", f"{t.intensity:.3g}"],
        ["wanted FLOP per byte", "–" if math.isnan(t.read_per_flop) else f"{1 / t.read_per_flop:.3g}"],
    ]


def tiles(
    tokens_per_expert_E: Routing | Tensor | Sequence[int],
    block_m: int = 128,
    block_n: int = 256,
    width: int = 2048,
    multiprocessors: int = 132,
) -> Tiles:
    """How each expert's rows are cut into tiles, and what that costs; see `Tiles`.

    >>> w = tiles([5, 1, 0, 8], block_m=8)
    >>> w.tiling.tiles_E, w.tiling.padding
    ((1, 1, 0, 1), 10)
    """
    return Tiles(tokens_per_expert_E, block_m, block_n, width, multiprocessors)
