"""A few threads over a list: the first error stops all of them and is the one that is raised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")


def together(work: Callable[[Item, threading.Event], None], items: Sequence[Item], threads: int) -> None:
    """Do `work(item, stop)` for every item, `threads` at a time.

    Work that takes long looks at `stop` now and then and ends when it is set, also by an error. Raises the error that
    came first, once all threads have ended; an interrupt from the keyboard stops them too.
    """
    stop, errors = threading.Event(), []

    def one(item: Item) -> None:
        if stop.is_set():
            return
        try:
            work(item, stop)
        except BaseException as error:
            errors.append(error)
            stop.set()

    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        try:
            wait([pool.submit(one, item) for item in items])
        finally:
            stop.set()
    if errors:
        raise errors[0]
