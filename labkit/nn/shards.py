"""Folders of safetensors files, one or several shards: read a tensor at a time, written so that no half is left.

Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
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


class Shards:
    """The tensors of a folder, memory-mapped; a shard is opened when one of its tensors is first read.

    Raises ValueError for a folder without such files, an index that names files outside the folder or tensors that the
    shards do not hold, and, on reading, for a file that is damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._where = self._find()
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()

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

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU. Raises ValueError if it is not there or its file is damaged."""
        file = self._file(name)
        try:
            return file.get_tensor(name)
        except Exception as error:
            raise ValueError(f"{self.folder / self._where[name]}: tensor {name} cannot be read: {error}") from None

    def dtype(self, name: str) -> torch.dtype:
        """The number format in which a tensor is stored."""
        return self._file(name).get_slice(name)[:0].dtype

    def _file(self, name: str) -> Any:
        if name not in self._where:
            raise ValueError(f"{self.folder} has no tensor {name}")
        shard = self._where[name]
        if shard not in self._open:
            self._open[shard] = self._enter(self.folder / shard)
            told = {tensor for tensor, place in self._where.items() if place == shard}
            if absent := sorted(told - set(self._open[shard].keys())):
                raise ValueError(f"{INDEX} says that {shard} holds {absent[0]}, but it does not; download it again")
        return self._open[shard]

    def _enter(self, path: Path) -> Any:
        from safetensors import safe_open

        try:
            return self._stack.enter_context(safe_open(path, framework="pt", device="cpu"))
        except Exception as error:
            raise ValueError(
                f"{path} is no whole safetensors file ({error}); download or save it again. Other formats, pickles "
                "above all, are not read"
            ) from None

    def _find(self) -> dict[str, str]:
        if not self.folder.is_dir():
            raise ValueError(f"there is no folder {self.folder}; give one with config.json and model.safetensors")
        if (self.folder / INDEX).is_file():
            return self._read_index()
        if (self.folder / SINGLE).is_file():
            with ExitStack() as stack:
                self._stack = stack
                return dict.fromkeys(self._enter(self.folder / SINGLE).keys(), SINGLE)
        pickles = sorted(path.name for pattern in PICKLES for path in self.folder.glob(pattern))
        if pickles:
            raise ValueError(
                f"{self.folder} holds {', '.join(pickles[:3])}: pickles, which can run code when they are "
                "read. Convert them where you trust them: transformers' save_pretrained writes safetensors"
            )
        raise ValueError(f"{self.folder} has neither {SINGLE} nor {INDEX}")

    def _read_index(self) -> dict[str, str]:
        path = self.folder / INDEX
        try:
            where = json.loads(path.read_text("utf-8"))["weight_map"]
            pairs = {str(name): str(shard) for name, shard in where.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no index of shards: {error!r}") from None
        for name, shard in pairs.items():
            if Path(shard).name != shard or shard in ("", ".", ".."):
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


def write(folder: Path, entries: list[Entry], max_shard_bytes: int) -> tuple[str, ...]:
    """Write tensors as one file, or as shards with an index; only one shard's tensors are in memory at a time.

    Each file appears whole, under its name, or not at all; what an earlier save left is removed at the end.
    Returns the names of the shards. Raises ValueError for a size below one.
    """
    from safetensors.torch import save_file

    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}; give 1 or more")
    groups = list(_grouped(entries, max_shard_bytes))
    names = [SINGLE] if len(groups) == 1 else [_shard(i, len(groups)) for i in range(len(groups))]
    for name, group in zip(names, groups, strict=True):
        tensors = {entry.name: entry.make().detach().cpu().contiguous() for entry in group}
        replace(folder / name, lambda path, tensors=tensors: save_file(tensors, path, metadata={"format": "pt"}))
    if len(groups) > 1:
        where = {entry.name: name for name, group in zip(names, groups, strict=True) for entry in group}
        total = sum(entry.nbytes for entry in entries)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    stale = {path.name for path in folder.glob("model*.safetensors")} - set(names)
    stale |= {INDEX} if len(groups) == 1 else set()
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    return tuple(names)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file in one step."""
    replace(path, lambda new: new.write_text(json.dumps(values, indent=2) + "\n", "utf-8"))


def replace(path: Path, write_to: Callable[[Path], Any]) -> None:
    """Let `write_to` make a file beside `path`, then put it in its place in one step."""
    new = path.with_name(f".{path.name}.new")
    try:
        write_to(new)
        os.replace(new, path)
    finally:
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
