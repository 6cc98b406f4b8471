"""Tokens to bytes and back: what an engine wants of a tokenizer.

A byte-level vocabulary (GPT-2's, and most since) says which bytes each token stands for; then text is made of bytes, a
token at a time, without ever decoding twice. Any other tokenizer is asked to decode a few tokens again and again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

_SHOWN = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]  # bytes that stay themselves


def byte_of_character() -> dict[str, int]:
    """Byte-level tokenizers write each byte as one printable character; this leads back.

    Source: Radford et al. 2019 (GPT-2), whose vocabulary files hold no control characters and no spaces.

    >>> byte_of_character()["Ġ"] == ord(" ")
    True
    """
    hidden = [byte for byte in range(256) if byte not in _SHOWN]
    return {chr(byte): byte for byte in _SHOWN} | {chr(256 + at): byte for at, byte in enumerate(hidden)}


class Vocabulary:
    """A tokenizer as the engine uses it.

    Args:
        tokenizer: of transformers (a fast one) or of `tokenizers`.

    Raises ValueError for one that has no Rust tokenizer inside.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None) or getattr(tokenizer, "_tokenizer", tokenizer)
        if not hasattr(backend, "to_str"):
            raise ValueError(f"{type(tokenizer).__name__} holds no fast tokenizer; load one that has a tokenizer.json")
        self.tokenizer, self.backend = tokenizer, backend
        self.size = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special = frozenset(id for id, token in added.items() if token.special)
        eos = getattr(tokenizer, "eos_token_id", None)
        self.eos_token_ids = () if eos is None else (eos,)

    @cached_property
    def bytes_of(self) -> list[bytes] | None:
        """The bytes of each token id, none for special ones; None if the vocabulary is not byte-level."""
        decoder = json.loads(self.backend.to_str())["decoder"]
        if decoder is None or decoder["type"] != "ByteLevel":
            return None
        byte_of, found = byte_of_character(), []
        for id in range(max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1):
            token = self.backend.id_to_token(id) or ""
            if id in self.special:
                found.append(b"")
            elif all(character in byte_of for character in token):
                found.append(bytes(byte_of[character] for character in token))
            else:  # an added token, written as it is
                found.append(token.encode())
        return found

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, with whatever the tokenizer puts before and after one."""
        return self.backend.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; special ones have none."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def continues(self, id: int) -> bool:
        """Whether a token is one byte inside a character, as vocabularies with a fallback to bytes have them."""
        token = self.backend.id_to_token(id) or ""
        return len(token) == 6 and token.startswith("<0x") and token[3] in "89AB"

    def text(self, id: int) -> str:
        """One token's own text, as logprobs show it: special tokens too, incomplete characters as �."""
        if id in self.special:
            return self.backend.id_to_token(id)
        if self.bytes_of is None:
            return self.decode([id])
        return self.bytes_of[id].decode("utf-8", "replace") if id < len(self.bytes_of) else ""
