"""Lab 14: mistakes as a learner makes them in passing an answer on."""

from __future__ import annotations

import json
from asyncio import CancelledError
from collections.abc import AsyncIterator
from typing import Any

from labkit.course.judge import Failure
from labkit.course.labs import _14_answers as right


def frame(data: Any) -> str:
    """One event of a stream."""
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"


FREES: dict[str, Any] = {
    "only_when_it_ends": (),
    "only_after_errors": Exception,
    "only_when_closed": GeneratorExit,
    "only_when_cancelled": CancelledError,
}
CAUGHT: dict[str, Any] = {"swallows_cancel": BaseException}


class Relay:
    """`relay` with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, engine: Any, prompt: str) -> AsyncIterator[str]:
        if self.wrong in ("collects_first", "full_is_an_event"):
            return getattr(self, f"_{self.wrong}")(engine, prompt)
        return self._by_hand(engine, prompt)

    async def _by_hand(self, engine: Any, prompt: str) -> AsyncIterator[str]:
        wrong, answer = self.wrong, engine.submit(prompt)
        try:
            async for piece in answer:
                yield self._framed(piece)
            if wrong != "no_done":
                yield frame("[DONE]")
        except BaseException as error:
            if isinstance(error, FREES.get(wrong, BaseException)):
                answer.cancel()
            if wrong == "swallows_cancel, quietly" and not isinstance(error, RuntimeError):
                return
            if wrong == "error_gets_out" or not isinstance(error, CAUGHT.get(wrong, RuntimeError)):
                raise
            if wrong != "error_hidden":
                yield frame(self._shown(str(error)))
            if wrong in ("done_after_an_error", "error_hidden"):
                yield frame("[DONE]")

    def _shown(self, message: str) -> dict[str, Any]:
        if self.wrong == "plain_message":
            return {"error": message}
        if self.wrong == "error_as_text":
            return {"text": message}
        if self.wrong == "error_not_wrapped":
            return {"message": message, "type": "server_error"}
        return {"error": {"message": message, "type": "server_error"}}

    def _framed(self, piece: str) -> str:
        if self.wrong == "no_json":
            return f"data: {piece}\n\n"
        if self.wrong == "one_newline":
            return f"data: {json.dumps({'text': piece})}\n"
        if self.wrong == "no_data":
            return f"{json.dumps({'text': piece})}\n\n"
        if self.wrong == "python_not_json":
            return f"data: { {'text': piece} }\n\n"
        return frame({"text": piece})

    async def _collects_first(self, engine: Any, prompt: str) -> AsyncIterator[str]:
        async for sent in _all_at_once(right.relay(engine, prompt)):
            yield sent

    async def _full_is_an_event(self, engine: Any, prompt: str) -> AsyncIterator[str]:
        try:
            async for sent in _closing(right.relay(engine, prompt)):
                yield sent
        except RuntimeError as error:
            yield frame({"error": {"message": str(error), "type": "server_error"}})


async def _all_at_once(stream: AsyncIterator[str]) -> AsyncIterator[str]:
    for sent in [sent async for sent in stream]:
        yield sent


async def _closing(stream: Any) -> AsyncIterator[str]:
    try:
        async for sent in stream:
            yield sent
    finally:
        await stream.aclose()


# ------------------------------------------------------------------------------------ what has no single implementation


def blocks_left(failure: Failure) -> bool:
    """Whether blocks are held after the end, and only that is wrong."""
    got, expected = failure.got, failure.expected
    return got["blocks held"] > 0 and {**got, "blocks held": 0} == expected


def goes_on(failure: Failure) -> bool:
    """Whether something was yielded after the generator was closed, which Python answers with a RuntimeError."""
    return failure.case.args[1] == "closed" and failure.got["ended"] == "RuntimeError"


def never_submitted(failure: Failure) -> bool:
    """Whether a name was used that a refused request never got."""
    return failure.outcome.error_type == "UnboundLocalError"
