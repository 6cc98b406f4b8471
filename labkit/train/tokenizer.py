"""Text into tokens: a byte-level BPE trained on the corpus, and plain bytes with the same interface.

Both are `PreTrainedTokenizerFast` of transformers, so `save_pretrained` and `AutoTokenizer` work. Every byte has a
token of its own, so nothing is unknown and nothing is lost. Digits stand alone: sums are easier to learn so.
Byte-level BPE: Sennrich et al. 2016 and Radford et al. 2019 (GPT-2).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"  # begins and ends documents
PAD = "<|pad|>"
SPECIAL = (END, PAD)
# One digit; letters, with the space before them; other signs; line ends with the space before them; other space.
_PATTERN = r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_MIN_VOCAB = 256 + len(SPECIAL)


def train_tokenizer(
    texts: Mapping[str, Iterable[str]], vocab_size: int, *, bytes_per_domain: int | None = 10_000_000
) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE; the same texts give the same tokenizer.

    Args:
        texts: documents by domain, such as `Documents.train`.
        vocab_size: V, 258 or more: the two special tokens (ids 0 and 1), the 256 bytes, and what is learned.
        bytes_per_domain: how much of each domain is read; None: all, so that the largest domain decides.

    Raises ValueError for sizes out of range, and for texts too small for so many tokens (it says how many they give).
    """
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < _MIN_VOCAB:
        raise ValueError(f"vocab_size is {vocab_size}; give {_MIN_VOCAB} or more: 256 bytes and {len(SPECIAL)} others")
    if bytes_per_domain is not None and bytes_per_domain < 1:
        raise ValueError(f"bytes_per_domain is {bytes_per_domain}; give 1 or more, or None for all")
    _check_texts(texts)
    backend = _backend(models.BPE(), pre_tokenizers, decoders)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    backend.train_from_iterator(_some(texts, bytes_per_domain), trainer)
    if backend.get_vocab_size() < vocab_size:
        raise ValueError(
            f"vocab_size is {vocab_size} but these texts give only {backend.get_vocab_size()} tokens; "
            "give more text or a smaller vocab_size"
        )
    return _wrap(backend)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens: id b is byte b, 256 ends a document, 257 pads; V = 258.

    >>> tokenizer = byte_tokenizer()
    >>> tokenizer("né")["input_ids"], tokenizer.eos_token_id, len(tokenizer)
    ([110, 195, 169], 256, 258)
    """
    from tokenizers import decoders, models, pre_tokenizers

    vocab = {letter: byte for byte, letter in enumerate(_alphabet())}
    vocab |= {token: 256 + i for i, token in enumerate(SPECIAL)}
    return _wrap(_backend(models.BPE(vocab=vocab, merges=[]), pre_tokenizers, decoders))


def encode_documents(tokenizer: PreTrainedTokenizerFast, documents: Sequence[str]) -> list[list[int]]:
    """The ids of each document as plain text: words such as "<|endoftext|>" in it stay words. Several threads work."""
    return [encoding.ids for encoding in _plain(tokenizer).encode_batch_fast(list(documents), add_special_tokens=False)]


def encode_bytes(tokenizer: PreTrainedTokenizerFast, data: bytes) -> list[int]:
    """The ids of any bytes, also of such as are no UTF-8 text; `decode_bytes` gives them back.

    >>> decode_bytes(byte_tokenizer(), encode_bytes(byte_tokenizer(), b"\\xff<|pad|>"))
    b'\\xff<|pad|>'
    """
    ids: list[int] = []
    plain, single = _plain(tokenizer), tokenizer.get_vocab()
    text, letters = data.decode("utf-8", errors="surrogateescape"), _alphabet()
    start = 0
    for at, letter in enumerate([*text, "\udc80"]):
        if "\udc80" <= letter <= "\udcff":  # a byte that is no text, or the end
            ids += plain.encode(text[start:at], add_special_tokens=False).ids
            ids += [single[letters[ord(letter) - 0xDC00]]] if at < len(text) else []
            start = at + 1
    return ids


def decode_bytes(tokenizer: PreTrainedTokenizerFast, ids: Iterable[int]) -> bytes:
    """The exact bytes of ids; special tokens are nothing. Raises ValueError for an id outside the vocabulary."""
    table = token_bytes(tokenizer)
    ids = [int(i) for i in ids]
    if ids and not 0 <= min(ids) <= max(ids) < len(table):
        raise ValueError(f"ids run from {min(ids)} to {max(ids)}; this vocabulary has [0, {len(table)})")
    return b"".join(table[i] for i in ids)


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> tuple[bytes, ...]:
    """The bytes that each of the V tokens stands for; empty for special ones."""
    byte_of = {letter: byte for byte, letter in enumerate(_alphabet())}
    special, added = set(tokenizer.all_special_ids), tokenizer.added_tokens_encoder
    table = [b""] * len(tokenizer)
    for token, index in tokenizer.get_vocab().items():
        if index not in special:
            table[index] = token.encode() if token in added else bytes(byte_of[letter] for letter in token)
    return tuple(table)


def token_lengths(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """[V] int64, the bytes of each token: `token_lengths(t)[ids].sum()` turns nats per token into nats per byte."""
    return np.array([len(data) for data in token_bytes(tokenizer)], dtype=np.int64)


def bytes_per_token(tokenizer: PreTrainedTokenizerFast, texts: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """For each domain the UTF-8 bytes that a token stands for on average, ends of documents not counted."""
    _check_texts(texts)
    found = {}
    for domain, documents in texts.items():
        documents = list(documents)
        tokens = sum(map(len, encode_documents(tokenizer, documents)))
        found[domain] = sum(len(text.encode()) for text in documents) / max(1, tokens)
    return found


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256, in hexadecimal, of what decides the ids: vocabulary, merges, special tokens and the splitting."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    merges = [m.split(" ") if isinstance(m, str) else list(m) for m in model.get("merges", [])]
    names = tokenizer.eos_token, tokenizer.pad_token
    decides = [sorted(tokenizer.get_vocab().items()), merges, names, state["normalizer"], state["pre_tokenizer"]]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _backend(model: Any, pre_tokenizers: Any, decoders: Any) -> Any:
    from tokenizers import Regex, Tokenizer

    backend = Tokenizer(model)
    split = pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def _wrap(backend: Any) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END, eos_token=END, pad_token=PAD, padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _plain(tokenizer: PreTrainedTokenizerFast) -> Any:
    """A copy of the backend that knows no special token, cuts nothing and pads nothing."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.encode_special_tokens = True
    plain.no_truncation()
    plain.no_padding()
    return plain


@cache
def _alphabet() -> tuple[str, ...]:
    """The letter that byte-level BPE writes for each of the 256 bytes: the byte's own where it can be seen (GPT-2)."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return tuple(chr(byte) if byte in seen else chr(next(hidden)) for byte in range(256))


def _some(texts: Mapping[str, Iterable[str]], limit: int | None) -> Iterator[str]:
    for documents in texts.values():
        left = limit
        for text in documents:
            if left is not None and left <= 0:
                break
            text = text if left is None else text[:left]
            left = None if left is None else left - len(text.encode())
            yield text


def _check_texts(texts: Mapping[str, Iterable[str]]) -> None:
    if not isinstance(texts, Mapping) or any(isinstance(documents, str) for documents in texts.values()):
        raise ValueError("texts must map each domain to its documents, such as {'code': ['…', '…']}")
