"""Lab 08: the inputs that answers are compared on. Kernels are launched between guards (`kernels.guard`).

Edge cases are the same for every seed, so that they are judged once: an interpreted kernel takes its time.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from labkit.course.attempt import Case
from labkit.kernels.guard import Out, launch


def _normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def _apart(values: Tensor, stride: int) -> Tensor:
    """The same rows, each `stride` elements after the one before it."""
    wide = torch.zeros(len(values), stride)
    wide[:, : values.shape[1]] = values
    return wide[:, : values.shape[1]]


# ------------------------------------------------------------------------------------------------------ matmul_bound


def bound_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    M, K, N = (int(v) for v in torch.randint(3, 900, (3,), generator=draw))
    peak, bandwidth = (float(v) for v in torch.rand(2, generator=draw) * torch.tensor([9e14, 4e12]) + 1e11)
    return [
        Case((1, 1, 1, 4, 8.0, 4.0), label="one number times one number"),
        Case((2, 3, 4, 2, 1e3, 1e9), label="a slow calculator with a fast memory"),
        Case((4, 2, 3, 4, 1e9, 1e3), label="a fast calculator with a slow memory"),
        Case((2, 2, 2, 4, 16.0, 48.0), label="both take equally long: it counts as compute"),
        Case((1, 4096, 4096, 2, 9.894e14, 4.8e12), label="one token through a matrix"),
        Case((8192, 8192, 8192, 2, 9.894e14, 4.8e12), label="a large square product"),
        Case((M, K, N, 4, peak, bandwidth), label="drawn sizes, float32"),
        Case((N, M, K, 1, bandwidth, peak / 100), label="drawn sizes, one byte a number"),
    ]


# -------------------------------------------------------------------------------------------------------- add_kernel


def add_cases(seed: int) -> list[Case]:
    def case(x: Tensor, y: Tensor, BLOCK: int, programs: int, label: str) -> Case:
        out = Out(tuple(x.shape), str(x.dtype).removeprefix("torch."))
        how = {"grid": (programs,), "constants": {"BLOCK": BLOCK}}
        return Case((x, y, out, len(x)), how, label, through=launch)

    count = torch.arange(1.0, 6.0)
    return [
        case(count[:4], 10 * count[:4], 4, 1, "one block, exactly"),
        case(count, 10 * count, 4, 2, "a last block that is not full"),
        case(count[:1], count[1:2], 8, 1, "one element, a block of 8"),
        case(count, 2 * count, 2, 4, "more programs than there is work for"),
        case(_normal(seed, 37), _normal(seed + 1, 37), 16, 3, "37 elements in blocks of 16"),
        case(_normal(seed + 2, 24).half(), _normal(seed + 3, 24).half(), 8, 3, "float16, three whole blocks"),
    ]


# ---------------------------------------------------------------------------------------------------- softmax_kernel


def softmax_cases(seed: int) -> list[Case]:
    def case(x: Tensor, BLOCK: int, label: str, out_stride: int | None = None) -> Case:
        T, width = x.shape
        stride = width if out_stride is None else out_stride
        out = Out((T, width), "float32", None if out_stride is None else (stride, 1))
        how = {"grid": (T,), "constants": {"BLOCK": BLOCK}}
        return Case((x, out, x.stride(0), stride, width), how, label, through=launch)

    return [
        case(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), 4, "one row, as wide as the block"),
        case(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 0.0]]), 4, "a width that is no power of two"),
        case(torch.tensor([[1000.0, 998.0, 999.0, -500.0]]), 4, "values of a thousand"),
        case(torch.tensor([[-300.0, -301.0, -302.5]]), 4, "all values far below zero"),
        case(torch.tensor([[0.5, -inf, 1.5]]), 4, "an entry of minus infinity"),
        case(torch.tensor([[7.0], [-2.0]]), 8, "rows of a single element"),
        case(_apart(_normal(seed, 3, 5, scale=2.0), 7), 8, "rows that lie apart", out_stride=6),
        case(_normal(seed + 1, 2, 4, scale=3.0).half(), 4, "float16 comes in, float32 goes out"),
    ]


# ------------------------------------------------------------------------------------------------------ top_k_kernel


def top_k_cases(seed: int) -> list[Case]:
    def case(x: Tensor, K: int, BLOCK: int, label: str) -> Case:
        T, width = x.shape
        how = {"grid": (T,), "constants": {"K": K, "BLOCK": BLOCK}}
        outs = (Out((T, K), "int64"), Out((T, K)))
        return Case((x, *outs, x.stride(0), width), how, label, through=launch)

    return [
        case(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), 2, 4, "one row, K = 2"),
        case(torch.tensor([[0.1, 0.5, 0.5, 0.2, 0.5]]), 2, 8, "ties"),
        case(torch.full((1, 4), 0.25), 3, 4, "all equal"),
        case(torch.tensor([[-3.0, -1.0, -2.0]]), 2, 4, "nothing above zero"),
        case(torch.tensor([[2.0, -1.0, 3.0], [0.0, 1.0, -4.0]]), 3, 4, "K is the whole width"),
        case(torch.tensor([[-inf, 0.5, -inf, -1.5, 2.0]]), 2, 8, "experts that are shut out by minus infinity"),
        case(_apart(_normal(seed, 3, 6), 9), 2, 8, "rows that lie apart"),
    ]


# ----------------------------------------------------------------------------------------------------- router_kernel


def router_cases(seed: int) -> list[Case]:
    def case(x: Tensor, K: int, NORM: bool, BLOCK: int, label: str) -> Case:
        T, E = x.shape
        how = {"grid": (T,), "constants": {"K": K, "NORM": NORM, "BLOCK": BLOCK}}
        outs = (Out((T, K), "int64"), Out((T, K)))
        return Case((x, *outs, x.stride(0), E), how, label, through=launch)

    plain = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    return [
        case(plain, 2, True, 4, "one token, weights that sum to one"),
        case(plain, 2, False, 4, "one token, scores as they are"),
        case(torch.tensor([[0.3, -0.7, 1.1]]), 2, False, 4, "three experts: a lane of the block is empty"),
        case(torch.tensor([[500.0, 498.0, 100.0, 499.0]]), 2, True, 4, "logits of 500"),
        case(torch.tensor([[-300.0, -302.0, -301.0]]), 2, True, 4, "all logits far below zero"),
        case(torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0]]), 2, True, 8, "ties"),
        case(torch.tensor([[0.2, 0.9, -0.4]]), 1, True, 4, "K = 1"),
        case(_apart(_normal(seed, 2, 6), 9), 3, True, 8, "rows that lie apart"),
        case(_normal(seed + 1, 2, 4).half(), 2, False, 4, "float16"),
    ]
