"""Token files on disk: one for each domain and split, memory-mapped, with a sidecar that says what made it.

Documents lie back to back, each ended by the end-of-document token. A file's size costs no memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from labkit.train.checkpoint import sha256
from labkit.train.tokenizer import encode_documents, tokenizer_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLITS = ("train", "validation")
FORMAT = 1
_ENCODE_CHARACTERS = 4_000_000  # given to the tokenizer at once


class Texts(Protocol):
    """What token files are made of: `documents.Documents`, or the smaller `data.Corpus`."""

    train: Mapping[str, Sequence[str]]
    validation: Mapping[str, Sequence[str]]
    digest: str


@dataclass(frozen=True)
class TokenFile:
    """One domain's tokens of one split; what the sidecar beside the file says about it.

    Args:
        path: of the tokens, `DOMAIN.SPLIT.bin`, little-endian.
        domain, split: what it holds.
        dtype: "uint16", or "uint32" where the vocabulary has more than 65,536 tokens.
        vocab_size: V; end_id: of the token after each document.
        tokens, documents: how many, the ends counted as tokens; bytes: of the text.
        tokenizer, corpus: digests of what made it.
        checksum: SHA-256 of the file.
    """

    path: Path
    domain: str
    split: str
    dtype: str
    vocab_size: int
    end_id: int
    tokens: int
    documents: int
    bytes: int
    tokenizer: str
    corpus: str
    checksum: str

    @classmethod
    def open(
        cls, path: str | Path, tokenizer: PreTrainedTokenizerFast | None = None, *, verify: bool = True
    ) -> TokenFile:
        """Check a file and its sidecar.

        Args:
            path: of the .bin file.
            tokenizer: if given, the one that must have made the file.
            verify: read the file through and compare its checksum; otherwise only its length is compared.

        Raises ValueError for a file that is missing, truncated, altered, of another format or tokenizer.
        """
        path = Path(path)
        file = _sidecar(path)
        size, expected = path.stat().st_size, file.tokens * np.dtype(file.dtype).itemsize
        if size != expected:
            raise ValueError(f"{path} has {size:,} bytes, but its sidecar says {expected:,}; write the files again")
        if tokenizer is not None and (digest := tokenizer_digest(tokenizer)) != file.tokenizer:
            raise ValueError(
                f"{path} was made with tokenizer {file.tokenizer[:12]}…, not with {digest[:12]}…; "
                "give that tokenizer, or write the files again"
            )
        if verify and sha256(path) != file.checksum:
            raise ValueError(f"{path} is not what was written: its checksum differs; write the files again")
        return file

    @cached_property
    def ids(self) -> np.ndarray:
        """[tokens] uint16 or uint32, mapped from the file, read-only."""
        return np.memmap(self.path, dtype=np.dtype(self.dtype).newbyteorder("<"), mode="r", shape=(self.tokens,))


def write_tokens(
    folder: str | Path, texts: Texts, tokenizer: PreTrainedTokenizerFast
) -> dict[str, dict[str, TokenFile]]:
    """Encode every domain of both splits into files; those already there are replaced, each at once.

    Args:
        folder: made if it is missing.
        texts: a `Documents` or a `Corpus`.
        tokenizer: its end-of-text token is put after every document.

    Returns the files, first by split and then by domain, as `open_tokens` does. Raises ValueError for a tokenizer
    without an end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token (eos_token), which must end every document")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digest = tokenizer_digest(tokenizer)
    files: dict[str, dict[str, TokenFile]] = {}
    for split in SPLITS:
        for domain, documents in getattr(texts, split).items():
            path = folder / f"{domain}.{split}.bin"
            files.setdefault(split, {})[domain] = _write(path, documents, tokenizer, digest, texts.digest)
    return files


def open_tokens(
    folder: str | Path, tokenizer: PreTrainedTokenizerFast | None = None, *, verify: bool = True
) -> dict[str, dict[str, TokenFile]]:
    """All token files of a folder, checked as `TokenFile.open` does: first by split, then by domain, in sorted order.

    Raises ValueError also if there is none, and if they are of several corpora or tokenizers.
    """
    paths = sorted(Path(folder).glob("*.bin"))
    if not paths:
        raise ValueError(f"no token file (*.bin) lies in {folder}; make them with write_tokens")
    files: dict[str, dict[str, TokenFile]] = {split: {} for split in SPLITS}
    for path in paths:
        file = TokenFile.open(path, tokenizer, verify=verify)
        files[file.split][file.domain] = file
    made = {(file.tokenizer, file.corpus) for by_domain in files.values() for file in by_domain.values()}
    if len(made) > 1:
        raise ValueError(f"the token files in {folder} come from {len(made)} corpora or tokenizers; write them again")
    return files


def _write(path: Path, documents: Iterable[str], tokenizer: Any, digest: str, corpus: str) -> TokenFile:
    vocab_size = len(tokenizer)
    dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    tokens = number = size = 0
    partial, checksum = path.with_suffix(".bin.partial"), hashlib.sha256()
    with open(partial, "wb") as out:
        for some in _portions(documents):
            for text, ids in zip(some, encode_documents(tokenizer, some), strict=True):
                data = np.array([*ids, tokenizer.eos_token_id], dtype=np.dtype(dtype).newbyteorder("<")).tobytes()
                out.write(data)
                checksum.update(data)
                tokens, number, size = tokens + len(ids) + 1, number + 1, size + len(text.encode())
    partial.replace(path)
    domain, split = path.stem.rsplit(".", 1)
    file = TokenFile(
        path, domain, split, dtype, vocab_size, tokenizer.eos_token_id, tokens, number, size, digest, corpus,
        checksum.hexdigest(),
    )  # fmt: skip
    known = {name: value for name, value in asdict(file).items() if name != "path"}
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps({"format": FORMAT, **known}, indent=2) + "\n", "utf-8")
    partial.replace(path.with_suffix(".json"))
    return file


def _portions(documents: Iterable[str]) -> Iterator[list[str]]:
    some, size = [], 0
    for text in documents:
        some.append(text)
        size += len(text)
        if size >= _ENCODE_CHARACTERS:
            yield some
            some, size = [], 0
    if some:
        yield some


def _sidecar(path: Path) -> TokenFile:
    sidecar = path.with_suffix(".json")
    for needed in (path, sidecar):
        if not needed.is_file():
            raise ValueError(f"{needed} is missing; make token files with write_tokens, and keep both parts together")
    try:
        known = json.loads(sidecar.read_text("utf-8"))
        if known.pop("format") != FORMAT:
            raise ValueError
        file = TokenFile(path=path, **known)
        if file.dtype not in ("uint16", "uint32") or file.split not in SPLITS or not isinstance(file.tokens, int):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{sidecar} is no sidecar of format {FORMAT}; write the files again") from error
    return file
