"""A few threads over a list: the first error stops all of them and is the one that is raised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")


def together(work: Callable[[Item, threading.Event], None], items: Sequence[Item], threads: int) -> None:
    """Do `work(item, stop)` for every item, `threads` at a time.

    Work that takes long looks at `stop` now and then and returns when it is set. Raises the first item's error, in the
    order of the list, once all threads have ended; an interrupt from the keyboard stops them too.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        futures = [pool.submit(_unless, stop, work, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            if any(future.done() and future.exception() for future in futures) or not all(f.done() for f in futures):
                stop.set()
    for future in futures:
        future.result()


def _unless(stop: threading.Event, work: Callable[[Item, threading.Event], None], item: Item) -> None:
    if not stop.is_set():
        work(item, stop)
