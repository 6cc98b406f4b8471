"""A step's chunks as tensors: built on the host in one pass, brought to the device in one copy.

Shape suffixes: T tokens of all sequences, N sequences, M blocks of the longest table, R rows whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from labkit.serve.cache.paged import Layout
from labkit.serve.scheduler.step import Chunk


@dataclass(frozen=True, eq=False)
class Batch:
    """What a forward pass reads, int64, and the cache's layout.

    Args:
        ids_T: tokens; source_T: −1, or which row of the last pass made the token, where only the device knows it.
        wanted_R: rows whose logits are wanted: the last one of each chunk that samples.
    """

    ids_T: Tensor
    source_T: Tensor
    wanted_R: Tensor
    layout: Layout


@dataclass(frozen=True)
class Shape:
    """Sizes of a batch, and where its parts lie in one run of bytes: the int64 ones first, then the int32 ones."""

    T: int
    N: int
    M: int
    R: int

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return 8 * (4 * self.T + self.R) + 4 * (2 * self.N + 1 + self.N * self.M)

    def views(self, raw: Tensor) -> tuple[Tensor, ...]:
        """ids, sources, positions, rows [T], wanted [R]; starts [N + 1], lengths [N], tables [N, M]: the bytes' own."""
        T, N, M, R = self.T, self.N, self.M, self.R
        middle = 8 * (4 * T + R)
        wide, narrow = raw[:middle].view(torch.int64), raw[middle : self.nbytes].view(torch.int32)
        starts, lengths, tables = narrow.split([N + 1, N, N * M])
        return (*wide.split([T, T, T, T, R]), starts, lengths, tables.view(N, M))

    def batch(self, raw: Tensor, longest: int, longest_context: int, decodes: int) -> Batch:
        """The bytes, read as a batch; the whole numbers as in `Layout`."""
        ids, sources, positions, rows, wanted, starts, lengths, tables = self.views(raw)
        return Batch(
            ids, sources, wanted, Layout(positions, rows, starts, lengths, tables, longest, longest_context, decodes)
        )


class Packer:
    """Writes chunks into bytes.

    Args:
        block_size, num_blocks: of the cache; what pads a batch is written into the block after the last.
        pinned: page-locked memory, from which copies to a GPU need not wait.
    """

    def __init__(self, block_size: int, num_blocks: int, *, pinned: bool = False) -> None:
        self.block_size, self.spare, self.pinned = block_size, num_blocks, pinned
        self._raw = [torch.empty(0, dtype=torch.uint8)] * 2
        self._tables: dict[str, tuple[tuple[int, ...], np.ndarray]] = {}

    def shape(self, chunks: Sequence[Chunk]) -> Shape:
        """What these take."""
        return Shape(
            sum([len(chunk.tokens) for chunk in chunks]),
            len(chunks),
            max([len(chunk.blocks) for chunk in chunks]),
            sum([chunk.samples for chunk in chunks]),
        )

    def pack(self, chunks: Sequence[Chunk], shape: Shape, sources: Sequence[int] | None = None) -> Tensor:
        """Bytes on the host, in place until the call after the next.

        Args:
            shape: as `shape` gives it, or larger: the rest is padding, tokens of nobody that read nothing and are
                written into the spare block, sequences without tokens, and the first row wanted again.
            sources: for each chunk, the row of the last pass that made its first token, or −1; None: −1 for all.
        """
        raw = self._room(shape.nbytes)
        ids, source, positions, rows, wanted, starts, lengths, tables = (part.numpy() for part in shape.views(raw))
        n, count = len(chunks), np.array([len(chunk.tokens) for chunk in chunks], dtype=np.int32)
        self._fill_tables(chunks, tables)
        starts[0] = 0
        np.cumsum(count, out=starts[1 : n + 1])
        first = np.array([chunk.start for chunk in chunks], dtype=np.int64)
        np.add(first, count, out=lengths[:n], casting="unsafe")
        t = int(starts[n])
        source[:] = -1
        if sources is not None:
            source[starts[:n]] = sources
        if t == n:
            ids[:n] = [chunk.tokens[0] for chunk in chunks]
            positions[:n], owner = first, np.arange(n)
        else:
            ids[:t] = [token for chunk in chunks for token in chunk.tokens]
            owner = np.repeat(np.arange(n), count)
            positions[:t] = np.arange(t) + (first - starts[:n])[owner]
        blocks, inside = np.divmod(positions[:t], self.block_size)
        rows[:t] = tables[owner, blocks].astype(np.int64) * self.block_size + inside
        last = starts[1 : n + 1][[chunk.samples for chunk in chunks]] - 1
        wanted[: len(last)] = last
        ids[t:], positions[t:], rows[t:] = 0, 0, self.spare * self.block_size
        wanted[len(last) :], starts[n + 1 :], lengths[n:], tables[n:] = 0, t, 0, 0
        return raw[: shape.nbytes]

    def _fill_tables(self, chunks: Sequence[Chunk], tables: np.ndarray) -> None:
        known = self._tables
        if len(known) > 2 * len(chunks) + 64:  # forget those that have ended
            known = self._tables = {chunk.id: known[chunk.id] for chunk in chunks if chunk.id in known}
        tables[: len(chunks)] = 0
        for at, chunk in enumerate(chunks):
            blocks = chunk.blocks
            found = known.get(chunk.id)
            if found is None or found[0] is not blocks:
                known[chunk.id] = found = (blocks, np.array(blocks, dtype=np.int32))
            tables[at, : len(blocks)] = found[1]

    def _room(self, nbytes: int) -> Tensor:
        if not self.pinned:
            return torch.empty(nbytes, dtype=torch.uint8)
        self._raw.reverse()  # the other one may still be on its way to the device
        if len(self._raw[0]) < nbytes:
            self._raw[0] = torch.empty(2 * nbytes, dtype=torch.uint8, pin_memory=True)
        return self._raw[0]
