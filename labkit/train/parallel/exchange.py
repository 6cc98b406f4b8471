"""Rows to other ranks and back: one all-to-all with a size of its own for every pair of ranks, through autograd.

An exchange starts at once and is waited for later, in the backward pass too: whatever is computed between `depart` and
`Flight.wait` runs beside the communication in both. The collectives are torch's functional ones, which gloo and NCCL
carry out alike. Left out on purpose: double backward, torch.compile.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor

from labkit.train.parallel.wire import Wire, answer_wire, decode, encode


class Flight:
    """Rows under way. Made by `depart`; `wait` gives what arrived."""

    def __init__(
        self, sent: list[int], received: list[int], group: dist.ProcessGroup | None, wire: Wire, back_wire: Wire
    ) -> None:
        self.sent, self.received, self.group = sent, received, group
        self.wire, self.back_wire = wire, back_wire
        self.out: Tensor | None = None
        self.back: Tensor | None = None
        self.ticket: Tensor | None = None

    def wait(self) -> Tensor:
        """[received rows, D] in the dtype of what was sent. Raises ValueError if they were waited for before."""
        if self.ticket is None:
            raise ValueError("these rows have arrived already; keep what the first wait gave")
        return _Arrive.apply(self.ticket, self)


def depart(
    x_ND: Tensor,
    sent: list[int],
    received: list[int],
    group: dist.ProcessGroup | None,
    wire: Wire = "same",
    back_wire: Wire | None = None,
) -> Flight:
    """Start an exchange.

    Args:
        x_ND: [N, D], the rows for rank 0 first, then those for rank 1, and so on.
        sent: rows to each rank of the group, N in sum; received: rows from each, which the others must know as sent.
        group: the ranks; None is this process alone.
        wire: the format on the way; back_wire: the gradient's on its way back, by default `answer_wire(wire)`.

    Raises ValueError unless the sizes fit.
    """
    ranks = dist.get_world_size(group) if group is not None else 1
    if len(sent) != ranks or len(received) != ranks or sum(sent) != len(x_ND):
        raise ValueError(
            f"an exchange of {len(x_ND)} rows among {ranks} ranks was given sent={sent} and received={received}; give "
            "one number for each rank, the first in sum the rows"
        )
    flight = Flight(sent, received, group, wire, back_wire or answer_wire(wire))
    flight.ticket = _Depart.apply(x_ND, flight)
    return flight


def swap_counts(sent_R: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """How many rows every rank will send to this one: [R] int64 to [R] int64.

    Each rank tells each other one number, so that both sides of `depart` know the sizes.
    """
    return _all_to_all(sent_R, [1] * len(sent_R), [1] * len(sent_R), group, now=True)


def _all_to_all(
    x: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup | None, *, now: bool = False
) -> Tensor:
    """The functional collective; unless `now`, its result must go through `_arrived` before it is read."""
    if group is None:
        return x.clone()
    pending = functional.all_to_all_single(x.contiguous(), received, sent, group)
    return _arrived(pending) if now else pending


def _arrived(pending: Tensor) -> Tensor:
    return pending.wait() if isinstance(pending, functional.AsyncCollectiveTensor) else pending


class _Depart(torch.autograd.Function):
    """Forward sends; the ticket it gives ties the arrival to it in the graph. Backward waits for the gradient."""

    @staticmethod
    def forward(context: Any, x_ND: Tensor, flight: Flight) -> Tensor:
        context.flight, context.width, context.dtype = flight, x_ND.shape[1], x_ND.dtype
        flight.width, flight.dtype = x_ND.shape[1], x_ND.dtype
        flight.out = _all_to_all(encode(x_ND, flight.wire), flight.received, flight.sent, flight.group)
        return x_ND.new_zeros(())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, _: Tensor) -> tuple[Tensor, None]:
        flight = context.flight
        back, flight.back = _arrived(flight.back), None
        return decode(back, flight.back_wire, context.width, context.dtype), None


class _Arrive(torch.autograd.Function):
    """Forward waits for the rows; backward sends their gradient."""

    @staticmethod
    def forward(context: Any, ticket: Tensor, flight: Flight) -> Tensor:
        context.flight = flight
        out, flight.out, flight.ticket = _arrived(flight.out), None, None
        return decode(out, flight.wire, flight.width, flight.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, grad_ND: Tensor) -> tuple[Tensor, None]:
        flight = context.flight
        rows = encode(grad_ND, flight.back_wire)
        flight.back = _all_to_all(rows, flight.sent, flight.received, flight.group)
        return grad_ND.new_zeros(()), None
