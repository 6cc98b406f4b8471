"""A folder as a store: an object is a file that is linked or renamed into place when it is whole.

Conditions hold between threads and processes of every machine that shares the folder and its locks (flock).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from labkit.serve.registry.disk import locked, make_durable, sync_folder, write_beside
from labkit.serve.registry.errors import Damaged, Lost, Missing
from labkit.serve.registry.plan import CHUNK, PART_BYTES, Plan, md5
from labkit.serve.registry.store import Object, Sent, Unfinished

HIDDEN = ".registry"  # the store's own: locks, files not yet in place


class FolderStore:
    """A store in a folder of this machine, or one that several machines mount.

    Args:
        root: the folder; made with the first write.
        part_bytes: the steps in which a file is copied and an interrupted copy is compared.
    """

    def __init__(self, root: Path, part_bytes: int = PART_BYTES) -> None:
        self.root, self.part_bytes = root.absolute(), part_bytes
        self.uri = self.root.as_uri()
        self._own = self.root / HIDDEN

    def read(self, key: str, limit: int) -> tuple[bytes, str]:
        try:
            with open(self.root / key, "rb") as file:
                data = file.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise Missing(f"there is no {key} in {self.uri}") from error
        if len(data) > limit:
            raise Damaged(f"{key} in {self.uri} has more than {limit} bytes; no such text is read")
        return data, _tag(data)

    def write(self, key: str, data: bytes, *, absent: bool = False, tag: str = "") -> str:
        path = self.root / key
        make_durable(path.parent)
        beside = write_beside(self._own / "beside", data)
        try:
            with locked(self._own / "lock"):
                if absent or tag:
                    self._need(key, absent, tag)
                os.replace(beside, path)
            sync_folder(path.parent)
        finally:
            with suppress(FileNotFoundError):
                beside.unlink()
        return _tag(data)

    def _need(self, key: str, absent: bool, tag: str) -> None:
        path = self.root / key
        there = path.exists() or path.is_symlink()
        if absent and there:
            raise Lost(f"{key} is in {self.uri} already")
        if tag and not (there and _tag(path.read_bytes()) == tag):
            raise Lost(f"{key} in {self.uri} was changed by somebody else")

    def stat(self, key: str) -> Object | None:
        try:
            found = os.stat(self.root / key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Object(key, found.st_size, found.st_mtime)

    def keys(self, prefix: str) -> Iterator[Object]:
        for path in _files(self.root / prefix):
            found = self.stat(path.relative_to(self.root).as_posix())
            if found is not None:  # removed since it was listed
                yield found

    def folders(self) -> Iterator[str]:
        with suppress(FileNotFoundError):
            yield from sorted(each.name for each in os.scandir(self.root) if each.is_dir() and each.name[0] != ".")

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            (self.root / key).unlink()

    def stream(self, key: str, start: int) -> Iterator[bytes]:
        try:
            with open(self.root / key, "rb") as file:
                file.seek(start)
                while chunk := file.read(CHUNK):
                    yield chunk
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise Missing(f"there is no {key} in {self.uri}") from error

    def holds(self, key: str, plan: Plan) -> bool:
        found = self.stat(key)
        if found is None or found.bytes != plan.bytes:
            return False
        digest = hashlib.sha256()
        for chunk in self.stream(key, 0):
            digest.update(chunk)
        return digest.hexdigest() == plan.sha256

    def upload(self, key: str, plan: Plan, sent: Sent) -> None:
        path, part = self.root / key, self._part(key)
        make_durable(path.parent)
        make_durable(part.parent)
        with locked(self._lock_of(key)):
            if not self.holds(key, plan):
                self._copy(plan, part, sent)
                os.replace(part, path)
                sync_folder(path.parent)
            else:  # another process sent it while this one waited
                sent(plan.bytes)

    def _copy(self, plan: Plan, part: Path, sent: Sent) -> None:
        with open(part, "r+b" if part.exists() else "x+b") as file:
            for index in range(len(plan.md5s)):
                start, stop = plan.span(index)
                file.seek(start)
                if md5(file.read(stop - start)) != plan.md5s[index]:
                    data = plan.part(index)
                    file.seek(start)
                    file.write(data)
                sent(stop - start)
            file.truncate(plan.bytes)
            file.flush()
            os.fsync(file.fileno())

    def _part(self, key: str) -> Path:
        return self._own / "uploads" / f"{key.replace('/', '@')}.part"

    def _lock_of(self, key: str) -> Path:
        """One of a few locks: files that are locked can never be removed, so there must not be one for each key."""
        return self._own / "locks" / hashlib.sha256(key.encode()).hexdigest()[:2]

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        for path in _files(self._own / "uploads"):
            key = path.stem.replace("@", "/")
            if key.startswith(prefix) and path.suffix == ".part":
                with suppress(FileNotFoundError):
                    yield Unfinished(key, path.name, path.stat().st_mtime)

    def abandon(self, upload: Unfinished) -> None:
        part = self._part(upload.key)
        with locked(self._lock_of(upload.key)), suppress(FileNotFoundError):
            part.unlink()


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in sorted(os.scandir(folder), key=lambda each: each.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path)
