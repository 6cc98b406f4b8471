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
from labkit.serve.engine.sampler import Choice, best, choose, sent
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

    def counts(self, now: bool = False) -> Counts | None:
        """Tokens that each expert of each sparse layer got since the last call.

        None where it is not time to read, unless they are wanted `now`, as when nothing is left to do.
        """


class Sent(Protocol):
    """A pass on its way."""

    def tokens(self) -> list[int]:
        """The token of each chunk that samples, −1 where the logits are not finite; waits until they are there."""


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


class Landing:
    """A place on the host where the tokens of one pass arrive.

    Args:
        last_R: where they are on the device.
    """

    def __init__(self, last_R: Tensor) -> None:
        self._last_R, self._count = last_R, 0
        cuda = last_R.device.type == "cuda"
        self._host_R = torch.empty(len(last_R), dtype=torch.int64, pin_memory=cuda)
        self._there = torch.cuda.Event() if cuda else None

    def take(self, count: int) -> Landing:
        """Let the first tokens come over."""
        self._count = count
        self._host_R[:count].copy_(self._last_R[:count], non_blocking=True)
        if self._there is not None:
            self._there.record()
        return self

    def tokens(self) -> list[int]:
        """See `Sent`."""
        if self._there is not None:
            self._there.synchronize()
        return self._host_R[: self._count].tolist()


class TorchRunner:
    """A `Transformer` over a `PagedCache`.

    Args:
        model: in evaluation mode.
        limits: blocks and their size.

    `cache` may be looked at. `ahead` says that it pays to `send` passes before the tokens of the last are known.
    """

    def __init__(self, model: Transformer, limits: Limits) -> None:
        self.model, self.limits, self.vocab_size = model, limits, model.config.vocab_size
        self.cache = PagedCache(
            model.config, limits.num_blocks, limits.block_size, dtype=model.dtype, device=model.device
        )
        self.packer = Packer(limits.block_size, limits.num_blocks, pinned=model.device.type == "cuda")
        self._tally = Tally(model, limits)
        self.ahead = model.device.type == "cuda"
        self._last_R = torch.zeros(limits.max_sequences, dtype=torch.int64, device=model.device)
        self._landings = [Landing(self._last_R) for _ in range(2)]

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `Runner`."""
        if pairs:
            self.cache.copy(pairs)

    def run(self, chunks: Sequence[Chunk]) -> Pass:
        """See `Runner`."""
        return self._run(chunks)

    @torch.no_grad()
    def send(self, chunks: Sequence[Chunk], sources: Sequence[int], choices: Sequence[tuple[int, Choice]]) -> Sent:
        """Compute chunks without waiting for their tokens.

        Args:
            sources: for each chunk, the row of the last pass that was sent whose token it begins with, or −1.
            choices: rows, among the chunks that sample, whose token is drawn, and how; the others take the best.
        """
        _, logits_RV, best_R = self._forward(chunks, sources)
        count = sum([chunk.samples for chunk in chunks])
        self._last_R[:count] = best_R[:count]
        if choices:
            rows = sent([row for row, _ in choices], torch.int64, self.model.device)
            self._last_R[rows] = choose(logits_RV[rows], [choice for _, choice in choices])
        self._landings.reverse()
        return self._landings[0].take(count)

    def _run(self, chunks: Sequence[Chunk]) -> Pass:
        hidden_TD, logits_RV, best_R = self._forward(chunks, None)
        count = sum([chunk.samples for chunk in chunks])
        if not count:
            self._wait()
        return Pass(self.model, hidden_TD, logits_RV, best_R[:count].tolist() if count else [])

    @torch.no_grad()
    def _forward(self, chunks: Sequence[Chunk], sources: Sequence[int] | None) -> tuple[Tensor, Tensor, Tensor]:
        """What the head read [T, D], logits [R, V] and best tokens [R]."""
        shape = self.packer.shape(chunks)
        raw = self.packer.pack(chunks, shape, sources).to(self.model.device, non_blocking=True)
        batch = shape.batch(raw, *extent(chunks))
        return self._pass(batch, batch.ids_T if sources is None else self._ids(batch))

    def _pass(self, batch: Batch, ids_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_TD, records = flat_pass(self.model, self.cache, batch, ids_T)
        self._tally.add(records, batch)
        logits_RV = self.model.head(hidden_TD[batch.wanted_R])
        return hidden_TD, logits_RV, best(logits_RV) if len(logits_RV) else batch.wanted_R

    def _ids(self, batch: Batch) -> Tensor:
        """Tokens, those of the last pass in their places."""
        made_T = self._last_R[batch.source_T.clamp_min(0)].clamp_min(0)  # no token becomes one: nobody reads the rest
        return torch.where(batch.source_T < 0, batch.ids_T, made_T)

    def _wait(self) -> None:
        """Where no token is read: until the bytes that were sent may be overwritten, and errors are known."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)

    def counts(self, now: bool = False) -> Counts | None:
        """See `Runner`."""
        return self._tally.read(now)


def extent(chunks: Sequence[Chunk]) -> tuple[int, int, int]:
    """The longest chunk, the longest context, and how many of the first chunks have one token."""
    fresh = [len(chunk.tokens) for chunk in chunks]
    decodes = next((at for at, count in enumerate(fresh) if count > 1), len(fresh))
    return max(fresh), max([chunk.start + len(chunk.tokens) for chunk in chunks]), decodes


def flat_pass(model: Transformer, cache: PagedCache, batch: Batch, ids_T: Tensor) -> tuple[Tensor, list[Routing]]:
    """All tokens of a step through all layers: what the head reads [T, D], and what the routers decided."""
    positions_1T, ids_1T = batch.layout.positions_T[None], ids_T[None]
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

    def read(self, now: bool = False) -> Counts | None:
        """Since the last reading; None if there is nothing new, or, unless it must be `now`, the next is not due."""
        if self._passes < (1 if now else self._every) or not len(self._sum_LE):
            return None
        counts = tuple(map(tuple, self._sum_LE.tolist()))
        self.forget()
        return counts
