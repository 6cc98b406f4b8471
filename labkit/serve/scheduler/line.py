"""Sequences in the order in which they are served."""

from __future__ import annotations

from bisect import bisect_left

from labkit.serve.scheduler.sequence import Sequence


class Line:
    """Sequences by `rank`, lowest first; no two have the same. `items` may be read, not changed."""

    def __init__(self) -> None:
        self.items: list[Sequence] = []
        self._ranks: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self.items)

    def add(self, sequence: Sequence) -> None:
        """Put it where it belongs."""
        at = bisect_left(self._ranks, sequence.rank)
        self._ranks.insert(at, sequence.rank)
        self.items.insert(at, sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take it out. Raises ValueError if it is not there."""
        at = bisect_left(self._ranks, sequence.rank)
        if at == len(self.items) or self.items[at] is not sequence:
            raise ValueError(f"sequence {sequence.id!r} is not in this line")
        del self._ranks[at], self.items[at]
