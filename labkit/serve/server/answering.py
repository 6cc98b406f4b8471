"""From the pieces of answers to what goes out: one JSON object, or events while they come."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from labkit.serve.engine import Delta
from labkit.serve.server.errors import ApiError, refused, unavailable
from labkit.serve.server.run import Run
from labkit.serve.server.stream import event


class Shape(Protocol):
    """How the answers of one endpoint look."""

    whole_object: str
    piece_object: str

    def piece(self, number: int, delta: Delta) -> dict[str, Any]:
        """A piece of answer `number`, as a choice of a stream."""

    def empty(self, choice: dict[str, Any]) -> bool:
        """Whether a piece says nothing, so that no event is needed."""

    def whole(self, pieces: list[dict[str, Any]]) -> dict[str, Any]:
        """All pieces of an answer as one choice."""


@dataclass
class Tally:
    """The tokens of one request: of its prompts, those found in the cache, and of its answers.

    Args:
        prompts: tokens of each.
        n: answers to each.
        counts: whether what the model makes is part of the answer (not if only the prompt was asked for).
    """

    prompts: tuple[int, ...]
    n: int = 1
    counts: bool = True
    new: int = 0
    cached: dict[int, int] = field(default_factory=dict)

    def saw(self, number: int, delta: Delta) -> None:
        """Count a piece."""
        self.new += len(delta.token_ids) * self.counts
        if delta.cached_tokens:
            self.cached[number // self.n] = delta.cached_tokens

    def usage(self) -> dict[str, Any]:
        """In OpenAI's words."""
        prompt = sum(self.prompts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.new,
            "total_tokens": prompt + self.new,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values())},
        }


@dataclass(frozen=True)
class Answer:
    """What is needed to write one request's answer.

    Args:
        id, model: as they are told.
        run: where the pieces come from.
        shape: how they look.
        tally: counts tokens.
        retry_seconds: told if the server ends meanwhile.
    """

    id: str
    model: str
    run: Run
    shape: Shape
    tally: Tally
    retry_seconds: int = 1
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self) -> dict[str, Any]:
        """The answer as one object. Raises ApiError if it fails midway; what still runs is cancelled then."""
        answers = len(self.run.streams) * self.run.n
        pieces: list[list[dict[str, Any]]] = [[] for _ in range(answers)]
        try:
            while news := await self.run.read():
                for number, delta in news:
                    pieces[number].append(self._piece(number, delta))
        finally:
            self.run.cancel()
        choices = [self.shape.whole(each) for each in pieces]
        return {**self._head(self.shape.whole_object), "choices": choices, "usage": self.tally.usage()}

    async def events(self, usage: bool, always: bool) -> AsyncIterator[bytes]:
        """The answer as events; those that are there at once come as one piece of bytes.

        Args:
            usage: whether a last event counts the tokens.
            always: whether every event counts those so far.
        """
        head = self._head(self.shape.piece_object)
        while news := await self.run.read():
            out = []
            for number, delta in news:
                choice = self._piece(number, delta)
                if delta.finish_reason is None and self.shape.empty(choice):
                    continue
                counted = {"usage": self.tally.usage() if always else None} if usage or always else {}
                out.append(event({**head, "choices": [choice], **counted}))
            if out:
                yield b"".join(out)
        if usage:
            yield event({**head, "choices": [], "usage": self.tally.usage()})

    def _piece(self, number: int, delta: Delta) -> dict[str, Any]:
        if delta.finish_reason == "error":
            if "json_schema" in (delta.error or "") or "grammar" in (delta.error or ""):
                raise refused(delta.error, "response_format", "invalid_schema")
            raise ApiError(500, delta.error or "the engine failed on this request", code="generation_failed")
        if delta.finish_reason == "cancelled":
            if self.run.overrun:
                raise ApiError(408, "you read too slowly: the answer was cut off", code="slow_reader")
            words = delta.error or "the server is ending and cut this answer off"
            raise unavailable(words, "cancelled", self.retry_seconds)
        self.tally.saw(number, delta)
        return self.shape.piece(number, delta)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}
