"""Bytes of the corpus for one of several ranks: together they see the batch that one process would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from labkit.train.data import Corpus, sample


@dataclass(frozen=True, eq=False)
class Bytes:
    """A rank's sequences, see `train.feed.Source`.

    Args:
        ids_BS, labels_BS: [B, S] int64, the same; domains: of each sequence.
    """

    ids_BS: Tensor
    labels_BS: Tensor
    domains: tuple[str, ...]


class ByteSource:
    """Random windows of the corpus, drawn by number, so that a run can go on anywhere and on any number of ranks.

    Args:
        corpus: of `train.data`; seed: of the windows.
        rank, world: which rows of a batch are this rank's: it gets rank·B to (rank + 1)·B of world·B.

    Raises ValueError unless 0 ≤ rank < world.
    """

    def __init__(self, corpus: Corpus, seed: int = 0, *, rank: int = 0, world: int = 1) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank} of world {world}; give 0 ≤ rank < world")
        self.corpus, self.seed, self.rank, self.world = corpus, seed, rank, world
        self.taken = 0

    def next(self, batch: int, sequence: int) -> Bytes:
        """The next `batch` windows of `sequence` bytes of this rank."""
        number = self.seed * 10**9 + self.taken
        drawn = sample(self.corpus, num_sequences=batch * self.world, sequence_length=sequence, seed=number)
        self.taken += 1
        mine = slice(self.rank * batch, (self.rank + 1) * batch)
        return Bytes(drawn.ids_BS[mine], drawn.ids_BS[mine], drawn.domains[mine])

    def state(self) -> dict[str, Any]:
        """How many batches were taken; the same on every rank."""
        return {"taken": self.taken}

    def load(self, state: dict[str, Any]) -> None:
        """Go there."""
        self.taken = state["taken"]
