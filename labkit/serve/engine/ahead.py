"""One step ahead: the next step is scheduled and sent to the device before the tokens of the last are on the host.

A token that only the device knows stands in its sequence as a placeholder; the device feeds it itself, and it is put in
its place when it arrives. What follows from tokens comes a step late: a sequence that ended with its last token is
computed once more, for nothing, and what is computed is left out. Books stay right because blocks are named after
tokens that were fed, and those are known by then; freed blocks may be written once more by a step in flight, but
whatever is computed later is computed after it.

Not for requests whose next step depends on the token itself or needs more of the logits: grammars, log probabilities,
and prompts that several continuations share until they part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from labkit.serve.engine.delta import Delta
from labkit.serve.engine.request import Continuation
from labkit.serve.engine.sampler import NO_TOKEN, Choice
from labkit.serve.scheduler import Chunk, Step

if TYPE_CHECKING:
    from labkit.serve.engine.engine import Engine
    from labkit.serve.engine.runner import Sent

PLACEHOLDER = 0


@dataclass(frozen=True, eq=False)
class Flight:
    """A step on the device: who gets its tokens, in their order, each with the place of the token in its sequence."""

    step: Step
    began: float
    decode: int
    sent: Sent
    owners: tuple[tuple[Continuation, int], ...]


class Ahead:
    """Steps of an engine, each returned when the next one is under way."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._flight: Flight | None = None

    def owns(self, continuation: Continuation) -> bool:
        """Whether a token of it is on its way."""
        return self._flight is not None and any(owner is continuation for owner, _ in self._flight.owners)

    def step(self) -> list[Delta]:
        """Send the next step, then take what the last one gave."""
        engine, last = self._engine, self._flight
        began = engine.clock()
        step = engine.scheduler.schedule(began)
        if not step:
            return self.land()
        engine.note(step)
        sources = self._sources(step.chunks)
        owners = tuple(
            (engine.running[chunk.id], chunk.start + len(chunk.tokens)) for chunk in step.chunks if chunk.samples
        )
        decode = engine.reporter.decoding(step, engine.running)
        engine.runner.copy(step.copies)
        try:
            sent = engine.runner.send(step.chunks, sources, _choices(owners))
        except torch.AcceleratorError:  # the device is lost, for everybody
            raise
        except Exception:  # with all tokens on the host, find who is at fault
            news = self.land()
            return news + engine.compute(step, self._known(step.chunks, sources), began)
        self._flight = Flight(step, began, decode, sent, owners)
        news = self._take(last)
        self._advance(step)
        return news

    def land(self) -> list[Delta]:
        """Take what is still in the air, so that every token is known."""
        last, self._flight = self._flight, None
        return self._take(last)

    def _sources(self, chunks: Sequence[Chunk]) -> list[int]:
        """For each chunk the row of the last step that makes its token, or −1 where the host knows it."""
        if self._flight is None:
            return [-1] * len(chunks)
        running = self._engine.running
        rows = {
            owner.id: (row, at) for row, (owner, at) in enumerate(self._flight.owners) if running.get(owner.id) is owner
        }
        none = (-1, -1)
        found = [rows.get(chunk.id, none) for chunk in chunks]
        return [row if at == chunk.start else -1 for (row, at), chunk in zip(found, chunks, strict=True)]

    def _known(self, chunks: Sequence[Chunk], sources: Sequence[int]) -> list[Chunk]:
        """Chunks of those that are still there, with the tokens that have arrived meanwhile."""
        sequences = self._engine.scheduler.sequences
        return [
            chunk._replace(tokens=(sequences[chunk.id].tokens[chunk.start],)) if source >= 0 else chunk
            for chunk, source in zip(chunks, sources, strict=True)
            if chunk.id in sequences
        ]

    def _advance(self, step: Step) -> None:
        """The books go on as if the step were over; who has all its tokens then makes room at once."""
        scheduler = self._engine.scheduler
        sampled = [chunk.id for chunk in step.chunks if chunk.samples and chunk.id in scheduler.sequences]
        scheduler.update(step, dict.fromkeys(sampled, PLACEHOLDER))
        for id in sampled:
            sequence = scheduler.sequences[id]
            if len(sequence.tokens) - len(sequence.prompt) == sequence.max_tokens:
                scheduler.finish(id)

    def _take(self, flight: Flight | None) -> list[Delta]:
        if flight is None:
            return []
        engine, news, spoilt = self._engine, [], []
        sequences, running = engine.scheduler.sequences, engine.running
        for (continuation, at), token in zip(flight.owners, flight.sent.tokens(), strict=True):
            id = continuation.id
            if running.get(id) is not continuation:  # it ended, or its client left
                continue
            if token == NO_TOKEN:
                spoilt.append(continuation)
                continue
            if id in sequences:
                sequences[id].tokens[at] = token
            news += engine.tell(continuation, token)
        for continuation in spoilt:
            if running.get(continuation.id) is continuation:
                news += engine.fail(continuation.request, "the model's logits are not finite")
        engine.report(flight.step, flight.began, flight.decode)
        return news


def _choices(owners: Sequence[tuple[Continuation, int]]) -> list[tuple[int, Choice]]:
    """Rows whose token is drawn, and how."""
    return [
        (row, owner.choice(at - len(owner.request.prompt)))
        for row, (owner, at) in enumerate(owners)
        if not owner.request.params.greedy
    ]
