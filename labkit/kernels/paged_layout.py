"""Where the tokens of one step stand: a flat batch of many sequences, and the blocks that hold what they attend.

Shape suffixes: T tokens of the step, N sequences, M blocks in the longest table, S tokens of one sequence.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from labkit.core.whole import need_whole


class Chunk(Protocol):
    """What one sequence does in a step, as the scheduler says it: `tokens` from position `start` on, and `blocks`."""

    start: int
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """One step's flat batch; the tensors are on the device of the cache.

    Args:
        positions_T: [T] int64, of each token in its sequence.
        rows_T: [T] int64, block · block_size + offset where its entry is written.
        starts_N: [N + 1] int32, sequence n's tokens are starts[n] to starts[n + 1] − 1.
        lengths_N: [N] int32, positions of sequence n with this step's tokens; 0: an empty place, which gives zeros.
        tables_NM: [N, M] int32, its blocks, padded with 0.
        longest: most tokens of one sequence in this step; 1: all decode.
        longest_context: no length is more.
        decodes: so many of the first sequences have one token each; those after them may have any number.

    Whole numbers are on the host, so that nobody waits for the device. A graph may change the tensors in place between
    steps, since the kernels read them anew; torch's implementation keeps what it derived from them. Raises ValueError
    for sizes that do not fit.
    """

    positions_T: Tensor
    rows_T: Tensor
    starts_N: Tensor
    lengths_N: Tensor
    tables_NM: Tensor
    longest: int
    longest_context: int
    decodes: int = 0

    def __post_init__(self) -> None:
        T, N = self.positions_T.shape[0], self.lengths_N.shape[0]
        found = [tuple(t.shape) for t in (self.positions_T, self.rows_T, self.starts_N, self.lengths_N)]
        if found != [(T,), (T,), (N + 1,), (N,)] or self.tables_NM.ndim != 2 or self.tables_NM.shape[0] != N:
            raise ValueError(
                f"positions, rows, starts, lengths and tables have shapes {found} and {tuple(self.tables_NM.shape)}; "
                "expected [T], [T], [N + 1], [N] and [N, M]"
            )
        need_whole("longest", self.longest)
        need_whole("longest_context", self.longest_context)
        need_whole("decodes", self.decodes, 0)
        if self.longest == 1:
            object.__setattr__(self, "decodes", N)

    @classmethod
    def of(cls, chunks: Sequence[Chunk], block_size: int, device: torch.device | str = "cpu") -> Layout:
        """The layout of a step's chunks, in their order; one transfer to the device, which nobody waits for.

        Args:
            chunks: of `serve.scheduler.Step`.
            block_size: positions of a block.
            device: of the tensors.

        Raises ValueError for no chunk, one without tokens, or one whose blocks are too few.

        >>> from types import SimpleNamespace as Chunk
        >>> decoding = Chunk(start=4, tokens=(7,), blocks=(3, 5, 2))
        >>> layout = Layout.of([decoding, Chunk(start=0, tokens=(8, 9), blocks=(0,))], block_size=2)
        >>> layout.positions_T.tolist(), layout.rows_T.tolist(), layout.lengths_N.tolist()
        ([4, 0, 1], [4, 0, 1], [5, 2])
        """
        need_whole("block_size", block_size)
        if not chunks:
            raise ValueError("there are no chunks; a step without any has nothing to compute")
        N = len(chunks)
        fresh_N, first_N, held_N = (
            np.fromiter(each, np.int64, N)
            for each in ((len(c.tokens) for c in chunks), (c.start for c in chunks), (len(c.blocks) for c in chunks))
        )
        lengths_N = first_N + fresh_N
        _check(chunks, fresh_N, lengths_N, held_N * block_size)
        T, M = int(fresh_N.sum()), int(held_N.max())
        whole = np.zeros(2 * T + (2 * N + 1 + N * M + 1) // 2, np.int64)  # int32 behind int64
        narrow = whole[2 * T :].view(np.int32)
        starts_N, tables_NM = narrow[: N + 1], narrow[2 * N + 1 : 2 * N + 1 + N * M].reshape(N, M)
        np.cumsum(fresh_N, out=starts_N[1:])
        narrow[N + 1 : 2 * N + 1] = lengths_N
        tables_NM[np.arange(M) < held_N[:, None]] = np.fromiter(
            itertools.chain.from_iterable(c.blocks for c in chunks), np.int32, int(held_N.sum())
        )
        sequence_T = np.repeat(np.arange(N), fresh_N)
        whole[:T] = np.arange(T) + (first_N - starts_N[:-1])[sequence_T]
        block_T, offset_T = np.divmod(whole[:T], block_size)
        whole[T : 2 * T] = tables_NM[sequence_T, block_T].astype(np.int64) * block_size + offset_T
        several = np.flatnonzero(fresh_N != 1)
        decodes = int(several[0]) if several.size else N
        tensors = _placed(whole, T, N, M, torch.device(device))
        return cls(*tensors, int(fresh_N.max()), int(lengths_N.max()), decodes)

    @functools.cached_property
    def derived(self) -> dict[Any, Any]:
        """What was worked out from the tensors once, for all layers of the step; see `kernels.paged_padded`."""
        return {}


def _check(chunks: Sequence[Chunk], fresh_N: np.ndarray, lengths_N: np.ndarray, room_N: np.ndarray) -> None:
    if not fresh_N.all():
        raise ValueError(f"chunk {int(fresh_N.argmin())} has no tokens; leave it out")
    if (lengths_N > room_N).any():
        at = int((lengths_N > room_N).argmax())
        raise ValueError(
            f"chunk {at} reaches position {lengths_N[at] - 1} and its {len(chunks[at].blocks)} blocks hold "
            f"{room_N[at]}; is block_size the scheduler's?"
        )


def _placed(whole: np.ndarray, T: int, N: int, M: int, device: torch.device) -> tuple[Tensor, ...]:
    """The five tensors, views of one that was sent."""
    sent = torch.from_numpy(whole)
    if device.type == "cuda":
        sent = sent.pin_memory().to(device, non_blocking=True)
    narrow = sent[2 * T :].view(torch.int32)
    positions_T, rows_T = sent[:T], sent[T : 2 * T]
    starts_N, lengths_N, tables = narrow[: N + 1], narrow[N + 1 : 2 * N + 1], narrow[2 * N + 1 :]
    return positions_T, rows_T, starts_N, lengths_N, tables[: N * M].view(N, M)
