"""Prompts as tokens, within the limits: what cannot fit is refused before any work is spent on it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

from labkit.serve.engine import Info
from labkit.serve.server.asked import Message
from labkit.serve.server.errors import ApiError, refused
from labkit.serve.server.forms import Prompts
from labkit.serve.server.settings import Settings
from labkit.serve.server.text import Text


class PromptReader:
    """Turns what was asked into token ids.

    Args:
        text: the tokenizer.
        settings: the limits.
        threads: where long texts are tokenised, so that everything else goes on meanwhile.
    """

    def __init__(self, text: Text, settings: Settings, threads: Executor) -> None:
        self.text, self.settings, self.threads = text, settings, threads

    def longest(self, info: Info) -> int:
        """The most tokens that a prompt may have: one is left for the answer."""
        return min(self.settings.max_prompt_tokens or info.max_context, info.max_context - 1)

    async def completion(self, prompts: Prompts, info: Info) -> list[list[int]]:
        """The tokens of each prompt. Raises ApiError (400) for one that is empty, too long, or no tokens of the model.

        Args:
            prompts: texts, or lists of token ids.
        """
        if isinstance(prompts[0], str):
            return await self._tokenize(prompts, info, special=True, param="prompt")
        for ids in prompts:
            self._check(len(ids), info, "prompt")
            if (highest := max(ids)) >= info.vocab_size:
                raise refused(f"prompt has the token {highest}; the model knows 0 to {info.vocab_size - 1}", "prompt")
        return prompts

    async def chat(self, messages: Sequence[Message], info: Info) -> list[int]:
        """The tokens of a conversation, written down by the model's template. Raises ApiError (400)."""
        said = [message.model_dump(exclude_none=True) for message in messages]
        for message in said:
            self._check(self.text.least_tokens(message["content"]), info, "messages", at_least=True)
        try:
            prompt = await self._away(sum(len(m["content"]) for m in said), self.text.template.render, said)
        except ValueError as error:
            raise refused(str(error), "messages") from None
        (ids,) = await self._tokenize([prompt], info, special=self.text.template.plain, param="messages")
        return ids

    async def _tokenize(self, texts: list[str], info: Info, *, special: bool, param: str) -> list[list[int]]:
        for text in texts:
            if not text:
                raise refused(f"{param} is empty; give at least one token", param, "empty_prompt")
            self._check(self.text.least_tokens(text), info, param, at_least=True)
        size = sum(map(len, texts))
        prompts = await self._away(size, lambda: self.text.encode(texts, special=special))
        for ids in prompts:
            self._check(len(ids), info, param)
        return prompts

    async def _away(self, size: int, work, *arguments):
        """Do it here if it is short, else in a thread."""
        if size <= self.settings.tokenize_inline_bytes:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *arguments)

    def _check(self, tokens: int, info: Info, param: str, at_least: bool = False) -> None:
        if not tokens:
            raise refused(f"{param} is empty; give at least one token", param, "empty_prompt")
        if tokens > (most := self.longest(info)):
            count = f"{'at least ' if at_least else ''}{tokens}"
            raise too_long(f"{param} has {count} tokens; {most} are allowed: shorten it", param)


def too_long(message: str, param: str | None) -> ApiError:
    """Beyond the model's context, in OpenAI's words."""
    return refused(message, param, "context_length_exceeded")


def answer_tokens(asked: int | None, usual: int | None, prompt: int, info: Info, settings: Settings, param: str) -> int:
    """How long the answer to a prompt may be.

    Args:
        asked: by the request; usual: if it asks for nothing; None: all that there is room for.
        prompt: its tokens.

    Raises ApiError (400) if more is asked than there is room for.
    """
    room = info.max_context - prompt
    most = min(room, settings.max_output_tokens or room)
    if asked is None:
        return min(most, usual or most)
    if asked > most:
        if most == room:
            raise too_long(
                f"{param} is {asked} and the prompt has {prompt} tokens; the model holds {info.max_context} together: "
                f"ask for {room} or fewer",
                param,
            )
        raise refused(f"{param} is {asked}; this server gives {most} at most", param)
    return asked
