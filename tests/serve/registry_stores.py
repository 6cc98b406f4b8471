"""Stores for the registry's tests, and folders that look like models."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labkit.serve.registry import Registry
from labkit.serve.registry.folder_store import FolderStore

PART = 64 * 1024  # so small that small files have several parts


def make_model(folder: Path, seed: int = 0, shards: tuple[int, ...] = (3 * PART + 77, 1000)) -> dict[str, bytes]:
    """Write a folder like a model's, of random bytes; what is in it, by path."""
    rng = random.Random(seed)
    files = {f"model-{n}.safetensors": rng.randbytes(size) for n, size in enumerate(shards)}
    files |= {"config.json": b'{"seed": %d}' % seed, "text/tokenizer.json": b"{}", "empty.txt": b""}
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return files


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def folder_registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry in a folder."""
    yield Registry(FolderStore(tmp_path / "store", part_bytes=PART))


STORES = {"folder": folder_registry}
