"""A model of whole numbers that reads everything it knows from a paged memory, so that any wrong block shows.

The entry at position p is a digest of the entry at p − 1 and the token; the next token depends on all entries. Whoever
reads a block that is stale, shared by mistake or copied too late gets other tokens than the same request alone.
"""

from __future__ import annotations

from labkit.serve.scheduler import Limits, Step

VOCAB = 4


def entry(before: int, token: int, position: int) -> int:
    """What is written at a position."""
    return hash((before, token, position))


def sampled(entries: list[int], seed: int) -> int:
    """The next token, if these are the entries of all positions."""
    return hash((tuple(entries), seed)) % VOCAB


def alone(prompt: tuple[int, ...], count: int, seed: int = 0) -> list[int]:
    """What follows a prompt when nobody else is there."""
    entries: list[int] = []
    tokens = list(prompt)
    for at in range(len(prompt) + count):
        if at >= len(prompt):
            tokens.append(sampled(entries, seed))
        entries.append(entry(entries[-1] if entries else 0, tokens[at], at))
    return tokens[len(prompt) :]


class Memory:
    """The tensors of a paged cache, and the model that runs over them."""

    def __init__(self, limits: Limits) -> None:
        self.size = limits.block_size
        self.rows: dict[tuple[int, int], int] = {}

    def run(self, step: Step) -> dict[str, list[int]]:
        """Compute a step; the entries of all positions, for each chunk that samples."""
        read = {(to, row): self.rows.get((block, row), -1) for block, to in step.copies for row in range(self.size)}
        assert len({to for _, to in step.copies}) == len(step.copies), "two copies go into one block"
        self.rows |= read
        written: set[tuple[int, int]] = set()
        for chunk in step.chunks:
            for position, token in enumerate(chunk.tokens, chunk.start):
                place = self.place(chunk.blocks, position)
                assert place not in written, "two sequences write into one row"
                written.add(place)
                before = self.rows[self.place(chunk.blocks, position - 1)] if position else 0
                self.rows[place] = entry(before, token, position)
        return {
            chunk.id: [self.rows[self.place(chunk.blocks, at)] for at in range(chunk.start + len(chunk.tokens))]
            for chunk in step.chunks
            if chunk.samples
        }

    def place(self, blocks: tuple[int, ...], position: int) -> tuple[int, int]:
        """Where the entry of a position lies."""
        return blocks[position // self.size], position % self.size

    def lose(self) -> None:
        """All that was written is gone."""
        self.rows = dict.fromkeys(self.rows, -1)
