"""Lab 16: the inputs that answers are compared on."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from labkit.course.attempt import Case
from labkit.course.ranks import dispatched


def _fractions(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _chosen(seed: int, tokens: int, experts: int, k: int) -> Tensor:
    """K different experts a token; [T, K]."""
    return _fractions(seed, tokens, experts).topk(k, dim=1).indices


# ------------------------------------------------------------------------------------------------------------ splits


def split_cases(seed: int) -> list[Case]:
    two, uneven = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0, 0, 2, 0, 1, 0])
    small = [torch.tensor([[0, 1], [0, 2], [1, 0]]), torch.tensor([[1, 3]])]

    def drawn(owner_E: Tensor, k: int, *tokens: int) -> list[Tensor]:
        return [_chosen(seed * 97 + 7 * r + t, t, len(owner_E), k) for r, t in enumerate(tokens)]

    crowd = [torch.tensor([[5, 1]] * 4), torch.tensor([[5, 0]] * 3), torch.tensor([[5, 6]] * 2)]
    return [
        Case((small, two, 2), label="two ranks, two experts each, three tokens and one"),
        Case((drawn(two, 1, 3, 4), two, 2), label="one expert a token"),
        Case((drawn(uneven, 3, 5, 0, 6), uneven, 3), label="experts live unevenly, one rank has no tokens"),
        Case((crowd, uneven, 3), label="one expert gets every token"),
        Case((drawn(two, 2, 4, 6, 5), two, 3), label="the last rank has no expert"),
        Case((drawn(uneven, 7, 2, 3, 1), uneven, 3), label="every token takes every expert"),
        Case((drawn(torch.zeros(5, dtype=torch.int64), 2, 6), torch.zeros(5, dtype=torch.int64), 1), label="one rank"),
        Case((drawn(uneven, 4, 9, 17, 3, 8), uneven, 4), label="four ranks, four experts a token"),
    ]


# ---------------------------------------------------------------------------------------------------------- dispatch


def dispatch_cases(seed: int) -> list[Case]:
    two, uneven = torch.tensor([0, 0, 1, 1]), torch.tensor([2, 0, 1, 0, 2, 0, 0])

    def case(label: str, owner_E: Tensor, *ids_RTK: Tensor, width: int = 3) -> Case:
        x = [_fractions(seed * 31 + r, len(ids), width) * 2 - 1 for r, ids in enumerate(ids_RTK)]
        scores = [_fractions(seed * 31 + 50 + r, *ids.shape) + 0.1 for r, ids in enumerate(ids_RTK)]
        scale = _fractions(seed + 7, len(owner_E), width) + 0.5
        return Case((x, list(ids_RTK), scores, owner_E, scale), label=label, through=dispatched)

    def drawn(owner_E: Tensor, k: int, *tokens: int) -> list[Tensor]:
        return [_chosen(seed * 89 + 11 * r + t, t, len(owner_E), k) for r, t in enumerate(tokens)]

    one_way = [torch.tensor([[2], [3]]), torch.tensor([[3]])]
    return [
        case("a token on each of two ranks", two, torch.tensor([[3, 0]]), torch.tensor([[1, 2]]), width=2),
        case("all of it goes to rank 1", two, *one_way),
        case("two ranks, three tokens and five", two, *drawn(two, 2, 3, 5)),
        case("a rank without tokens, experts that live unevenly", uneven, *drawn(uneven, 3, 4, 0, 6)),
        case("one expert gets every token", uneven, *(torch.tensor([[4, 1]] * n) for n in (3, 2, 4))),
        case("a rank without experts", two, *drawn(two, 2, 4, 3, 2)),
        case("every token takes every expert", two, *drawn(two, 4, 2, 3)),
        case("one rank alone", torch.zeros(5, dtype=torch.int64), *drawn(torch.zeros(5), 2, 7)),
        case("four ranks", uneven, *drawn(uneven, 3, 8, 5, 9, 1), width=5),
    ]


# ------------------------------------------------------------------------------------------------------ node_limited


def node_cases(seed: int) -> list[Case]:
    small = torch.tensor([[0.9, 0.1, 0.2, 0.6, 0.5, 0.3, 0.4, 0.35]])

    def drawn(label: str, tokens: int, experts: int, *rest: int, shift: float = 0.0) -> Case:
        return Case((_fractions(seed * 53 + tokens + experts, tokens, experts) - shift, *rest), label=label)

    return [
        Case((small, 4, 2, 2), label="one token, four nodes of two experts, two nodes at most"),
        Case((torch.tensor([[0.9, 0.0, 0.1, 0.6, 0.5, 0.4]]), 2, 1, 2), label="the best expert lives on another node"),
        drawn("eight of 32 experts, four of eight nodes", 9, 32, 8, 4, 8),
        drawn("one node at most", 7, 12, 3, 1, 3),
        drawn("all nodes allowed: no limit", 6, 12, 3, 3, 6),
        drawn("biased scores below zero, one expert a node", 8, 3, 3, 2, 2, shift=1.0),
        drawn("a node gives all its experts", 5, 8, 4, 2, 4),
        drawn("no token", 0, 16, 4, 2, 4),
        drawn("four of 24 experts, one each", 11, 24, 8, 4, 4),
        drawn("six of 24, two of three nodes", 13, 24, 3, 2, 6),
    ]


# --------------------------------------------------------------------------------------------------------- replicate

EPLB = (
    (90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86),
    (20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27),
)
"""The load of two layers' twelve experts, as EPLB's README has it (github.com/deepseek-ai/EPLB at d52c72d)."""


def replicate_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    skewed = [int(1000 * draw.random() ** 4) + 1 for _ in range(11)]
    return [
        Case(([6, 1], 4), label="two experts, four slots"),
        Case(([4, 8, 4, 2], 6), label="two copies of one, then all are alike: the first is next"),
        Case((list(EPLB[0]), 16), label="a layer of EPLB's example, sixteen slots"),
        Case((list(EPLB[1]), 16), label="its other layer"),
        Case(([5, 0, 7, 0], 6), label="experts that nobody chose"),
        Case(([0, 0, 0], 5), label="nobody chose any"),
        Case(([1, 100, 1, 1], 8), label="one expert gets nearly all"),
        Case(([3, 9, 5], 3), label="no slot to spare"),
        Case((skewed, 24), label="eleven experts, skewed, more copies than experts"),
        Case((skewed[::-1], 14), label="eleven experts, three to spare"),
        Case(([3, 9, 5], 2), label="fewer slots than experts: ValueError"),
    ]


# -------------------------------------------------------------------------------------------------------------- pack


def pack_cases(seed: int) -> list[Case]:
    draw = random.Random(seed + 40)
    skewed = [int(1000 * draw.random() ** 3) + 1 for _ in range(24)]
    return [
        Case(([1, 9, 8, 2], 2), label="four slots on two ranks"),
        Case(([10, 1, 1, 1, 1, 2], 2), label="one slot outweighs all others, and its rank must be filled up"),
        Case(([3, 3, 3, 3, 3, 3], 3), label="all alike"),
        Case(([7, 5, 5, 4, 3, 3, 2, 1], 4), label="eight slots on four ranks"),
        Case(([0, 6, 0, 0, 5, 0], 3), label="slots without load"),
        Case((skewed, 8), label="24 slots, skewed, on eight ranks"),
        Case((skewed[:12], 3), label="twelve slots on three ranks"),
        Case((skewed[:5], 5), label="one slot a rank"),
        Case((skewed[:6], 1), label="one rank"),
        Case(([4, 4, 1], 2), label="three slots on two ranks: ValueError"),
    ]


# --------------------------------------------------------------------------------------------------------- step_time


def step_cases(seed: int) -> list[Case]:
    draw = random.Random(seed + 80)

    def drawn(overlap: bool) -> tuple:
        sizes = draw.uniform(0.001, 0.02), draw.uniform(1e7, 9e8), draw.uniform(1e8, 4e9)
        return *sizes, 400.0, 160.0, draw.randint(2, 16), draw.randint(4, 64), overlap

    return [
        Case((0.010, 2e8, 4e8, 400.0, 160.0, 1, 1, False), label="one stage, one micro-batch, nothing hidden"),
        Case((0.010, 2e8, 4e8, 400.0, 160.0, 1, 1, True), label="the exchange is hidden behind the arithmetic"),
        Case((0.002, 2e8, 4e8, 400.0, 160.0, 1, 4, True), label="the network takes longest"),
        Case((0.002, 5e7, 8e8, 400.0, 160.0, 1, 4, True), label="NVLink takes longest"),
        Case((0.004, 0.0, 0.0, 400.0, 160.0, 4, 8, True), label="nothing to send: only the bubble"),
        Case((0.004, 1.2e8, 4e8, 200.0, 450.0, 8, 2, False), label="more stages than micro-batches"),
        Case((0.003, 1e8, 2e8, 400.0, 160.0, 16, 60, True), label="sixteen stages, sixty micro-batches"),
        *(Case(drawn(overlap), label="drawn") for overlap in (True, False, True, False)),
    ]
