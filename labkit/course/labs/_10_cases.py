"""Lab 10: the inputs that answers are compared on. Kernels are launched between guards (`kernels.guard`).

What an answer has to call lies outside of `labs`, which a grader's sandbox does not show. Edge cases of the kernel are
the same for every seed, so that they are judged once: an interpreted kernel takes its time.
"""

from __future__ import annotations

from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.attempt import Case
from labkit.kernels import reference
from labkit.kernels.guard import Out, launch


def _normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


# ------------------------------------------------------------------------------------------------------- saved_bytes


def saved_cases(seed: int) -> list[Case]:
    def leaf(*shape: int) -> Tensor:
        return _normal(seed + len(shape), *shape).requires_grad_()

    T, D, W = 3 + seed % 5, 4, 6 + seed % 3
    targets_T = torch.randint(D, (T,), generator=torch.Generator().manual_seed(seed))
    frozen = _normal(seed, T, D)
    return [
        Case((F.tanh, leaf(2, 3)), label="a tanh: it keeps its result"),
        Case((F.silu, leaf(2, 3)), label="a SiLU: it keeps its input, which is there anyway"),
        Case((reference.swiglu, leaf(T, D), leaf(2 * W, D), leaf(D, W)), label="a SwiGLU layer"),
        Case((reference.swiglu, frozen, leaf(2 * W, D), leaf(D, W)), label="a SwiGLU layer, its input needs none"),
        Case((reference.swiglu, frozen, _normal(1, 2 * W, D), _normal(2, D, W)), label="nothing needs a gradient"),
        Case((F.normalize, leaf(T, D)), label="rows of length one"),
        Case((F.cross_entropy, leaf(T, D), targets_T), label="a loss"),
        Case((F.tanh, leaf(T, D).detach().double().requires_grad_()), label="float64"),
    ]


# --------------------------------------------------------------------------------------------------- checkpoint_peak


def peak_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    layers = int(torch.randint(11, 40, (1,), generator=draw))
    small, large = (int(v) for v in torch.randint(1, 9, (2,), generator=draw))
    inner = small * 10 + large + 13
    return [
        Case((4, 1, 10, 1), label="four layers, each a segment"),
        Case((4, 1, 10, 2), label="two segments of two"),
        Case((4, 1, 10, 4), label="one segment: everything is kept at once"),
        Case((5, 1, 10, 2), label="the last segment is shorter"),
        Case((7, 3, 10, 3), label="seven layers by three"),
        Case((9, 10, 10, 4), label="layers that keep nothing but their input"),
        Case((layers, small, inner, 3), label="more layers"),
        Case((layers, small, inner, layers + 5), label="a segment longer than the model"),
        Case((3, 1, 10, 0), label="a segment without layers: ValueError"),
    ]


# --------------------------------------------------------------------------------------------------- swiglu_backward


def swiglu_cases(seed: int) -> list[Case]:
    def three(at: int, *shape: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        return _normal(at, *shape), _normal(at + 1, *shape, scale=scale), _normal(at + 2, *shape)

    one = torch.tensor([[1.0]])
    distant = torch.tensor([[-120.0, -90.0, 90.0, 120.0]])
    return [
        Case((one, torch.tensor([[0.0]]), 2 * one), label="one number, a gate of zero"),
        Case((one, 2 * one, 3 * one), label="one number"),
        Case(three(seed, 5, 4), label="five rows"),
        Case(three(seed + 10, 2, 3, 7), label="another leading dimension"),
        Case(three(seed + 20, 3, 4, scale=40.0), label="gates far from zero"),
        Case((torch.ones(1, 4), distant, torch.full((1, 4), 2.0)), label="gates further still"),
        Case(three(seed + 30, 0, 4), label="no rows"),
    ]


# ------------------------------------------------------------------------------------------------------------ absorb


def absorb_cases(seed: int) -> list[Case]:
    def state(at: int, S: int, d: int, raised: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        return _normal(at, S) + raised, _normal(at + 1, S).abs() + 1, _normal(at + 2, S, d)

    def block(at: int, S: int, K: int, d: int) -> tuple[Tensor, Tensor]:
        return _normal(at + 3, S, K, scale=2.0), _normal(at + 4, K, d)

    def nothing(S: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
        return torch.full((S,), -inf), torch.zeros(S), torch.zeros(S, d)

    masked, values = block(seed + 60, 3, 4, 2)
    masked[0] = -inf
    masked[1, 2:] = -inf
    one = torch.tensor
    return [
        Case((one([0.0]), one([1.0]), one([[2.0]]), one([[1.0]]), one([[4.0]])), label="a higher key"),
        Case((one([1.0]), one([1.0]), one([[2.0]]), one([[0.0]]), one([[4.0]])), label="a lower key"),
        Case((*state(seed, 3, 2), *block(seed, 3, 4, 2)), label="three queries, four keys"),
        Case((*state(seed + 10, 5, 3, 9.0), *block(seed + 10, 5, 2, 3)), label="an old maximum above every score"),
        Case((*state(seed + 20, 2, 4, -9.0), *block(seed + 20, 2, 7, 4)), label="an old maximum below"),
        Case((*state(seed + 30, 2, 2, 300.0), *block(seed + 30, 2, 3, 2)), label="scores of hundreds"),
        Case((*nothing(4, 3), *block(seed + 40, 4, 5, 3)), label="the first block"),
        Case((*state(seed + 50, 3, 2), masked, values), label="keys that are masked with minus infinity"),
        Case((*nothing(3, 2), masked, values), label="the first block, and one query sees none of it"),
    ]


# ------------------------------------------------------------------------------------------------------ flash_kernel


def flash_cases(seed: int) -> list[Case]:
    def case(
        at: int, S: int, K: int, causal: bool, label: str, scale: float = 0.25, rise: float = 0.0, half: bool = False,
        tile: tuple[int, int, int] = (16, 16, 16),
    ) -> Case:  # fmt: skip
        D, block_s, block_k = tile
        q, k, v = _normal(at, S, D), _normal(at + 1, K, D), _normal(at + 2, K, D)
        if rise:  # later keys score higher, or lower, and all are far from zero
            q, k = q.abs(), k.abs() + rise * (1 + torch.arange(K)[:, None] / K)
        if half:
            q, k, v = q.half(), k.half(), v.half()
        constants = {"CAUSAL": causal, "D": D, "BLOCK_S": block_s, "BLOCK_K": block_k}
        how = {"grid": (-(-S // block_s),), "constants": constants}
        return Case((q, k, v, Out((S, D)), S, K, scale), how, label, through=launch)

    return [
        case(1, 1, 1, False, "one query, one key"),
        case(2, 16, 16, False, "one tile, everything seen"),
        case(3, 3, 5, False, "a tile of keys that is not full", 0.5),
        case(4, 5, 40, False, "three tiles of keys", 0.5),
        case(5, 7, 45, False, "scores of hundreds that grow", 8.0, rise=3.0),
        case(6, 7, 45, False, "scores of minus hundreds that fall", 8.0, rise=-3.0),
        case(7, 9, 9, True, "causal, one tile", 0.5),
        case(11, 9, 9, True, "causal, scores of hundreds that grow", 8.0, rise=3.0),
        case(seed + 20, 37, 37, True, "causal, three tiles", 0.4),
        case(8, 4, 20, False, "float16 in, float32 out", half=True),
        case(9, 40, 40, True, "causal, tiles of 32 queries and 16 keys, width 64", 0.1, tile=(64, 32, 16)),
        case(10, 40, 33, False, "tiles of 16 queries and 32 keys, width 64", 0.1, tile=(64, 16, 32)),
    ]


# -------------------------------------------------------------------------------------------------- stochastic_round


def round_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randint(0, 65536, shape, generator=draw, dtype=torch.int32)

    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    half = torch.full((40,), 32768, dtype=torch.int32)
    third = torch.full((4,), 1 + 1 / 384)  # a third of the way from 1 to the next bfloat16
    exact = torch.tensor([1.0, -2.5, 0.0, 384.0])
    wide = _normal(seed + 3, 60) * 10.0 ** torch.randint(-30, 30, (60,), generator=draw)
    return [
        Case((third, ints(0, 43_690, 43_691, 65_535)), label="a third of the way up"),
        Case((-third, ints(0, 43_690, 43_691, 65_535)), label="the same below zero"),
        Case((exact, ints(0, 65_535, 65_535, 65_535)), label="numbers that bfloat16 has"),
        Case((_normal(seed, 5, 4), noise(5, 4)), label="a matrix"),
        Case((wide, noise(60)), label="large and small numbers"),
        Case((_normal(seed + 2, 40), half), label="noise of exactly one half: to nearest"),
        Case((_normal(seed + 4, 3, 200), noise(3, 200)), label="many numbers"),
        Case((torch.tensor([inf, -inf]), ints(0, 65_535)), label="infinities stay"),
    ]
