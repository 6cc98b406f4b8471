"""Lab 07: right answers, as `reveal` shows them, and the inputs they are compared on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.attempt import Case
from labkit.course.watch import Block, accumulated, one_depth, recomputed

Micro = tuple[Tensor, Tensor]


def _normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def _ids(seed: int, V: int, *shape: int) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------- schedule


def schedule(step: int, steps: int, warmup: int, decay: int, final: float = 0.0) -> float:
    if warmup + decay > steps:
        raise ValueError(f"{warmup} steps of warm-up and {decay} of decay do not fit into {steps} steps")
    if step <= warmup:
        return step / warmup
    start = steps - decay
    if step <= start:
        return 1.0
    return 1 - (1 - final) * (step - start) / decay


def schedule_cases(seed: int) -> list[Case]:
    draw = torch.Generator().manual_seed(seed)
    warmup, stable, decay = (int(torch.randint(3, 12, (1,), generator=draw)) for _ in range(3))
    steps = warmup + stable + decay
    final = round(0.02 + 0.3 * torch.rand((), generator=draw).item(), 3)
    places = {
        "the first step": 1,
        "in the warm-up": warmup - 1,
        "the last step of the warm-up": warmup,
        "stable": warmup + 1,
        "the last stable step": steps - decay,
        "the first step of the decay": steps - decay + 1,
        "in the decay": steps - decay // 2,
        "the last step": steps,
    }
    plain = [
        Case((1, 10, 4, 4), label="ten steps: the first"),
        Case((8, 10, 4, 4), label="ten steps: half-way down"),
        Case((10, 10, 4, 4), label="ten steps: the last, down to zero"),
    ]
    drawn = [Case((step, steps, warmup, decay, final), label=label) for label, step in places.items()]
    edges = [
        Case((1, 6, 0, 3, 0.1), label="no warm-up"),
        Case((4, 6, 0, 3, 0.1), label="no warm-up: the first step of the decay"),
        Case((5, 7, 5, 2, 0.5), label="no stable stretch: the top"),
        Case((6, 7, 5, 2, 0.5), label="no stable stretch: on the way down"),
        Case((6, 6, 2, 0, 0.1), label="no decay: the last step"),
        Case((3, 9, 6, 4), label="more warm-up and decay than steps: ValueError"),
    ]
    return plain + drawn + edges


# -------------------------------------------------------------------------------------------------------- accumulate


def accumulate(model: Callable[[Tensor], Tensor], micro_batches: Sequence[Micro]) -> float:
    total = sum(int((target_BS != -100).sum()) for _, target_BS in micro_batches)
    if total == 0:
        raise ValueError("no target is real: every one is -100")
    mean = 0.0
    for ids_BS, target_BS in micro_batches:
        logits_BSV = model(ids_BS)
        loss = F.cross_entropy(logits_BSV.flatten(0, 1), target_BS.flatten(), reduction="sum") / total
        loss.backward()
        mean += loss.item()
    return mean


def accumulate_cases(seed: int) -> list[Case]:
    def case(at: int, V: int, D: int, lengths: list[list[int]], S: int, label: str) -> Case:
        """Micro-batches whose sequences have so many real targets out of S."""
        micros = []
        for number, real in enumerate(lengths):
            ids_BS = _ids(at + 10 + number, V, len(real), S)
            target_BS = _ids(at + 50 + number, V, len(real), S)
            place_BS = torch.arange(S).expand(len(real), S)
            micros.append((ids_BS, target_BS.masked_fill(place_BS >= torch.tensor(real)[:, None], -100)))
        tables = (_normal(at, V, D), _normal(at + 1, V, D))
        return Case((tables, micros), label=label, through=accumulated)

    return [
        case(seed, 3, 2, [[1], [3]], 3, "one target in the first micro-batch, three in the second"),
        case(seed + 100, 5, 3, [[4, 4], [4, 4]], 4, "nothing is padded"),
        case(seed + 200, 7, 4, [[5, 2, 1], [5, 5, 4], [1, 1, 2]], 5, "three micro-batches, unequal"),
        case(seed + 300, 7, 4, [[3, 6], [0, 0], [2, 1]], 6, "a micro-batch without a real target"),
        case(seed + 400, 4, 3, [[2, 1, 2]], 3, "a single micro-batch"),
        case(seed + 500, 6, 3, [[5], [5, 1, 1], [2, 2]], 5, "unequal numbers of sequences"),
        case(seed + 600, 4, 2, [[0], [0, 0]], 3, "no real target at all: ValueError"),
    ]


# --------------------------------------------------------------------------------------------------------- recompute


def recompute(block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    class Recompute(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            ctx.random = torch.get_rng_state()
            ctx.save_for_backward(*inputs)
            return block(*inputs)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            again = [value.detach().requires_grad_(value.requires_grad) for value in ctx.saved_tensors]
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                torch.set_rng_state(ctx.random)
                output = block(*again)
            wanted = [value for value in again if value.requires_grad]
            found = iter(torch.autograd.grad(output, wanted, grad))
            return tuple(next(found) if value.requires_grad else None for value in again)

    return Recompute.apply(*inputs)


def recompute_cases(seed: int) -> list[Case]:
    def weights(at: int, D: int, F: int, rows: int) -> tuple[Tensor, Tensor]:
        up, down = _normal(at, rows * F, D, scale=D**-0.5), _normal(at + 1, D, F, scale=F**-0.5)
        return up.requires_grad_(), down.requires_grad_()

    swiglu, dropout, lookup = Block("swiglu"), Block("dropout"), Block("lookup")
    x = [_normal(seed + i, *shape) for i, shape in enumerate([(1, 2), (5, 3), (2, 3, 4), (7, 3), (4, 5)])]
    table = _normal(seed + 9, 6, 3).requires_grad_()
    watch = {"through": recomputed}
    return [
        Case((swiglu, x[0].requires_grad_(), *weights(seed + 10, 2, 2, 2)), label="one token", **watch),
        Case((swiglu, x[1].requires_grad_(), *weights(seed + 20, 3, 5, 2)), label="five tokens", **watch),
        Case((dropout, x[2].requires_grad_(), *weights(seed + 30, 4, 6, 1)), label="random numbers inside", **watch),
        Case((swiglu, x[3], *weights(seed + 40, 3, 4, 2)), label="the input needs no gradient", **watch),
        Case((dropout, x[4].requires_grad_(), *weights(seed + 50, 5, 4, 1)), {"depth": 3}, "three in a row", **watch),
        Case((lookup, _ids(seed + 60, 6, 2, 4), table), label="the input is integers", **watch),
    ]


# ----------------------------------------------------------------------------------------------------- newton_schulz


def newton_schulz(matrices: Tensor, steps: int = 5) -> Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def newton_schulz_cases(seed: int) -> list[Case]:
    uneven = _normal(seed + 5, 4, 3, 5) * torch.tensor([1e-3, 1.0, 40.0, 1e4])[:, None, None]
    hollow = _normal(seed + 6, 3, 4, 4)
    hollow[1] = 0
    return [
        Case((torch.tensor([[3.0, 0.0], [0.0, 4.0]]), 1), label="a diagonal matrix, one step"),
        Case((_normal(seed, 3, 5),), label="wide"),
        Case((_normal(seed + 1, 7, 2),), label="tall"),
        Case((_normal(seed + 2, 4, 4), 7), label="square, seven steps"),
        Case((_normal(seed + 3, 3, 6, 4),), label="three experts"),
        Case((_normal(seed + 4, 2, 2, 3, 5),), label="two layers of two experts"),
        Case((uneven,), label="experts whose gradients have very different sizes"),
        Case((hollow,), label="an expert without any gradient"),
        Case((_normal(seed + 7, 1, 6),), label="a single row"),
    ]


# ---------------------------------------------------------------------------------------------------------- mtp_loss


def mtp_loss(mtp_logits: Sequence[Tensor], labels_BS: Tensor, weight: float) -> Tensor:
    count = (labels_BS[:, 1:] != -100).sum()
    total = mtp_logits[0].new_zeros(())
    for k, logits_BSV in enumerate(mtp_logits, start=1):
        target_BS = labels_BS[:, k + 1 :]
        logits_BSV = logits_BSV[:, : target_BS.shape[1]]
        total = total + F.cross_entropy(logits_BSV.flatten(0, 1), target_BS.flatten(), reduction="sum")
    return weight / len(mtp_logits) * total / count


def mtp_cases(seed: int) -> list[Case]:
    def case(at: int, B: int, S: int, V: int, depths: int, weight: float, real: list[int] | None, label: str) -> Case:
        logits = tuple(2 * _normal(at + k, B, S - k, V) for k in range(1, depths + 1))
        labels_BS = _ids(at, V, B, S)
        if real is not None:
            labels_BS = labels_BS.masked_fill(torch.arange(S) >= torch.tensor(real)[:, None], -100)
        return Case((logits, labels_BS, weight), label=label)

    gradient = case(seed + 60, 2, 5, 4, 1, 0.3, None, "")
    alone = Case(
        (gradient.args[0][0], *gradient.args[1:]), label="gradients flow back", needs_grad=True, through=one_depth
    )
    return [
        case(seed, 1, 4, 3, 1, 1.0, None, "one sequence, one depth, weight 1"),
        case(seed + 10, 2, 6, 5, 1, 0.3, None, "one depth"),
        case(seed + 20, 2, 7, 5, 3, 0.3, None, "three depths"),
        case(seed + 30, 3, 8, 6, 2, 0.1, [8, 5, 2], "padding at the end"),
        case(seed + 40, 3, 6, 4, 2, 0.5, [6, 1, 3], "a sequence of a single token"),
        case(seed + 50, 2, 5, 4, 4, 0.2, None, "as many depths as there is room for"),
        alone,
    ]
