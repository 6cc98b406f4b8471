"""Lab 07: mistakes in activation checkpointing, as a learner's function makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Block = Callable[..., Tensor]


def again_nothing(block: Block, *inputs: Tensor) -> Tensor:
    return block(*inputs)


def again_no_gradient(block: Block, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return block(*inputs)


def _function(block: Block, inputs: tuple[Tensor, ...], backward: Callable[..., Any]) -> Tensor:
    """A checkpointed call whose backward pass is `backward(block, inputs, gradient, random state)`."""

    class Recompute(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            ctx.random = torch.get_rng_state()
            ctx.save_for_backward(*inputs)
            return block(*inputs)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return backward(block, ctx.saved_tensors, grad, ctx.random)

    return Recompute.apply(*inputs)


def _copies(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [value.detach().requires_grad_(value.requires_grad) for value in inputs]


def _gradients(block: Block, copies: list[Tensor], grad: Tensor) -> tuple[Tensor | None, ...]:
    with torch.enable_grad():
        output = block(*copies)
    found = iter(torch.autograd.grad(output, [value for value in copies if value.requires_grad], grad))
    return tuple(next(found) if value.requires_grad else None for value in copies)


def again_other_numbers(block: Block, *inputs: Tensor) -> Tensor:
    return _function(block, inputs, lambda block, saved, grad, state: _gradients(block, _copies(saved), grad))


def again_other_numbers_forked(block: Block, *inputs: Tensor) -> Tensor:
    def backward(block: Block, saved: tuple[Tensor, ...], grad: Tensor, state: Tensor) -> Any:
        with torch.random.fork_rng(devices=[]):
            return _gradients(block, _copies(saved), grad)

    return _function(block, inputs, backward)


def again_generator_left(block: Block, *inputs: Tensor) -> Tensor:
    def backward(block: Block, saved: tuple[Tensor, ...], grad: Tensor, state: Tensor) -> Any:
        torch.set_rng_state(state)
        return _gradients(block, _copies(saved), grad)

    return _function(block, inputs, backward)


def again_upstream_ignored(block: Block, *inputs: Tensor) -> Tensor:
    def backward(block: Block, saved: tuple[Tensor, ...], grad: Tensor, state: Tensor) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            return _gradients(block, _copies(saved), torch.ones_like(grad))

    return _function(block, inputs, backward)


def again_captured(block: Block, *inputs: Tensor) -> Tensor:
    """The weights are reached through the closure, so autograd does not know that they take part."""

    def backward(block: Block, saved: tuple[Tensor, ...], grad: Tensor, state: Tensor) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            found = _gradients(block, _copies(saved), grad)
        return found[0], *(None for _ in found[1:])

    return _function(block, inputs, backward)


def again_no_graph(block: Block, *inputs: Tensor) -> Tensor:
    def backward(block: Block, saved: tuple[Tensor, ...], grad: Tensor, state: Tensor) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            copies = _copies(saved)
            output = block(*copies)
        found = iter(torch.autograd.grad(output, [value for value in copies if value.requires_grad], grad))
        return tuple(next(found) if value.requires_grad else None for value in copies)

    return _function(block, inputs, backward)


def again_integers_asked(block: Block, *inputs: Tensor) -> Tensor:
    def backward(block: Block, saved: tuple[Tensor, ...], grad: Tensor, state: Tensor) -> Any:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(state)
            copies = [value.detach().requires_grad_() for value in saved]
            output = block(*copies)
        return torch.autograd.grad(output, copies, grad)

    return _function(block, inputs, backward)


def again_not_detached(block: Block, *inputs: Tensor) -> Tensor:
    """`backward` on the saved tensors themselves goes on into the graph that they came from."""

    def backward(block: Block, saved: tuple[Tensor, ...], grad: Tensor, state: Tensor) -> Any:
        for value in saved:
            if value.requires_grad:
                value.retain_grad()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(state)
            output = block(*saved)
        output.backward(grad)
        return tuple(value.grad if value.requires_grad else None for value in saved)

    return _function(block, inputs, backward)


def again_once_for_each(block: Block, *inputs: Tensor) -> Tensor:
    def backward(block: Block, saved: tuple[Tensor, ...], grad: Tensor, state: Tensor) -> Any:
        found: list[Tensor | None] = []
        for number, value in enumerate(saved):
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                found.append(_gradients(block, _copies(saved), grad)[number] if value.requires_grad else None)
        return tuple(found)

    return _function(block, inputs, backward)


def again_graph_kept_and_again(block: Block, *inputs: Tensor) -> Tensor:
    """Computes a second time, and keeps the first graph all the same."""

    class Recompute(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            ctx.random = torch.get_rng_state()
            ctx.save_for_backward(*inputs)
            with torch.enable_grad():
                ctx.output = block(*_copies(inputs))
            return ctx.output.detach()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(ctx.random)
                return _gradients(block, _copies(ctx.saved_tensors), grad)

    return Recompute.apply(*inputs)


def again_state_too_late(block: Block, *inputs: Tensor) -> Tensor:
    """Keeps the random state that the forward pass left, not the one that it began with."""

    class Recompute(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            ctx.save_for_backward(*inputs)
            output = block(*inputs)
            ctx.random = torch.get_rng_state()
            return output

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(ctx.random)
                return _gradients(block, _copies(ctx.saved_tensors), grad)

    return Recompute.apply(*inputs)
