"""A disk that gets full when it is told to: what a pull writes meets the system's own error, and no disk is filled."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import BinaryIO

Write = Callable[[BinaryIO, memoryview], int]


def plainly(file: BinaryIO, data: memoryview) -> int:
    """Write what the system takes of it; returns how much."""
    return file.write(data)


class SmallDisk:
    """As `write` of `Registry.pull`: a disk on which so many more bytes fit, for drills.

    Args:
        room: in bytes.

    `written` counts those that were written.

    >>> import io
    >>> disk, file = SmallDisk(3), io.BytesIO()
    >>> disk(file, memoryview(b"hello")), disk.written, file.getvalue()
    (3, 3, b'hel')
    >>> disk(file, memoryview(b"lo"))
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device
    """

    def __init__(self, room: int) -> None:
        self.room, self.written = room, 0
        self._alone = threading.Lock()

    def __call__(self, file: BinaryIO, data: memoryview) -> int:
        with self._alone:
            fits = data[: self.room - self.written]
            if data and not fits:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done = plainly(file, fits)
            self.written += done
        return done
