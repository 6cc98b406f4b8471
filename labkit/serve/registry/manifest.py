"""A version and its manifest: JSON that is read as if an enemy had written it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from labkit.serve.registry import names
from labkit.serve.registry.errors import Damaged

FORMAT = 1
MANIFEST_BYTES = 4 * 2**20
FILES = 10_000
SHARD_BYTES = 5 * 2**40
TOTAL_BYTES = 2**50
NOTE_LETTERS = 4000
SHA256 = re.compile(r"[0-9a-f]{64}")
KEYS = {"format", "name", "id", "files", "note", "created", "push"}


@dataclass(frozen=True)
class Shard:
    """One file of a version: its path inside of it, its size in bytes and the SHA-256 of its bytes (hex)."""

    path: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        names.need_path(self.path)
        if not isinstance(self.bytes, int) or isinstance(self.bytes, bool) or not 0 <= self.bytes <= SHARD_BYTES:
            raise ValueError(f"{self.path}: its size is {_cut(self.bytes)}; expected 0 to {SHARD_BYTES} bytes")
        if not isinstance(self.sha256, str) or not SHA256.fullmatch(self.sha256):
            raise ValueError(f"{self.path}: its sha256 is {_cut(self.sha256)}; expected 64 hexadecimal digits")


@dataclass(frozen=True)
class Version:
    """A published version: `name`@`id`, its files, and the SHA-256 of its manifest.

    Args:
        name, id: the model and the version, `v1` and so on.
        files: its shards, sorted by path.
        note: what the publisher said about it.
        created: when, by the publisher's clock (UTC, ISO 8601).
        push: a random word of its publication, so that two never have the same manifest.

    Raises ValueError for a name, path, size or number of files that no version may have.
    """

    name: str
    id: str
    files: tuple[Shard, ...]
    note: str = ""
    created: str = ""
    push: str = ""
    sha256: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        names.need_model(self.name)
        if not isinstance(self.id, str) or not names.is_version(self.id):
            raise ValueError(f"a version cannot be called {_cut(self.id)}; expected 'v1', 'v2', …")
        if not 1 <= len(self.files) <= FILES:
            raise ValueError(f"a version has 1 to {FILES} files; {self.name}@{self.id} has {len(self.files)}")
        names.need_distinct([shard.path for shard in self.files])
        if self.bytes > TOTAL_BYTES:
            raise ValueError(f"a version has at most {TOTAL_BYTES} bytes; {self.name}@{self.id} has {self.bytes}")
        for name, limit in (("note", NOTE_LETTERS), ("created", 64), ("push", 64)):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > limit:
                raise ValueError(f"{name} is {_cut(value)}; give a text of at most {limit} letters")
        object.__setattr__(self, "sha256", hashlib.sha256(self.json()).hexdigest())

    @property
    def bytes(self) -> int:
        """The sum of its files' sizes."""
        return sum(shard.bytes for shard in self.files)

    @property
    def number(self) -> int:
        """3 for `v3`."""
        return int(self.id[1:])

    def json(self) -> bytes:
        """The manifest, the same bytes for the same version."""
        files = [{"path": each.path, "bytes": each.bytes, "sha256": each.sha256} for each in self.files]
        table = {
            "format": FORMAT, "name": self.name, "id": self.id, "files": files,
            "note": self.note, "created": self.created, "push": self.push,
        }  # fmt: skip
        return json.dumps(table, indent=1).encode()

    def __str__(self) -> str:
        many = "1 file" if len(self.files) == 1 else f"{len(self.files)} files"
        return f"{self.name}@{self.id}: {many}, {self.bytes / 1e6:,.1f} MB, sha256 {self.sha256[:12]}…"


def read(data: bytes, name: str, id: str) -> Version:
    """A manifest as a Version, or Damaged: nothing in it is believed before it was checked.

    Args:
        data: the manifest's bytes, MANIFEST_BYTES at most.
        name, id: what it was asked for as; it must say the same of itself.
    """
    where = f"the manifest of {name}@{id}"
    table = read_table(data, where)
    try:
        if table.keys() != KEYS or table["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT} with the keys {', '.join(sorted(KEYS))}")
        if (table["name"], table["id"]) != (name, id):
            raise ValueError(f"it says that it is {_cut(table['name'])}@{_cut(table['id'])}")
        if not isinstance(table["files"], list) or len(table["files"]) > FILES:
            raise ValueError(f"its files are no list of at most {FILES}")
        files = tuple(_shard(each) for each in table["files"])
        version = Version(name, id, files, table["note"], table["created"], table["push"])
    except ValueError as error:
        raise Damaged(f"{where} cannot be used: {error}. Use another version, or push this one again") from error
    if version.json() != data:
        raise Damaged(f"{where} cannot be used: it is not written as the registry writes it; push the version again")
    return version


def _shard(entry: Any) -> Shard:
    if not isinstance(entry, dict) or entry.keys() != {"path", "bytes", "sha256"}:
        raise ValueError(f"an entry of its files is {_cut(entry)}; expected path, bytes and sha256")
    return Shard(entry["path"], entry["bytes"], entry["sha256"])


def read_table(data: bytes, where: str) -> dict[str, Any]:
    """A small JSON table from the store, or Damaged: no repeated keys, no NaN, no size over MANIFEST_BYTES."""
    if len(data) > MANIFEST_BYTES:
        raise Damaged(f"{where} has more than {MANIFEST_BYTES} bytes; no such text is read")
    try:
        table = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where} is no JSON that can be read: {_cut(str(error))}") from error
    if not isinstance(table, dict):
        raise Damaged(f"{where} is no table but {type(table).__name__}")
    return table


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is there twice")
    return table


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")


def _cut(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python will write
        return "a number of thousands of digits"
    return text if len(text) <= 120 else f"{text[:117]}…"
