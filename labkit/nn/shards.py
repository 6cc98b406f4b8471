"""Folders of safetensors files, one or several shards: read a tensor at a time, written so that no half is left.

Nothing is ever unpickled. What we write carries a checksum of every tensor in its header, so that altered bytes are
told when they are read; files that others wrote carry none, and only their headers can be checked.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SUMS = "crc32"  # the key of our checksums among a file's metadata
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SHARD = re.compile(r"model-\d{5,}-of-\d{5,}\.safetensors")


@dataclass(frozen=True)
class Stored:
    """What a file's header says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


class Shards:
    """The tensors of a folder, memory-mapped; a shard is opened when one of its tensors is first asked for.

    Raises ValueError for a folder without such files, an index that names files outside the folder or tensors that the
    shards do not hold, and, on reading, for a file that is damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._stack = ExitStack()
        self._open: dict[str, Any] = {}
        self._sums: dict[str, Mapping[str, int]] = {}
        self._where = self._find()

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._open.clear()

    @property
    def names(self) -> frozenset[str]:
        """Every tensor that is there."""
        return frozenset(self._where)

    @property
    def opened(self) -> tuple[str, ...]:
        """The shards that were opened so far."""
        return tuple(self._open)

    def stored(self, name: str) -> Stored:
        """Shape and number format of one tensor. Raises ValueError for formats other than plain floating point."""
        found = self._file(name).get_slice(name)
        if found.get_dtype() not in DTYPES:
            raise ValueError(
                f"{self._place(name)} is stored as {found.get_dtype()}; only {', '.join(DTYPES)} are read. Let the "
                "program that quantised it write plain weights"
            )
        return Stored(tuple(found.get_shape()), DTYPES[found.get_dtype()])

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU. Raises ValueError if it is not there, damaged, or altered since we wrote it."""
        file, noted = self._file(name), self._sums[self._where[name]].get(name)
        try:
            tensor = file.get_tensor(name)
        except Exception as error:
            raise ValueError(f"{self._place(name)} cannot be read: {error}") from None
        if noted is not None and checksum(tensor) != noted:
            raise ValueError(f"{self._place(name)} was altered after it was written; take the file from its source")
        return tensor

    def _place(self, name: str) -> str:
        return f"{self.folder / self._where[name]}: tensor {name}"

    def _file(self, name: str) -> Any:
        if name not in self._where:
            raise ValueError(f"{self.folder} has no tensor {name}")
        shard = self._where[name]
        if shard not in self._open:
            held = set(self._enter(shard).keys())
            told = {tensor for tensor, place in self._where.items() if place == shard}
            if absent := sorted(told - held):
                raise ValueError(f"{INDEX} says that {shard} holds {absent[0]}, but it does not; take both anew")
            if more := sorted(held - told):
                raise ValueError(f"{shard} holds {more[0]}, which {INDEX} does not place there; take both anew")
        return self._open[shard]

    def _enter(self, shard: str) -> Any:
        from safetensors import safe_open

        path = self.folder / shard
        try:
            file = self._stack.enter_context(safe_open(path, framework="pt", device="cpu"))
        except Exception as error:
            raise ValueError(
                f"{path} is no whole safetensors file ({error}); download or save it again. Other formats, pickles "
                "above all, are not read"
            ) from None
        try:
            self._sums[shard] = {k: int(v) for k, v in json.loads((file.metadata() or {}).get(SUMS, "{}")).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: its checksums cannot be read ({error}); take the file from its source") from None
        self._open[shard] = file
        return file

    def _find(self) -> dict[str, str]:
        if not self.folder.is_dir():
            raise ValueError(f"there is no folder {self.folder}; give one with config.json and {SINGLE}")
        single, index = ((self.folder / name).is_file() for name in (SINGLE, INDEX))
        if single and index:
            raise ValueError(f"{self.folder} holds both {SINGLE} and {INDEX}, two models; remove the older one")
        if index:
            return self._read_index()
        if single:
            return dict.fromkeys(self._enter(SINGLE).keys(), SINGLE)
        pickles = sorted(path.name for pattern in PICKLES for path in self.folder.glob(pattern))
        if pickles:
            raise ValueError(
                f"{self.folder} holds {', '.join(pickles[:3])}: pickles, which can run code when they are "
                "read. Convert them where you trust them: transformers' save_pretrained writes safetensors"
            )
        raise ValueError(f"{self.folder} has neither {SINGLE} nor {INDEX}; is it the folder of a model?")

    def _read_index(self) -> dict[str, str]:
        path = self.folder / INDEX
        try:
            where = json.loads(path.read_text("utf-8"))["weight_map"]
            pairs = {str(name): str(shard) for name, shard in where.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no index of shards: {error!r}; take it from its source") from None
        for name, shard in pairs.items():
            if re.search(r"[/\\:\0]", shard) or shard in ("", ".", ".."):
                raise ValueError(f"{path} places {name} in {shard!r}, outside the folder; such an index is refused")
        missing = sorted({shard for shard in pairs.values() if not (self.folder / shard).is_file()})
        if missing:
            raise ValueError(
                f"{self.folder} lacks {', '.join(missing)}, which its index names; download what is missing"
            )
        return pairs


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its name, its size in bytes, and how to get it when its turn comes."""

    name: str
    nbytes: int
    make: Callable[[], Tensor]


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes, those of its device-independent, contiguous form.

    >>> checksum(torch.zeros(2)) == checksum(torch.zeros(2)), checksum(torch.zeros(2)) == checksum(torch.ones(2))
    (True, False)
    """
    return zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def write(
    folder: Path, entries: list[Entry], max_shard_bytes: int, beside: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[str, ...]:
    """Write tensors as one file, or as shards with an index; only one shard's tensors are in memory at a time.

    Args:
        entries: in order; one that is larger than `max_shard_bytes` gets a shard of its own.
        beside: JSON files that belong to them, by their names.

    All files are made under other names first and then take their places, so that a save that is interrupted leaves the
    folder as it was; shards of an earlier save that have no successor are removed at the end. Returns the names of the
    shards. Raises ValueError for a size below one.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}; give 1 or more")
    groups = list(_grouped(entries, max_shard_bytes))
    names = [SINGLE] if len(groups) == 1 else [_shard(i, len(groups)) for i in range(len(groups))]
    jobs: dict[Path, Callable[[Path], Any]] = {
        folder / name: lambda path, group=group: _write_shard(path, group)
        for name, group in zip(names, groups, strict=True)
    }
    documents = dict(beside or {})
    if len(groups) > 1:
        where = {entry.name: name for name, group in zip(names, groups, strict=True) for entry in group}
        total = sum(entry.nbytes for entry in entries)
        documents[INDEX] = {"metadata": {"total_size": total}, "weight_map": where}
    jobs |= {folder / name: lambda path, values=values: write_json(path, values) for name, values in documents.items()}
    _put(jobs)
    ours = {path.name for path in folder.iterdir() if path.name in (SINGLE, INDEX) or _SHARD.fullmatch(path.name)}
    for name in ours - set(names) - set(documents):
        (folder / name).unlink()
    return tuple(names)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file, indented."""
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def _write_shard(path: Path, group: list[Entry]) -> None:
    from safetensors.torch import save_file

    tensors = {entry.name: entry.make().detach().cpu().contiguous() for entry in group}
    sums = json.dumps({name: checksum(tensor) for name, tensor in tensors.items()})
    save_file(tensors, path, metadata={"format": "pt", SUMS: sums})


def _put(jobs: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Let each job make a file beside its path, then move all of them into their places."""
    made = {path: path.with_name(f".{path.name}.new") for path in jobs}
    try:
        for path, job in jobs.items():
            made[path].touch()
            mode = made[path].stat().st_mode  # as the user's umask wants it; safetensors' own files are private
            job(made[path])
            made[path].chmod(mode)
            with made[path].open("rb") as file:
                os.fsync(file.fileno())
        for path, new in made.items():
            os.replace(new, path)
    finally:
        for new in made.values():
            new.unlink(missing_ok=True)


def _grouped(entries: list[Entry], limit: int) -> Iterator[list[Entry]]:
    group, size = [], 0
    for entry in entries:
        if group and size + entry.nbytes > limit:
            yield group
            group, size = [], 0
        group.append(entry)
        size += entry.nbytes
    yield group


def _shard(number: int, count: int) -> str:
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"
