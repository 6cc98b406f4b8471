"""Files that are whole or not there: locks between processes, durable writes, no following of links."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, alone among all threads and processes; it is freed by the system if the process dies."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_beside(folder: Path, data: bytes) -> Path:
    """Write a new file of a name that nobody has, durably; the caller links or renames it to where it belongs."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / uuid.uuid4().hex
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(FileNotFoundError):
            path.unlink()
        raise
    return path


def make_folder(root: Path, folder: Path) -> None:
    """Make a folder below a root, none of whose parts may be a link: nothing is written through one."""
    root.mkdir(parents=True, exist_ok=True)
    for part in [*reversed(folder.relative_to(root).parents), folder.relative_to(root)]:
        at = root / part
        with suppress(FileExistsError):
            at.mkdir()
        if part.parts and not stat.S_ISDIR(os.lstat(at).st_mode):
            raise ValueError(f"{at} is no folder but a link or a file; remove it, then try again")


def is_plain(root: Path, path: Path) -> bool:
    """Whether a path below a root is a regular file and no part of the way to it is a link."""
    below = path.relative_to(root)
    for part in below.parents:
        if part.parts:
            try:
                if not stat.S_ISDIR(os.lstat(root / part).st_mode):
                    return False
            except (FileNotFoundError, NotADirectoryError):
                return False
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder is there; ValueError if something else is."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{path} is no folder but a link or a file; remove it, then try again")
    return True


def make_durable(folder: Path) -> None:
    """Make a folder and the folders above it, each durably."""
    if folder.is_dir():
        return
    make_durable(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def files(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder; links are told, not followed."""
    with suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                yield from files(Path(entry.path))
            else:
                yield Path(entry.path)


def remove_strangers(root: Path, paths: set[str]) -> None:
    """Remove what lies below a root and is not one of the paths, so that no program loads what was never published."""
    for path in list(files(root)):
        if path.relative_to(root).as_posix() not in paths:
            path.unlink()


def sync_tree(root: Path) -> None:
    """Make a folder and all folders below it durable; files were made so when they were written."""
    for folder, _, _ in os.walk(root):
        sync_folder(Path(folder))
