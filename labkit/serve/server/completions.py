"""`/v1/completions`: texts or tokens go on, with their own log probabilities if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from labkit.serve.engine import Delta, TokenLogprob
from labkit.serve.server.asked import CompletionAsked
from labkit.serve.server.errors import refused
from labkit.serve.server.logprobs import Ledger, joined
from labkit.serve.server.service import Service
from labkit.serve.server.text import Text

USUAL_TOKENS = 16  # OpenAI's


async def complete(service: Service, request: Request) -> Response:
    """Answer one request. Raises ApiError."""
    asked = await service.asked(CompletionAsked, request)
    n, echo = asked.n or 1, bool(asked.echo)
    service.need_choices(len(asked.prompt), n)
    if asked.max_tokens == 0 and not echo:
        raise refused("max_tokens is 0; ask for 1 or more, or set echo to get the prompt back", "max_tokens")
    prompts = await service.reader.completion(asked.prompt, service.info)
    params = [
        service.params(
            asked, len(ids), asked.max_tokens or (1 if asked.max_tokens == 0 else None), usual=USUAL_TOKENS,
            logprobs=asked.logprobs, prompt_logprobs=asked.logprobs if echo else None,
        )
        for ids in prompts
    ]  # fmt: skip
    texts = None
    if echo:
        texts = [each if isinstance(each, str) else service.text.decode(each) for each in asked.prompt]
    shape = CompletionShape(service.text, prompts, n, texts, asked.logprobs is not None, asked.max_tokens != 0)
    return await service.answer(request, asked, prompts, params, shape, "cmpl", counts=asked.max_tokens != 0)


class CompletionShape:
    """How completions look.

    Args:
        text: names tokens.
        prompts: their tokens; n: answers to each.
        echoed: the prompts' texts, with which the answers begin; None: they do not.
        logprobs: whether they are told.
        new: whether what the model makes is told, and not the prompt alone.
    """

    whole_object = piece_object = "text_completion"

    def __init__(
        self, text: Text, prompts: Sequence[Sequence[int]], n: int, echoed: Sequence[str] | None, logprobs: bool,
        new: bool = True,
    ) -> None:  # fmt: skip
        self._text, self._prompts, self._n, self._echoed = text, prompts, n, echoed
        self._logprobs, self._new = logprobs, new
        self._ledgers: dict[int, Ledger] = {}
        self._of_prompts: dict[int, Sequence[TokenLogprob | None]] = {}
        self._begun: set[int] = set()

    def piece(self, number: int, delta: Delta) -> dict[str, Any]:
        """A piece of an answer; the first has the prompt in front, if that is wanted."""
        text, finish = (delta.text, delta.finish_reason) if self._new else ("", delta.finish_reason and "length")
        tokens: list[TokenLogprob | None] = list(delta.logprobs) if self._new else []
        ids = [token.token_id for token in tokens]
        prompt = number // self._n
        if delta.prompt_logprobs is not None:
            self._of_prompts[prompt] = delta.prompt_logprobs
        if self._echoed is not None and number not in self._begun:
            self._begun.add(number)
            text = self._echoed[prompt] + text
            if self._logprobs:
                tokens = [*self._of_prompts[prompt], *tokens]
                ids = [*self._prompts[prompt], *ids]
        logprobs = None
        if self._logprobs:
            logprobs = self._ledgers.setdefault(number, Ledger(self._text)).add(tokens, ids)
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def empty(self, choice: dict[str, Any]) -> bool:
        """Whether there is neither text nor a token to tell of."""
        return not choice["text"] and not (choice["logprobs"] and choice["logprobs"]["tokens"])

    def whole(self, pieces: list[dict[str, Any]]) -> dict[str, Any]:
        """The pieces as one."""
        return {
            **pieces[-1],
            "text": "".join(piece["text"] for piece in pieces),
            "logprobs": joined(piece["logprobs"] for piece in pieces) if self._logprobs else None,
        }
