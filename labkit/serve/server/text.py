"""Text and tokens, as the server needs them: prompts in, token names out, and how few tokens a text can have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders

from labkit.serve import tokenizer
from labkit.serve.server.template import Template


class Text:
    """A tokenizer, and the chat template that came with it.

    Args:
        tokenizer: a `tokenizers.Tokenizer`, or a fast tokenizer of transformers that holds one.
        template: of chats, in Jinja; None: that of the tokenizer, or the plain one.
        special: texts of special tokens by name, such as "eos_token", which templates mention.
    """

    def __init__(self, tokenizer: Any, template: str | None = None, special: dict[str, str] | None = None) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not isinstance(backend, Tokenizer):
            raise ValueError(f"tokenizer is a {type(tokenizer).__name__}; give one with a tokenizer.json (a fast one)")
        if backend is not tokenizer:
            template = template or getattr(tokenizer, "chat_template", None)
            special = special or dict(tokenizer.special_tokens_map)
        self.template = Template(template, special or {})
        self._backend = backend
        self._vocab = backend.get_vocab(with_added_tokens=True)
        self._added = set(backend.get_added_tokens_decoder())
        self._names: dict[int, bytes] = {}
        self._byte_level = isinstance(backend.decoder, decoders.ByteLevel)
        self._longest = self._longest_token()

    @classmethod
    def from_folder(cls, folder: Path | str) -> Text:
        """What lies beside a model. Raises FileNotFoundError without a tokenizer.json."""
        folder = Path(folder)
        backend = tokenizer.read(folder)
        config = _read_json(folder / "tokenizer_config.json")
        template = config.get("chat_template")
        if isinstance(template, list):  # several, by name
            template = next((each["template"] for each in template if each.get("name") == "default"), None)
        if (folder / "chat_template.jinja").is_file():
            template = (folder / "chat_template.jinja").read_text("utf-8")
        names = {key: value for key, value in config.items() if key.endswith("_token")}
        special = {key: value["content"] if isinstance(value, dict) else value for key, value in names.items() if value}
        return cls(backend, template, {key: value for key, value in special.items() if isinstance(value, str)})

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Token ids; slow for long texts, and lets other threads work meanwhile.

        Args:
            special: whether the tokenizer adds what it adds to every text (such as a first token).
        """
        return [each.ids for each in self._backend.encode_batch_fast(list(texts), add_special_tokens=special)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def least_tokens(self, text: str) -> int:
        """How many tokens a text has at least, by its bytes alone; 1 where that cannot be known."""
        return 1 if self._longest is None else -(-len(text.encode()) // self._longest)

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token."""
        if id not in self._names:
            self._names[id] = self._token_bytes(id)
        return self._names[id]

    def token_text(self, id: int) -> str:
        r"""A name for one token, different for every two: its text, or `bytes:\xe2\x82` if that is no whole text."""
        data = self.token_bytes(id)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _token_bytes(self, id: int) -> bytes:
        word = self._backend.id_to_token(id)
        if word is None:
            return f"<|{id}|>".encode()
        if id in self._added:
            return word.encode()
        if self._byte_level:
            return bytes(_alphabet()[letter] for letter in word if letter in _alphabet())
        if len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
            return bytes.fromhex(word[3:5])
        return word.replace("▁", " ").encode()

    def _longest_token(self) -> int | None:
        """In bytes; None where a tokenizer may drop some of a text, so that its length proves nothing."""
        if self._backend.normalizer is not None or not self._byte_level:
            return None
        if any(token.lstrip or token.rstrip for token in self._backend.get_added_tokens_decoder().values()):
            return None
        sizes = (len(word.encode()) if id in self._added else len(word) for word, id in self._vocab.items())
        return max(sizes, default=None)


@cache
def _alphabet() -> dict[str, int]:
    """The letters by which byte-level tokenizers write bytes (GPT-2: Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
