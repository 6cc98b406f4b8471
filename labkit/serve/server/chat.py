"""`/v1/chat/completions`: a conversation goes on."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from labkit.serve.engine import Delta
from labkit.serve.server.asked import ChatAsked
from labkit.serve.server.errors import refused
from labkit.serve.server.logprobs import chat_tokens
from labkit.serve.server.service import Service
from labkit.serve.server.text import Text


async def chat(service: Service, request: Request) -> Response:
    """Answer one request. Raises ApiError."""
    asked = await service.asked(ChatAsked, request)
    service.need_choices(1, asked.n or 1)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise refused("top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
    prompt = await service.reader.chat(asked.messages, service.info)
    most, param = _most(asked)
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    params = service.params(asked, len(prompt), most, param, logprobs=logprobs)
    shape = ChatShape(service.text, logprobs is not None)
    return await service.answer(request, asked, [prompt], [params], shape, "chatcmpl")


def _most(asked: ChatAsked) -> tuple[int | None, str]:
    """How long the answer may be, and which field says so."""
    old, new = asked.max_tokens, asked.max_completion_tokens
    if None not in (old, new) and old != new:
        words = f"max_tokens is {old} and max_completion_tokens {new}; give the second alone"
        raise refused(words, "max_completion_tokens", "invalid_value")
    return (old, "max_tokens") if new is None else (new, "max_completion_tokens")


class ChatShape:
    """How answers of chats look.

    Args:
        text: names tokens.
        logprobs: whether they are told.
    """

    whole_object, piece_object = "chat.completion", "chat.completion.chunk"

    def __init__(self, text: Text, logprobs: bool) -> None:
        self._text, self._logprobs = text, logprobs
        self._begun: set[int] = set()

    def piece(self, number: int, delta: Delta) -> dict[str, Any]:
        """A piece of an answer; the first says whose it is."""
        said: dict[str, str] = {"content": delta.text} if delta.text else {}
        if number not in self._begun:
            self._begun.add(number)
            said = {"role": "assistant", "content": delta.text}
        logprobs = {"content": chat_tokens(self._text, delta.logprobs)} if self._logprobs else None
        return {"index": number, "delta": said, "logprobs": logprobs, "finish_reason": delta.finish_reason}

    def empty(self, choice: dict[str, Any]) -> bool:
        """Whether nothing is said, and there is no token to tell of."""
        return not choice["delta"] and not (choice["logprobs"] and choice["logprobs"]["content"])

    def whole(self, pieces: list[dict[str, Any]]) -> dict[str, Any]:
        """The pieces as one message."""
        content = "".join(piece["delta"].get("content", "") for piece in pieces)
        logprobs = None
        if self._logprobs:
            logprobs = {"content": [token for piece in pieces for token in piece["logprobs"]["content"]]}
        return {
            "index": pieces[-1]["index"],
            "message": {"role": "assistant", "content": content},
            "logprobs": logprobs,
            "finish_reason": pieces[-1]["finish_reason"],
        }
