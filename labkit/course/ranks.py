"""A few ranks in one process: each runs the same function, and `exchange` hands rows around as an all-to-all does.

There are neither threads nor processes: a rank's function runs until it waits in an exchange, and is run again from its
start, with what it received, when all others wait there too. So nothing hangs: a rank that returns while another waits
is told as an error, where a real group would wait until its timeout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Exchange = Callable[[Tensor, Sequence[int], Sequence[int]], Tensor]


class _Waits(BaseException):
    """A rank has come to an exchange that not all have come to yet."""


@dataclass(frozen=True)
class _Sent:
    """What one rank gave to one exchange: its rows by receiver, and how many it expects of each."""

    parts: tuple[Tensor, ...]
    expects: tuple[int, ...]


def together(body: Callable[[int, Exchange], Any], num_ranks: int) -> list[Any]:
    """What `body(rank, exchange)` returns on each rank of a group.

    Args:
        body: the same on all ranks, and without effects besides its result, since it is run more than once. Its
            `exchange(rows, send, receive)` gives rank d the next send[d] of the rows, and returns those that came:
            receive[s] from rank s, in order of s. Gradients flow through it.
        num_ranks: how many.

    Raises RuntimeError if ranks do not agree how many rows go from one to another, or if one returns while another
    waits; ValueError for splits that do not fit the rows; and whatever `body` raises.

    >>> together(lambda rank, exchange: exchange(torch.tensor([rank, rank]), [1, 1], [1, 1]).tolist(), 2)
    [[0, 1], [0, 1]]
    """
    rounds: list[list[_Sent]] = []
    while True:
        waiting: dict[int, _Sent] = {}
        results = {}
        for rank in range(num_ranks):
            try:
                results[rank] = _run(body, rank, rounds, waiting)
            except _Waits:
                continue
        if not waiting:
            return [results[rank] for rank in range(num_ranks)]
        if results:
            raise RuntimeError(
                f"rank {min(results)} has returned, and rank {min(waiting)} waits for it in exchange "
                f"{len(rounds) + 1}; every rank must take part in every exchange, with nothing to send, too"
            )
        rounds.append([waiting[rank] for rank in range(num_ranks)])
        _need_agreement(rounds[-1], len(rounds))


def _run(body: Callable, rank: int, rounds: list[list[_Sent]], waiting: dict[int, _Sent]) -> Any:
    """The body of one rank, up to its end or to the first exchange that is not in `rounds`."""
    met = iter(rounds)

    def exchange(rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        now = next(met, None)
        if now is None:
            waiting[rank] = _sent(rows, send, receive)
            raise _Waits
        return torch.cat([one.parts[rank] for one in now])

    return body(rank, exchange)


def _sent(rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> _Sent:
    send, receive = (tuple(int(count) for count in counts) for counts in (send, receive))
    if sum(send) != len(rows):
        raise ValueError(f"{len(rows)} rows were given, and the counts to send are {list(send)}; they sum up to others")
    return _Sent(rows.split(list(send)), receive)


def _need_agreement(now: Sequence[_Sent], number: int) -> None:
    for s, source in enumerate(now):
        for d, target in enumerate(now):
            if len(source.parts) != len(now) or len(target.expects) != len(now):
                raise RuntimeError(f"exchange {number}: counts are needed for each of {len(now)} ranks")
            if len(source.parts[d]) != target.expects[s]:
                raise RuntimeError(
                    f"exchange {number}: rank {s} sends {len(source.parts[d])} rows to rank {d}, which expects "
                    f"{target.expects[s]}"
                )


def dispatched(
    answer: Callable[..., Tensor], x_RTD: Sequence[Tensor], ids_RTK: Sequence[Tensor], scores_RTK: Sequence[Tensor],
    owner_E: Tensor, scale_ED: Tensor,
) -> dict[str, list[Tensor]]:  # fmt: skip
    """What an answer to 16.dispatch computes on a group, and the gradients of it.

    Args:
        answer: called on each rank as answer(x_TD, ids_TK, scores_TK, owner_E, num_ranks, exchange, experts).
        x_RTD, ids_RTK, scores_RTK: of each rank its tokens, their experts and scores; ranks may have none.
        owner_E: the rank of each expert; scale_ED: expert e computes tanh(row) · scale_ED[e], and a rank that is asked
            for an expert of another one computes something else.

    Returns the outputs y of all ranks, and the gradients of a weighted sum of them in x and in the scores.
    """
    x_RTD = [x_TD.clone().requires_grad_() for x_TD in x_RTD]
    scores_RTK = [scores_TK.clone().requires_grad_() for scores_TK in scores_RTK]

    def body(rank: int, exchange: Exchange) -> Tensor:
        def experts(rows_ND: Tensor, ids_N: Tensor) -> Tensor:
            if len(rows_ND) != len(ids_N):
                raise ValueError(f"{len(rows_ND)} rows and {len(ids_N)} experts; each row has one")
            lives_here_N1 = (owner_E[ids_N] == rank)[:, None]
            return rows_ND.tanh() * scale_ED[ids_N].where(lives_here_N1, -scale_ED[ids_N])

        return answer(x_RTD[rank], ids_RTK[rank], scores_RTK[rank], owner_E, len(x_RTD), exchange, experts)

    y_RTD = together(body, len(x_RTD))
    if not all(isinstance(y_TD, Tensor) for y_TD in y_RTD):
        return y_RTD[0]
    leaves = [*x_RTD, *scores_RTK]
    total = sum((y_TD * torch.linspace(-1, 2, y_TD.numel()).view_as(y_TD)).sum() for y_TD in y_RTD)
    found = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else [None] * len(leaves)
    slopes = [torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(leaves, found, strict=True)]
    return {"y": list(y_RTD), "slopes of x": slopes[: len(x_RTD)], "slopes of scores": slopes[len(x_RTD) :]}
