"""Reports of steps without what the other side knows already.

A sequence of 4,096 tokens holds 256 blocks, and every step names them all: 200 kilobytes a step for 256 sequences, of
which all but a few were the same in the step before. So a chunk goes as what is new of its blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from labkit.serve.engine.delta import StepReport
from labkit.serve.scheduler.step import Chunk

Blocks = Mapping[str, tuple[int, ...]]


class Reports:
    """One side's memory: the blocks of each sequence of the last step. Each report is packed and unpacked in order.

    >>> from labkit.serve.scheduler import Step
    >>> report = StepReport(Step(1, (Chunk("a", 0, (5,), (2, 3), True),)), began=0.0, seconds=0.1, decode_tokens=1,
    ...     prefill_tokens=0)
    >>> here, there = Reports(), Reports()
    >>> [there.unpack(here.pack(report)) == report for _ in range(2)]
    [True, True]
    """

    def __init__(self) -> None:
        self._known: Blocks = {}

    def pack(self, report: StepReport) -> tuple[Any, ...]:
        """As it travels."""
        chunks = report.step.chunks
        packed = [_short(chunk, self._known.get(chunk.id, ())) for chunk in chunks]
        self._known = {chunk.id: chunk.blocks for chunk in chunks}
        return replace(report, step=replace(report.step, chunks=())), packed

    def unpack(self, packed: tuple[Any, ...]) -> StepReport:
        """As it was."""
        report, short = packed
        chunks = tuple([_whole(chunk, self._known) for chunk in short])
        self._known = {chunk.id: chunk.blocks for chunk in chunks}
        return replace(report, step=replace(report.step, chunks=chunks))


def _short(chunk: Chunk, before: tuple[int, ...]) -> tuple[Any, ...]:
    """With how many of its blocks are as before, and the others; the last block may have been copied."""
    id, start, tokens, blocks, samples = chunk
    kept = next((kept for kept in (len(before), len(before) - 1) if kept > 0 and blocks[:kept] == before[:kept]), 0)
    return id, start, tokens, kept, blocks[kept:], samples


def _whole(short: tuple[Any, ...], known: Blocks) -> Chunk:
    id, start, tokens, kept, new, samples = short
    return Chunk(id, start, tokens, known[id][:kept] + new if kept else new, samples)
