"""Lab 09: the inputs that answers are compared on. Kernels are launched between guards (`kernels.guard`).

Values are small multiples of an eighth, so that products are exact however a GPU rounds its operands. Edge cases are
the same for every seed, so that they are judged once: an interpreted kernel takes its time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labkit.course.attempt import Case
from labkit.course.given import on_another_device
from labkit.kernels.guard import Out, launch

BLOCKS = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}
THREE_SIZES = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 64}
THREE = "blocks of three sizes"  # whoever takes one for another is right until here
LIST = tuple[int, int, int]  # a tile: its expert, its first row, its first column


def _eighths(seed: int, *shape: int, most: int = 8) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=draw).float() / 8


def _operands(seed: int, *shapes: tuple[int, ...], half: bool) -> list[Tensor]:
    """Both operands of a product; in float16 they are large, so that their sums do not fit into float16."""
    made = (_eighths(seed + i, *shape, most=64 if half else 8) for i, shape in enumerate(shapes))
    return [tensor.half() if half else tensor for tensor in made]


def _tokens(seed: int, T: int, N: int) -> Tensor:
    """A token for each of N rows, no two neighbours in order, every token as often as the next."""
    draw = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randperm(T, generator=draw) for _ in range(-(-N // T))])[:N].int()


def _offsets(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0).int()


def _tiles(counts: list[int], width: int, blocks: dict[str, int], backwards: bool = False) -> list[LIST]:
    """All tiles of experts with so many rows each."""
    first = _offsets(counts).tolist()
    found = [
        (expert, first[expert] + row, column)
        for expert, count in enumerate(counts)
        for row in range(0, count, blocks["BLOCK_M"])
        for column in range(0, width, blocks["BLOCK_N"])
    ]
    return found[::-1] if backwards else found


# ---------------------------------------------------------------------------------------------------------- tile_map


def map_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 40, (7,), generator=draw)
    drawn[seed % 7] = 0
    counts = [
        ([3], 4, "one expert, a tile that is not full"),
        ([4, 8], 4, "tiles that are full"),
        ([5, 1, 9], 4, "a new tile for what is left over"),
        ([2, 0, 0, 3], 4, "experts without a token"),
        ([0, 6], 2, "the first expert has none"),
        ([0, 0, 0], 16, "no token at all"),
        ([0, 100, 0], 16, "one expert has everything"),
        ([3, 2], 1, "tiles of one row"),
        ([1, 1, 1], 128, "tiles that are nearly empty"),
    ]
    fixed = [Case((torch.tensor(c), block), label=label) for c, block, label in counts]
    other = Case((torch.tensor([5, 1, 0, 8, 3]), 4), label="counts on another device", through=on_another_device)
    return [*fixed, Case((drawn, 8 << seed % 3), label="drawn counts"), other]


# ------------------------------------------------------------------------------------------------------------ gather


def gather_cases(seed: int) -> list[Case]:
    def case(at: int, T: int, D: int, W: int, counts: list[int], label: str, **more: Any) -> Case:
        x, weights = _operands(at, (T, D), (len(counts), W, D), half=bool(more.get("half")))
        blocks = more.get("blocks", BLOCKS)
        work = _tiles(counts, W, blocks, bool(more.get("backwards")))
        expert, row, column = (torch.tensor(part).int() for part in zip(*work, strict=True))
        tokens, out = _tokens(at + 2, T, sum(counts)), Out((sum(counts), W))
        how = {"grid": (len(work),), "constants": blocks}
        return Case((x, tokens, weights, out, expert, row, column, _offsets(counts), D, W), how, label, through=launch)

    return [
        case(1, 16, 16, 16, [16], "one expert, one full tile"),
        case(2, 3, 16, 16, [5], "a tile that is not full"),
        case(3, 4, 16, 16, [3, 4], "two experts, the second one's tile first", backwards=True),
        case(4, 5, 20, 16, [4], "a depth that is no multiple of the block"),
        case(5, 5, 16, 20, [4], "a width that is no multiple of the block"),
        case(6, 4, 32, 16, [2, 0, 3], "an expert without rows, two steps of depth"),
        case(7, 9, 32, 16, [9], "float16 comes in, float32 goes out", half=True),
        case(seed + 50, 11, 24, 12, [1, 18], "drawn numbers, ugly sizes"),
        case(8, 7, 80, 40, [3, 18], THREE, blocks=THREE_SIZES),
    ]


# --------------------------------------------------------------------------------------------------- swiglu_epilogue


def swiglu_cases(seed: int) -> list[Case]:
    def case(at: int, T: int, D: int, F: int, counts: list[int], label: str, **more: Any) -> Case:
        x, weights = _operands(at, (T, D), (len(counts), 2 * F, D), half=bool(more.get("half")))
        blocks = more.get("blocks", BLOCKS)
        work = _tiles(counts, F, blocks, bool(more.get("backwards")))
        expert, row, column = (torch.tensor(part).int() for part in zip(*work, strict=True))
        N, save = sum(counts), bool(more.get("save", True))
        outs = (Out((N, 2 * F)) if save else None, Out((N, F)))
        how = {"grid": (len(work),), "constants": {"SAVE": save, **blocks}}
        args = (x, _tokens(at + 2, T, N), weights, *outs, expert, row, column, _offsets(counts), D, F)
        return Case(args, how, label, through=launch)

    return [
        case(11, 16, 16, 16, [16], "one expert, one full tile"),
        case(12, 3, 16, 16, [5], "nothing saved", save=False),
        case(13, 4, 16, 16, [3, 4], "two experts, the second one's tile first", backwards=True),
        case(14, 5, 20, 16, [4], "a depth that is no multiple of the block"),
        case(15, 5, 16, 20, [4], "a width that is no multiple of the block"),
        case(16, 9, 32, 16, [9], "float16 comes in, float32 goes out", half=True),
        case(seed + 60, 7, 24, 12, [1, 0, 6], "drawn numbers, ugly sizes"),
        case(18, 7, 80, 40, [3, 18], THREE, blocks=THREE_SIZES),
    ]


# -------------------------------------------------------------------------------------------------------- tile_order


def order_cases(seed: int) -> list[Case]:
    def case(rows: int, columns: int, group: int, label: str) -> Case:
        return Case((torch.arange(rows * columns), rows, columns, group), label=label)

    draw = torch.Generator().manual_seed(seed)
    rows, columns = (int(v) for v in torch.randint(5, 14, (2,), generator=draw))
    some = torch.randint(rows * columns, (9,), generator=draw)
    return [
        case(2, 3, 2, "one group"),
        case(4, 3, 2, "two groups"),
        case(5, 3, 2, "a last group of one row"),
        case(7, 2, 4, "a last group of three rows"),
        case(3, 4, 1, "groups of one row: row by row"),
        case(3, 2, 8, "a group larger than there are rows: column by column"),
        case(4, 1, 2, "one column"),
        case(1, 4, 2, "one row"),
        Case((some, rows, columns, 3), label="some tiles only, in any order"),
        case(rows, columns, 4, "drawn sizes"),
    ]


# --------------------------------------------------------------------------------------------------- weight_gradient


def gradient_cases(seed: int) -> list[Case]:
    def case(at: int, T: int, D: int, W: int, counts: list[int], label: str, **more: Any) -> Case:
        N, E = sum(counts), len(counts)
        x, y = _operands(at, (T, D), (N, W), half=bool(more.get("half")))
        turned = bool(more.get("turned"))
        out = Out((E, W, D) if turned else (E, D, W))
        strides = (1, D) if turned else (W, 1)
        blocks = more.get("blocks", BLOCKS)
        how = {"grid": (E, -(-D // blocks["BLOCK_M"]), -(-W // blocks["BLOCK_N"])), "constants": blocks}
        args = (x, y, _tokens(at + 2, T, N), _offsets(counts), out, D, W, *strides)
        return Case(args, how, label, through=launch)

    return [
        case(21, 16, 16, 16, [16], "one expert, 16 rows"),
        case(22, 3, 16, 16, [5], "rows that do not fill the block"),
        case(23, 7, 16, 16, [20], "more rows than the block has"),
        case(24, 5, 16, 16, [4, 0, 16], "an expert without rows"),
        case(25, 4, 20, 16, [5], "a D that is no multiple of the block"),
        case(26, 4, 16, 20, [5], "a W that is no multiple of the block"),
        case(27, 4, 16, 32, [6], "stored the other way round", turned=True),
        case(28, 9, 16, 16, [40], "float16 comes in, float32 goes out", half=True),
        case(seed + 70, 7, 20, 12, [2, 17], "drawn numbers, ugly sizes", turned=True),
        case(29, 9, 40, 48, [3, 70], THREE, blocks=THREE_SIZES),
    ]
