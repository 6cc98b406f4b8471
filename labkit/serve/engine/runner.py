"""Computes the chunks of a step: one flat pass through the model over the paged cache.

Shape suffixes: T tokens of all sequences, R rows whose logits are wanted, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from labkit.core.routing import Routing
from labkit.nn.model import Positions, Transformer
from labkit.nn.moe import MoE
from labkit.nn.rope import rope_tables
from labkit.serve.cache.paged import PagedCache
from labkit.serve.engine.batch import Batch, Packer
from labkit.serve.engine.sampler import best
from labkit.serve.scheduler.limits import Limits
from labkit.serve.scheduler.step import Chunk

Counts = tuple[tuple[int, ...], ...]


class Outcome(Protocol):
    """What came of some chunks.

    `best` holds the best token of each chunk that samples, in their order, −1 where the logits are not finite.
    """

    best: list[int]

    def logits(self, which: Sequence[int]) -> Tensor:
        """[R, V] of some of those chunks, by their place among those that sample; valid until the next `run`."""

    def rows(self, start: int, stop: int) -> Tensor:
        """[stop − start, V], the logits of these tokens of the flat batch."""


class Runner(Protocol):
    """What an engine asks of a model: a stub in tests, `TorchRunner` otherwise."""

    vocab_size: int

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks: read all, then write all."""

    def run(self, chunks: Sequence[Chunk]) -> Outcome:
        """Compute chunks and write their entries; it may raise, and is then asked for fewer."""

    def counts(self) -> Counts | None:
        """Tokens that each expert of each sparse layer got since the last call; None where it is not time to read."""


class Pass:
    """One forward pass: what it left on the device."""

    def __init__(self, model: Transformer, hidden_TD: Tensor, logits_RV: Tensor, best: list[int]) -> None:
        self.best = best
        self._model, self._hidden_TD, self._logits_RV = model, hidden_TD, logits_RV

    def logits(self, which: Sequence[int]) -> Tensor:
        """See `Outcome`."""
        if len(which) == len(self.best):
            return self._logits_RV[: len(which)]
        return self._logits_RV[torch.tensor(which, device=self._logits_RV.device)]

    @torch.no_grad()
    def rows(self, start: int, stop: int) -> Tensor:
        """See `Outcome`."""
        return self._model.head(self._hidden_TD[start:stop])


class TorchRunner:
    """A `Transformer` over a `PagedCache`.

    Args:
        model: in evaluation mode.
        limits: blocks and their size.

    `cache` may be looked at.
    """

    def __init__(self, model: Transformer, limits: Limits) -> None:
        self.model, self.limits, self.vocab_size = model, limits, model.config.vocab_size
        self.cache = PagedCache(
            model.config, limits.num_blocks, limits.block_size, dtype=model.dtype, device=model.device
        )
        self.packer = Packer(limits.block_size, limits.num_blocks, pinned=model.device.type == "cuda")
        self._tally = Tally(model, limits)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `Runner`."""
        if pairs:
            self.cache.copy(pairs)

    def run(self, chunks: Sequence[Chunk]) -> Pass:
        """See `Runner`."""
        return self._run(chunks)

    @torch.no_grad()
    def _run(self, chunks: Sequence[Chunk]) -> Pass:
        shape = self.packer.shape(chunks)
        raw = self.packer.pack(chunks, shape).to(self.model.device, non_blocking=True)
        batch = shape.batch(raw, *extent(chunks))
        hidden_TD, records = flat_pass(self.model, self.cache, batch)
        self._tally.add(records, batch)
        logits_RV = self.model.head(hidden_TD[batch.wanted_R])
        if not shape.R:
            self._wait()
        return Pass(self.model, hidden_TD, logits_RV, best(logits_RV).tolist() if shape.R else [])

    def _wait(self) -> None:
        """Where no token is read: until the bytes that were sent may be overwritten, and errors are known."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)

    def counts(self) -> Counts | None:
        """See `Runner`."""
        return self._tally.read()


def extent(chunks: Sequence[Chunk]) -> tuple[int, int, int]:
    """The longest chunk, the longest context, and how many of the first chunks have one token."""
    fresh = [len(chunk.tokens) for chunk in chunks]
    decodes = next((at for at, count in enumerate(fresh) if count > 1), len(fresh))
    return max(fresh), max([chunk.start + len(chunk.tokens) for chunk in chunks]), decodes


def flat_pass(model: Transformer, cache: PagedCache, batch: Batch) -> tuple[Tensor, list[Routing]]:
    """All tokens of a step through all layers: what the head reads [T, D], and what the routers decided."""
    positions_1T, ids_1T = batch.layout.positions_T[None], batch.ids_T[None]
    cos, sin = rope_tables(model.config, positions_1T, model.norm.weight.dtype)
    positions = Positions(cos, sin, {False: None, True: None})
    x_1TD, records = model.embed(ids_1T), []
    with cache.using(batch.layout):
        for block in model.layers:
            x_1TD, routing = block(x_1TD, positions, cache, ids_1T)
            records += [] if routing is None else [routing]
    return model.norm(x_1TD)[0], records


class Tally:
    """Tokens of each expert of each sparse layer, summed up where the model is and read now and then.

    Args:
        model: whose routers are counted; limits: tell which rows of a batch are padding.
        every: passes between two readings, so that a GPU's host seldom waits; by default 1 on the CPU, 64 elsewhere.
    """

    def __init__(self, model: Transformer, limits: Limits, every: int | None = None) -> None:
        layers = [block.ffn for block in model.layers if isinstance(block.ffn, MoE)]
        self._every = every or (1 if model.device.type == "cpu" else 64)
        self._padding = limits.num_blocks * limits.block_size  # the first row of the spare block
        self._passes = 0
        width = layers[0].config.num_experts if layers else 0
        self._sum_LE = torch.zeros(len(layers), width, dtype=torch.int64, device=model.device)

    def add(self, records: Sequence[Routing], batch: Batch) -> None:
        """Count one pass, padding left out; nothing is read."""
        self._passes += 1
        if records:
            ids_LTK = torch.stack([record.topk_ids_TK for record in records])
            real_T = (batch.layout.rows_T < self._padding).long()
            L, T, K = ids_LTK.shape
            real_LTK = real_T[:, None].expand(T, K).reshape(1, T * K).expand(L, -1)
            self._sum_LE.scatter_add_(1, ids_LTK.view(L, T * K), real_LTK)

    def passed(self) -> None:
        """One more pass was counted, by a graph."""
        self._passes += 1

    def forget(self) -> None:
        """What was counted was only for practice."""
        self._passes = 0
        self._sum_LE.zero_()

    def read(self) -> Counts | None:
        """Since the last reading; None before the next is due."""
        if self._passes < self._every or not len(self._sum_LE):
            return None
        counts = tuple(map(tuple, self._sum_LE.tolist()))
        self.forget()
        return counts
