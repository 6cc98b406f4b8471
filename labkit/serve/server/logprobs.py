"""Log probabilities in the two shapes of OpenAI's interface."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from labkit.serve.engine import TokenLogprob
from labkit.serve.server.text import Text

LEAST = -9999.0  # what stands for impossible, since JSON has no infinity


class Ledger:
    """The log probabilities of one answer of `/v1/completions`, piece by piece; it counts letters as it goes.

    Args:
        text: names the tokens.
    """

    def __init__(self, text: Text) -> None:
        self._text, self._offset = text, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, tokens: Iterable[TokenLogprob | None], ids: Iterable[int]) -> dict[str, list[Any]]:
        """A piece: tokens, their log probabilities, the best alternatives, and where in the text each begins.

        Args:
            tokens: None for a token that nothing predicts, the first of a prompt.
            ids: of the same tokens.
        """
        piece: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, id in zip(tokens, ids, strict=True):
            name = self._text.token_text(id)
            piece["tokens"].append(name)
            piece["token_logprobs"].append(None if token is None else finite(token.logprob))
            piece["top_logprobs"].append(None if token is None else self._top(token, name))
            piece["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(self._text.token_bytes(id)))
        return piece

    def _top(self, token: TokenLogprob, name: str) -> dict[str, float]:
        """Alternatives by name, and the token itself among them, as OpenAI does."""
        top = {self._text.token_text(id): finite(logprob) for id, _, logprob in token.top}
        return top if name in top else {**top, name: finite(token.logprob)}


def joined(pieces: Iterable[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Pieces of a `Ledger` as one."""
    whole: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for piece in pieces:
        for name, values in piece.items():
            whole[name] += values
    return whole


def chat_tokens(text: Text, tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """The tokens of a chat's answer, each with its alternatives."""
    return [
        {
            **_named(text, token.token_id, token.logprob),
            "top_logprobs": [_named(text, id, logprob) for id, _, logprob in token.top],
        }
        for token in tokens
    ]


def _named(text: Text, id: int, logprob: float) -> dict[str, Any]:
    return {"token": text.token_text(id), "logprob": finite(logprob), "bytes": list(text.token_bytes(id))}


def finite(logprob: float) -> float:
    """A log probability as JSON can hold it.

    >>> finite(float("-inf"))
    -9999.0
    """
    return max(LEAST, float(logprob))  # in this order NaN is the least too
