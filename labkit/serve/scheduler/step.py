"""What the scheduler decided for one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Chunk(NamedTuple):
    """What one sequence does in a step.

    `tokens` are fed, the first at position `start`; their keys and values belong into `blocks`, position p into row
    p mod block_size of `blocks[p // block_size]`. They see all positions before them. `samples` says that the last
    position's logits give the next token.
    """

    id: str
    start: int
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    samples: bool


@dataclass(frozen=True)
class Step:
    """One pass through the model.

    `chunks` has sequences that decode first. `copies` are (from, to) pairs of blocks: read all, then write all, before
    anything is computed. `preempted` sequences lost their blocks and wait again. `cached` says, for sequences that
    start now for the first time, how many tokens of their prompt were found in the cache. `now` is the second at which
    it was decided.
    """

    number: int
    chunks: tuple[Chunk, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    preempted: tuple[str, ...] = ()
    cached: Mapping[str, int] = field(default_factory=dict)
    now: float = 0.0

    def __bool__(self) -> bool:
        """Whether there is something to compute."""
        return bool(self.chunks)

    @property
    def num_tokens(self) -> int:
        """Positions that are computed."""
        return sum(len(chunk.tokens) for chunk in self.chunks)


@dataclass(frozen=True)
class Load:
    """How busy a scheduler is: the numbers now, then those counted since it was made.

    `waiting_tokens` are prompts and longest answers of all that wait. `queried_tokens` are tokens that were looked up
    when a sequence started or started again, `cached_tokens` those of them that were found.
    """

    waiting: int
    waiting_tokens: int
    running: int
    blocks: int
    free_blocks: int
    kept_blocks: int
    steps: int
    computed_tokens: int
    queried_tokens: int
    cached_tokens: int
    preemptions: int
    evictions: int
    finished: int
    cancelled: int

    @property
    def kv_use(self) -> float:
        """Share of the blocks that running sequences hold."""
        return 1 - self.free_blocks / self.blocks
