"""A step while it is decided."""

from __future__ import annotations

from dataclasses import dataclass, field

from labkit.serve.scheduler.sequence import Sequence
from labkit.serve.scheduler.step import Chunk, Step


@dataclass(slots=True)
class Plan:
    """What a step does so far; `budget` tokens are left."""

    budget: int
    work: list[tuple[Sequence, Chunk]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)
    cached: dict[str, int] = field(default_factory=dict)

    def compute(self, sequence: Sequence) -> None:
        """As many of its tokens as the budget has left."""
        start, end = sequence.num_computed, len(sequence.tokens)
        stop = min(end, start + self.budget)
        tokens = tuple(sequence.tokens[start:stop])
        self.work.append((sequence, Chunk(sequence.id, start, tokens, sequence.blocks, stop == end)))
        self.budget -= stop - start

    def step(self, number: int, now: float) -> Step:
        """Nothing more is added."""
        chunks = tuple([chunk for _, chunk in self.work])
        return Step(number, chunks, tuple(self.copies), tuple(self.preempted), self.cached, now)
