"""Answers that are JSON, or JSON of one schema: which tokens may come next is llguidance's to say.

https://github.com/guidance-ai/llguidance: a parser in Rust that computes the allowed tokens from the vocabulary's
bytes, some tens of microseconds a token. Between the parts of a document exactly `json.dumps`' spaces are allowed, so
that a model that knows little cannot go on writing spaces for ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.serve.engine.params import SamplingParams
from labkit.serve.engine.vocabulary import Vocabulary

_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_LONGEST = 1 << 17  # characters of a schema


@contextmanager
def _calm() -> Iterator[None]:
    """Turn a panic of the library, which is no `Exception`, into a ValueError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"llguidance gave up: {error}") from error


class Matcher:
    """One continuation's place in its grammar.

    Args:
        inner: llguidance's matcher.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def push(self, ids: Sequence[int]) -> None:
        """These tokens came. Raises ValueError if the grammar does not allow them."""
        with _calm():
            taken = self._inner.consume_tokens(list(ids))
        if not taken:
            raise ValueError(f"the grammar does not allow the tokens {list(ids)}: {self._inner.get_error()}")

    @property
    def ended(self) -> bool:
        """Whether nothing more may come."""
        return self._inner.is_stopped()

    def fill(self, row: np.ndarray) -> None:
        """Write a bit for each token that may come next into int32 words. Raises ValueError if the parser gave up."""
        with _calm():
            self._inner.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self._inner.is_error():
            raise ValueError(f"the grammar cannot go on: {self._inner.get_error()}")

    def twin(self) -> Matcher:
        """Another one at the same place."""
        return Matcher(self._inner.deep_copy())


class Grammars:
    """Makes matchers for one vocabulary.

    Args:
        vocabulary: whose tokens the answers are made of.
        width: V, of the model's logits; tokens that only the model has are never allowed.
        eos_token_ids: may come where a document may end.

    Raises ImportError, naming the extra, without llguidance.
    """

    def __init__(self, vocabulary: Vocabulary, width: int, eos_token_ids: Sequence[int]) -> None:
        try:
            import llguidance
        except ImportError as missing:
            raise ImportError("answers in JSON need llguidance: pip install 'labkit[serve]'") from missing
        self._library = llguidance
        self.width = width
        self._tokens = llguidance.LLTokenizer(
            vocabulary.backend.to_str(), n_vocab=max(width, vocabulary.size), eos_token=list(eos_token_ids) or None
        )

    def matcher(self, params: SamplingParams) -> Matcher:
        """At the beginning of the JSON that a request asks for. Raises ValueError for a schema that cannot be used."""
        schema = {"type": "object"} if params.json_schema is None else params.json_schema
        try:
            text = json.dumps(schema, allow_nan=False)
            if len(text) > _LONGEST:
                raise ValueError(f"it has {len(text)} characters; at most {_LONGEST} are taken")
            with _calm():
                grammar = self._library.LLMatcher.grammar_from_json_schema(text, defaults=_SPACES)
                inner = self._library.LLMatcher(self._tokens, grammar, log_level=0)
        except (ValueError, TypeError, RecursionError) as wrong:
            raise ValueError(f"json_schema cannot be used: {wrong}") from wrong
        if inner.is_error():
            raise ValueError(f"json_schema cannot be used: {inner.get_error().splitlines()[0]}")
        return Matcher(inner)

    def allowed(self, matchers: Sequence[Matcher | None], device: torch.device | str = "cpu") -> tuple[Tensor, dict]:
        """What may come next: [R, V] bool, all of a row where there is no matcher.

        Returns also what went wrong, by row; such rows allow nothing.
        """
        words_RW = np.full((len(matchers), -(-self._tokens.vocab_size // 32)), -1, dtype=np.int32)
        wrong = {}
        for at, matcher in enumerate(matchers):
            if matcher is not None:
                try:
                    matcher.fill(words_RW[at])
                except ValueError as error:
                    words_RW[at], wrong[at] = 0, str(error)
        words = torch.from_numpy(words_RW).to(device)
        bits = torch.arange(32, device=device, dtype=torch.int32)
        return ((words[..., None] >> bits) & 1).bool().flatten(1)[:, : self.width], wrong
