"""Lab 04: what gives a mistake in the layer away, even where another mistake stands beside it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from labkit.course.judge import Failure
from labkit.course.labs import _04_mistakes as wrong


def part(number: int, like: Callable[..., tuple]) -> Callable[[Failure], bool]:
    """Whether one of the three results is what a mistaken function makes of it, whatever the others are."""

    def alike(failure: Failure) -> bool:
        got, wrong = failure.got[number], like(*failure.case.args)[number]
        return not _near(wrong, failure.expected[number]) and _near(got, wrong)

    return alike


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def naive_reshapes(failure: Failure) -> bool:
    """gate_up and down in memory order, the latter with or without the factor m."""
    plain = wrong.split_both_reshaped(*failure.case.args)
    found = part(1, wrong.split_both_reshaped)(failure)
    return found and any(_near(failure.got[2], plain[2] / divisor) for divisor in (1, failure.case.args[3]))


def only_unscaled(failure: Failure) -> bool:
    """Router and gate_up are right, `down` lacks its factor."""
    right = all(_near(failure.got[part], failure.expected[part]) for part in (0, 1))
    return right and _near(failure.got[2] * failure.case.args[3], failure.expected[2])


def router_times_m(failure: Failure) -> bool:
    """The factor went into the router's rows."""
    return failure.case.args[3] > 1 and _near(failure.got[0], failure.case.args[3] * failure.expected[0])


def gate_times_m(failure: Failure) -> bool:
    """The factor went into the gate, whatever became of up."""
    gate, wanted = failure.got[1].chunk(2, dim=1)[0], failure.expected[1].chunk(2, dim=1)[0]
    return failure.case.args[3] > 1 and _near(gate, failure.case.args[3] * wanted)


def router_alone_tiled(failure: Failure) -> bool:
    """The parts come expert by expert, the router's rows do not."""
    return _near(failure.got[1], failure.expected[1]) and part(0, wrong.split_router_tiled)(failure)


def multiple_of_shared(failure: Failure) -> bool:
    """Whether each token's shared output is there, times some number."""
    routed, wanted = wrong.shared_forgotten(*failure.case.args), wrong.shared_routed_forgotten(*failure.case.args)
    got = failure.got - routed
    by = (got * wanted).sum(1, keepdim=True) / wanted.square().sum(1, keepdim=True)
    there = wanted.shape[1] > 1 and bool(by.abs().min() > 1e-3)
    return there and _near(got, by * wanted) and not _near(failure.got, failure.expected)


def other_order(failure: Failure) -> bool:
    """The right experts with their own scores, in another order."""
    (ids, scores), (wanted, _) = failure.got, failure.expected
    own = torch.equal(scores, failure.case.args[0].gather(1, ids))
    return own and torch.equal(ids.sort(1).values, wanted.sort(1).values) and not torch.equal(ids, wanted)
