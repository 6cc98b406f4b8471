"""Batches on their way to the device: the next step's are fetched while this step's still compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from labkit.train.crossentropy import IGNORED, shifted
from labkit.train.settings import TrainConfig


class Source(Protocol):
    """Where batches come from: `next` gives one, `state` and `load` tell and set the position, in JSON-able values."""

    def next(self, batch: int, sequence: int) -> Any:
        """A batch with `ids_BS`, `labels_BS` (not shifted, −100 where nothing is learned) and `domains`."""

    def state(self) -> dict[str, Any]:
        """Where the source stands."""

    def load(self, state: dict[str, Any]) -> None:
        """Go there: the next batches are those that followed."""


@dataclass(frozen=True, eq=False)
class Micro:
    """One batch as a forward pass needs it, on the device.

    Args:
        ids_BS: [B, S] int64; labels_BS: the same shape, not shifted.
        target_BS: what each position should predict, −100 where nothing.
        domain_BS: [B, S] or [B, 1] int64, an index into `domains` for each position's target; domains: their names.
        count: real targets; a number of the host, so that nobody waits for the device.
        teacher: what a teacher said of every position, if the batch brought it (`distill.SparseLogits`).
    """

    ids_BS: Tensor
    labels_BS: Tensor
    target_BS: Tensor
    domain_BS: Tensor
    domains: tuple[str, ...]
    count: int
    teacher: Any = None

    @classmethod
    def of(cls, batch: Any, device: torch.device | str = "cpu", names: tuple[str, ...] = ()) -> Micro:
        """A source's batch, moved without waiting.

        Args:
            batch: `ids_BS`, `labels_BS`, and either `domains`, a name for each sequence, or `domain_BS`, numbers;
                `teacher`, if there is one, is moved by its own `to`.
            device: where to; names: of the numbers in `domain_BS`.

        Raises ValueError for shapes that do not fit.
        """
        ids_BS, labels_BS = batch.ids_BS, batch.labels_BS
        if ids_BS.ndim != 2 or ids_BS.shape != labels_BS.shape:
            raise ValueError(
                f"a batch has ids {tuple(ids_BS.shape)} and labels {tuple(labels_BS.shape)}; give both as [B, S]"
            )
        domain_BS, names = _domains(batch, names)
        target_BS = shifted(labels_BS)
        count = int((target_BS != IGNORED).sum())
        move = _mover(device)
        teacher = getattr(batch, "teacher", None)
        teacher = None if teacher is None else teacher.to(device)
        return cls(move(ids_BS), move(labels_BS), move(target_BS), move(domain_BS), names, count, teacher)


def _domains(batch: Any, names: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    domain_BS = getattr(batch, "domain_BS", None)
    if domain_BS is None:
        labels = tuple(batch.domains)
        if len(labels) != batch.ids_BS.shape[0]:
            raise ValueError(f"a batch of {batch.ids_BS.shape[0]} sequences has {len(labels)} domains; give one each")
        names = tuple(dict.fromkeys(labels))
        return torch.tensor([[names.index(label)] for label in labels]), names
    if domain_BS.shape != batch.ids_BS.shape:
        raise ValueError(f"domain_BS is {tuple(domain_BS.shape)} for ids {tuple(batch.ids_BS.shape)}; give one each")
    names = tuple(names) or tuple(f"domain {i}" for i in range(int(domain_BS.max()) + 1))
    after_BS = domain_BS.roll(-1, dims=1)  # the last position has no target
    return after_BS, names


def _mover(device: torch.device | str) -> Any:
    device = torch.device(device)
    if device.type != "cuda":
        return lambda tensor: tensor.to(device)
    return lambda tensor: tensor.pin_memory().to(device, non_blocking=True)


class Feed:
    """A source, one step ahead.

    Args:
        source: where batches come from; config: says what a step takes; device: where batches go.

    `state` is the source's position after the last step taken, however far ahead it has read.
    """

    def __init__(self, source: Source, config: TrainConfig, device: torch.device) -> None:
        self.source, self.device = source, device
        self.shape, self.accumulate = (config.batch, config.sequence), config.accumulate
        self.state = source.state()
        self._ahead: tuple[list[Micro], dict[str, Any]] | None = None

    def take(self) -> list[Micro]:
        """The next step's micro-batches."""
        if self._ahead is None:
            self.prefetch()
        micros, self.state = self._ahead
        self._ahead = None
        return micros

    def prefetch(self) -> None:
        """Fetch the step after that and start its way to the device."""
        names = tuple(getattr(self.source, "domains", ()))
        micros = [Micro.of(self.source.next(*self.shape), self.device, names) for _ in range(self.accumulate)]
        self._ahead = (micros, self.source.state())

    def give_back(self) -> None:
        """Set the source to where training stopped."""
        if self._ahead is not None:
            self.source.load(self.state)
            self._ahead = None


def batches(validation: Any, batch: int, sequence: int, number: int = 8) -> Iterator[Any]:
    """Validation batches: a sequence of them as it is, or the first `number` of a source, which is then put back."""
    if not hasattr(validation, "next"):
        yield from validation
        return
    before = validation.state()
    try:
        for _ in range(number):
            yield validation.next(batch, sequence)
    finally:
        validation.load(before)
