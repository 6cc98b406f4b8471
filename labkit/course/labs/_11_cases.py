"""Lab 11: the inputs that answers are compared on."""

from __future__ import annotations

from math import inf, nan

import torch
from torch import Tensor

from labkit.course.attempt import Case
from labkit.course.weighed import weigh
from labkit.kernels.nf4 import LEVELS
from labkit.kernels.quant import int8


def _normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


# ------------------------------------------------------------------------------------------------------------ absmax


def absmax_cases(seed: int) -> list[Case]:
    R, C = 3 + seed % 4, 5 + seed % 3
    rows = _normal(seed, R, C)
    uneven = rows * torch.logspace(-3, 2, R)[:, None]
    negative = _normal(seed + 1, R, C).abs() * -0.1
    empty = rows.clone()
    empty[1] = 0.0
    return [
        Case((torch.tensor([[1.0, -0.4, 0.3]]),), label="one row"),
        Case((torch.tensor([[0.2, -3.0, 1.3], [0.2, 0.01, -0.07]]),), label="two rows of different size"),
        Case((rows,), label="normal weights"),
        Case((uneven,), label="rows from small to large"),
        Case((negative,), label="all weights below zero"),
        Case((empty,), label="a row of zeros"),
        Case((torch.zeros(2, 3),), label="nothing but zeros"),
        Case((_normal(seed + 2, 4, 1),), label="one column"),
        Case((_normal(seed + 3, 4, 4),), label="as many rows as columns"),
        Case((rows.half(),), label="float16 weights"),
        Case((torch.cat([rows[:2], rows[2:] * 1e-9]),), label="a row of tiny weights"),
        Case((torch.tensor([[1.0, nan], [0.0, 2.0]]),), label="a weight is NaN: ValueError"),
        Case((torch.tensor([[1.0, 2.0], [-inf, 2.0]]),), label="a weight is infinite: ValueError"),
    ]


# --------------------------------------------------------------------------------------------------- outlier_product


def outlier_cases(seed: int) -> list[Case]:
    T, C, R = 4 + seed % 3, 12 + seed % 5, 5 + seed % 2

    def case(label: str, x: Tensor, threshold: float = 6.0, rows: int = R) -> Case:
        packed = int8(_normal(seed + 5, rows, x.shape[1], scale=0.3))
        return Case((x, packed.codes, packed.absmax, threshold), label=label)

    plain = _normal(seed, T, C).clamp(-4, 4)
    one, several, every = plain.clone(), plain.clone(), plain.clone()
    one[:, 3] *= 20
    one[1, 3] = 40.0
    several[0, 1], several[2, 5], several[-1, 0] = 9.0, -31.0, 7.5
    exact = plain.clone()
    exact[1, 2] = 6.0
    below = plain.clone()
    below[1, 2] = -6.5
    every[0] = 8.0
    silent = several.clone()
    silent[1] = 0.0
    return [
        case("no outliers", plain),
        case("one column is huge", one),
        case("outliers here and there", several),
        case("one value that reaches the threshold and no more", exact),
        case("one outlier below zero", below),
        case("every column has an outlier", every),
        case("a token of zeros", silent),
        case("a lower threshold", plain, threshold=2.0),
        case("one token, one output", several[:1], rows=1),
    ]


# --------------------------------------------------------------------------------------------------------------- nf4


def nf4_cases(seed: int) -> list[Case]:
    normal, even = torch.tensor(LEVELS), torch.linspace(-1, 1, 16)
    w = _normal(seed, 3 + seed % 3, 128)
    uneven = w * torch.logspace(-2, 2, 128)
    empty = w.clone()
    empty[1, 64:] = 0.0
    return [
        Case((torch.tensor([[1.0, -2.0, 0.5, 0.0]]), normal, 4), label="one block of four"),
        Case((torch.tensor([[0.1, 0.03, -3.0, 1.0]]), normal, 2), label="two blocks of two"),
        Case((w, normal, 64), label="normal weights, blocks of 64"),
        Case((w[:, :64].abs() * -0.02, normal, 64), label="all weights below zero"),
        Case((uneven, normal, 32), label="blocks from small to large"),
        Case((empty, normal, 64), label="a block of zeros"),
        Case((_normal(seed + 1, 8, 8), normal, 4), label="as many rows as columns"),
        Case((_normal(seed + 2, 2, 64), even, 64), label="other levels: sixteen at equal distances"),
        Case((torch.cat([w[:1], w[1:] * 1e-9]), normal, 64), label="blocks of tiny weights"),
    ]


# --------------------------------------------------------------------------------------------------------- fp8_block


def fp8_cases(seed: int) -> list[Case]:
    wide = _normal(seed, 8, 12)
    uneven = wide * torch.logspace(-3, 3, 12) * torch.logspace(-1, 1, 8)[:, None]
    empty = wide.clone()
    empty[:4, 4:8] = 0.0
    return [
        Case((torch.tensor([[7.0, -3.4], [0.0, 0.1]]), 2), label="one block"),
        Case((torch.tensor([[7.0, 0.01], [0.3, -900.0]]), 1), label="every weight a block of its own"),
        Case((wide, 4), label="two by three blocks"),
        Case((uneven, 4), label="blocks from small to large"),
        Case((_normal(seed + 1, 8, 8) * torch.logspace(0, 2, 8), 4), label="as many rows as columns"),
        Case((_normal(seed + 2, 7, 9), 4), label="sizes that are no multiple of the block"),
        Case((_normal(seed + 3, 3, 5), 16), label="a block larger than the matrix"),
        Case((wide.abs() * -0.01, 4), label="all weights below zero"),
        Case((empty, 4), label="a block of zeros"),
        Case((_normal(seed + 4, 130, 257, scale=0.02), 128), label="blocks of 128, ragged"),
    ]


# ----------------------------------------------------------------------------------------------------- bytes_by_room

F32, BF16, I8 = torch.float32, torch.bfloat16, torch.int8


def room_cases(seed: int) -> list[Case]:
    E, D, W = 2 + seed % 3, 4 + seed % 5, 3 + seed % 2
    dense = (("attention.query", "parameter", ((D, D), F32)), ("experts.up", "parameter", ((E, W, D), F32)))
    packed = (
        ("router.weight", "parameter", ((E, D), BF16)),
        ("experts.up.codes", "buffer", ((E, W, D), I8)),
        ("experts.up.absmax", "buffer", ((E, W, 1), F32)),
        ("experts.down.codes", "buffer", ((E, D, W), I8)),
    )
    tied = (("embedding.weight", "parameter", ((9, D), F32)), *dense, ("head.weight", "same", "embedding.weight"))
    sliced = (("experts.all", "parameter", ((E, W, D), F32)), ("attention.view", "rows", ("experts.all", 1)))
    inside = (sliced[0], ("attention.view", "end", ("experts.all", 1)))
    held = (("table.whole", "buffer", ((16, D), F32)), ("head.weight", "rows", ("table.whole", 2)))
    scratch = (*dense, ("attention.angles", "scratch", ((8, D), F32)))
    return [
        Case((dense,), label="plain weights", through=weigh),
        Case((packed,), label="packed experts beside a router in bfloat16", through=weigh),
        Case((tied,), label="a head that is the embedding", through=weigh),
        Case((sliced,), label="a view of another's memory", through=weigh),
        Case((inside,), label="a view that begins inside another's memory", through=weigh),
        Case((held,), label="a parameter that is two rows of a large buffer", through=weigh),
        Case((scratch,), label="a buffer that is not saved", through=weigh),
        Case(((),), label="an empty model", through=weigh),
    ]


# ---------------------------------------------------------------------------------------------------- pick_precision


def pick_cases(seed: int) -> list[Case]:
    T = 12 + seed % 7
    feature = _normal(seed, T)
    return [
        Case((torch.tensor([0.5, 3.0, -1.0, 2.0]), 4.5, 8.5, 6.5), label="four tokens, half of them"),
        Case((torch.tensor([-0.5, -3.0, -0.1, -2.0, -0.7]), 4.5, 8.5, 6.0), label="what is left over buys no token"),
        Case((feature, 4.0, 8.0, 5.0), label="a quarter of the way"),
        Case((feature, 4.5, 8.5, 7.75), label="most of them"),
        Case((torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0]), 4.0, 8.0, 6.0), label="equal features: earlier tokens first"),
        Case((feature, 4.0, 8.0, 4.0), label="a budget for nobody"),
        Case((feature, 4.0, 8.0, 8.0), label="a budget for everybody"),
        Case((feature, 4.0, 8.0, 11.0), label="more than everybody costs"),
        Case((torch.zeros(0), 4.0, 8.0, 6.0), label="no tokens"),
        Case((feature, 4.0, 8.0, 3.0), label="a budget below the cheapest: ValueError"),
    ]
