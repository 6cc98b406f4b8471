"""Progress of something that several threads do together."""

from __future__ import annotations

import threading
from collections.abc import Callable

Say = Callable[[float, str], None]


class Meter:
    """Adds up bytes and tells somebody, from any thread but never from two at once.

    Args:
        total: bytes in all.
        say: told the share that is done (0 to 1) and what is being done; None for nobody.
    """

    def __init__(self, total: int, say: Say | None) -> None:
        self._total, self._say = max(total, 1), say
        self._done, self._lock = 0, threading.Lock()

    def add(self, count: int, what: str) -> None:
        """Count bytes; a negative count takes back what was counted too early."""
        with self._lock:
            self._done += count
            if self._say is not None:
                self._say(min(1.0, self._done / self._total), what)
