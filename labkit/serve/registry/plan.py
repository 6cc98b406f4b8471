"""A file as it will be sent: its SHA-256, and the MD5 of each part, so that what lies in the store can be compared.

MD5 only tells whether a part arrived, as S3's ETag does; what a version is made of is told by SHA-256 alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PART_BYTES = 16 * 2**20
MOST_PARTS = 10_000  # of one S3 upload
CHUNK = 2**20


class Changed(ValueError):
    """A file was written to while it was pushed."""


@dataclass(frozen=True)
class Plan:
    """How one file is sent.

    Args:
        source: the file.
        bytes: its size.
        sha256: of all of it, hex.
        part_bytes: the size of every part but the last.
        md5s: hex, one a part; an empty file has one empty part.
    """

    source: Path
    bytes: int
    sha256: str
    part_bytes: int
    md5s: tuple[str, ...]

    def span(self, index: int) -> tuple[int, int]:
        """The first byte of a part, and the one after its last."""
        return index * self.part_bytes, min((index + 1) * self.part_bytes, self.bytes)

    def part(self, index: int) -> bytes:
        """The bytes of a part, read from the file again; Changed if they are not those that were planned."""
        start, stop = self.span(index)
        with open(self.source, "rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        if md5(data) != self.md5s[index]:
            raise Changed(f"{self.source} was written to while it was pushed; push again when it is finished")
        return data

    def etag(self) -> str:
        """The ETag that S3 gives to this file where it does not encrypt: of one part its MD5, else that of them all."""
        if len(self.md5s) == 1:
            return self.md5s[0]
        return f"{md5(b''.join(bytes.fromhex(each) for each in self.md5s))}-{len(self.md5s)}"


def md5(data: bytes) -> str:
    """Hex MD5, as a check of transfer."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def plan(source: Path, part_bytes: int = PART_BYTES, read: Callable[[int], None] = lambda count: None) -> Plan:
    """Read a file once and say how it will be sent.

    Args:
        source: the file.
        part_bytes: the least size of a part; more where the file would have over MOST_PARTS parts.
        read: told how many bytes were read, after each chunk.
    """
    size = os.stat(source).st_size
    step = max(part_bytes, -(-size // MOST_PARTS))
    whole, md5s, total = hashlib.sha256(), [], 0
    with open(source, "rb") as file:
        while True:
            count, part = 0, hashlib.md5(usedforsecurity=False)
            while count < step and (chunk := file.read(min(CHUNK, step - count))):
                whole.update(chunk)
                part.update(chunk)
                count += len(chunk)
                read(len(chunk))
            if count or not md5s:
                md5s.append(part.hexdigest())
            total += count
            if count < step:
                break
    if total != size:
        raise Changed(f"{source} was written to while it was read; push again when it is finished")
    return Plan(source, size, whole.hexdigest(), step, tuple(md5s))
