"""Stopping clean when a loss or a gradient is no finite number, and saying where it began.

Whether a step was finite is decided on the device: from the first that was not, every update is left out, so the
weights stay those of the last good step until the host looks. Then that step is computed once more, and watched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit.train.feed import Micro
from labkit.train.forward import Objective


class Diverged(RuntimeError):
    """A step gave a loss or a gradient that is no finite number.

    Attributes:
        step: the first such step, counted from 1; micro: which of its micro-batches, from 0, or None if only the sum
            of all gradients overflowed.
        domains: of the sequences whose loss was not finite; of the whole micro-batch if every loss was.
        where: what first was not finite: a parameter, a module's output, the loss, or a parameter's gradient.
        checkpoint: the newest one, which is untouched, or None.
    """

    def __init__(
        self, step: int, micro: int | None, domains: tuple[str, ...], where: str, checkpoint: Path | None
    ) -> None:
        self.step, self.micro, self.domains, self.where, self.checkpoint = step, micro, domains, where, checkpoint
        batch = "" if micro is None else f", micro-batch {micro} ({', '.join(domains)})"
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint to go back to"
        super().__init__(
            f"step {step}{batch}: {where} is not finite. No update was made from this step on; {kept}. "
            "Lower the learning rate, lengthen the warm-up or clip harder, and look at this batch"
        )


class Guard:
    """Notices on the device, without waiting, the first step that is not finite.

    Args:
        device: where losses are.

    >>> guard = Guard("cpu")
    >>> for step, loss in enumerate([1.0, float("nan"), 2.0], 1):
    ...     skip = guard.watch(step, torch.tensor(loss), torch.tensor(1.0))
    >>> guard.first_bad_step(), skip.item()
    (2, 1.0)
    """

    def __init__(self, device: torch.device | str) -> None:
        self._first = torch.zeros((), dtype=torch.int64, device=device)
        self._steps: dict[int, list[Micro]] = {}

    def keep(self, step: int, micros: list[Micro]) -> None:
        """Remember what a step reads, until the next look."""
        self._steps[step] = micros

    def watch(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        """1.0 on the device if the update must be left out, else 0.0: what an optimiser takes as `found_inf`."""
        bad = ~(loss.isfinite() & norm.isfinite()) & (self._first == 0)
        self._first = torch.where(bad, step, self._first)
        return (self._first > 0).to(torch.float32)

    def first_bad_step(self) -> int:
        """The first step that was not finite, 0 if all were. Waits for the device; forgets steps that were good."""
        first = int(self._first)
        if not first:
            self._steps.clear()
        return first

    def micros(self, step: int) -> list[Micro]:
        """What the step read."""
        return self._steps[step]


def locate(
    model: nn.Module, micros: list[Micro], run: Callable[[Micro], Objective]
) -> tuple[int | None, tuple[str, ...], str]:
    """Compute a step again and find the first thing that is not finite.

    Args:
        model: as it was before the step; its gradients are cleared.
        micros: what the step read; run: gives the objective of one.

    Returns the micro-batch, the domains and the place, as `Diverged` has them.
    """
    model.zero_grad(set_to_none=True)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not finite(value):
            return 0, micros[0].domains, f"parameter {name}"
    for number, micro in enumerate(micros):
        with watching(model) as seen:
            result = run(micro)
        bad_BS = ~result.loss_BS.isfinite()
        if seen or bad_BS.any():
            return number, _domains(micro, bad_BS), f"the output of {seen[0]}" if seen else "the loss"
        if not finite(result.total):
            return number, micro.domains, "a router's loss"
        result.total.backward()
        for name, parameter in reversed(list(model.named_parameters())):
            if parameter.grad is not None and not finite(parameter.grad):
                return number, micro.domains, f"the gradient of {name}"
    return None, (), "the norm of all gradients"


class watching:
    """Inside the block, the names of modules whose output is not finite gather in a list, the innermost first."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.seen = model, []

    def __enter__(self) -> list[str]:
        self._hooks = [
            module.register_forward_hook(self._look(name or type(module).__name__))
            for name, module in self.model.named_modules()
        ]
        return self.seen

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _look(self, name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not all(finite(tensor) for tensor in _tensors(output)):
                self.seen.append(name)

        return look


def finite(tensor: Tensor) -> bool:
    """Whether every element is a finite number."""
    return bool(tensor.detach().isfinite().all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif dataclasses.is_dataclass(value):
        yield from _tensors(list(vars(value).values()))


def _domains(micro: Micro, bad_BS: Tensor) -> tuple[str, ...]:
    places = micro.domain_BS.expand_as(bad_BS)[bad_BS].unique().tolist()
    return tuple(micro.domains[i] for i in places) or micro.domains
