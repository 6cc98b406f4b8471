"""One shard from the store to a file: taken up where it stopped, verified before anybody may use it."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from labkit.serve.registry.errors import Damaged, Interrupted, Missing
from labkit.serve.registry.manifest import Shard
from labkit.serve.registry.plan import CHUNK
from labkit.serve.registry.small_disk import Write, plainly
from labkit.serve.registry.store import Sent, Store

TRIES, PAUSE = 4, 0.1  # without a new byte in between; seconds, doubled each time


def part_name(shard: Shard) -> str:
    """What a shard's file is called while it is fetched: a flat name, whatever its path is."""
    return hashlib.sha256(shard.path.encode()).hexdigest()


def fetch(
    store: Store, key: str, shard: Shard, part: Path, got: Sent, stop: threading.Event, write: Write = plainly
) -> None:
    """Fill `part` with a shard's bytes; returns with less only if `stop` was set.

    Bytes that an earlier attempt left in `part` are kept if the whole then has the right hash; if not, everything is
    fetched anew, once.

    Raises Damaged if the store's bytes are wrong, Interrupted if they cannot be had, OSError (ENOSPC) with a sentence
    if the disk is full.
    """
    kept = _resume(store, key, shard, part, got, stop, write)
    if stop.is_set() or _matches(part, shard):
        return
    got(-os.path.getsize(part))
    part.unlink()
    if kept:
        _resume(store, key, shard, part, got, stop, write)
        if stop.is_set() or _matches(part, shard):
            return
        part.unlink()
    raise Damaged(
        f"{shard.path} ({key} in {store.uri}) is not what was published: its sha256 is another. It was not kept. "
        "Push the model's folder again to mend the store, or use another version"
    )


def _matches(part: Path, shard: Shard) -> bool:
    digest = hashlib.sha256()
    with open(part, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == shard.sha256


def _resume(store: Store, key: str, shard: Shard, part: Path, got: Sent, stop: threading.Event, write: Write) -> bool:
    """Append until the shard's size is reached; whether anything was there before."""
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size > shard.bytes:
            file.truncate(size := 0)
        got(size)
        at, tries = size, 0
        while at < shard.bytes and not stop.is_set():
            begun = at
            try:
                at = _append(store, key, shard, part, file, at, got, stop, write)
            except Interrupted:
                at = file.seek(0, os.SEEK_END)
                tries = 0 if at > begun else tries + 1
                if tries >= TRIES:
                    raise
                time.sleep(PAUSE * 2**tries)
        with _said(part):
            os.fsync(file.fileno())
    return size > 0


def _append(
    store: Store, key: str, shard: Shard, part: Path, file: BinaryIO, at: int, got: Sent, stop: threading.Event,
    write: Write,
) -> int:  # fmt: skip
    file.seek(at)
    try:
        for chunk in store.stream(key, at):
            if at + len(chunk) > shard.bytes:
                raise Damaged(f"{shard.path} ({key} in {store.uri}) has more than its {shard.bytes} bytes")
            with _said(part):
                rest = memoryview(chunk)
                while rest:
                    rest = rest[write(file, rest) :]
            at += len(chunk)
            got(len(chunk))
            if stop.is_set():
                return at
    except Missing as error:
        raise Damaged(f"{shard.path} ({key}) is missing in {store.uri}; push the model's folder again") from error
    if at < shard.bytes:
        found = store.stat(key)
        if found is None or found.bytes != shard.bytes:
            size = found.bytes if found else 0
            raise Damaged(f"{shard.path} ({key} in {store.uri}) has {size} bytes instead of {shard.bytes}")
        raise Interrupted(f"{store.uri} stopped in the middle of {shard.path}; pull again, it goes on from there")
    return at


@contextmanager
def _said(part: Path) -> Iterator[None]:
    """A full disk, in a sentence that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            errno.ENOSPC,
            f"the disk of {part.parent} is full; make room and pull again: what was fetched is kept, and nothing of "
            "this version can be seen in the cache until all of it is there",
        ) from error
