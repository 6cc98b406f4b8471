"""The load of one child after the other, told as that of one engine: what is counted only grows."""

from __future__ import annotations

from dataclasses import replace

from labkit.serve.scheduler.step import Load

COUNTED = (
    "steps", "computed_tokens", "queried_tokens", "cached_tokens", "preemptions", "evictions", "finished", "cancelled",
)  # fmt: skip


class Loads:
    """What was last heard, and what the dead have counted.

    >>> loads = Loads()
    >>> loads.ready(blocks=4)
    >>> loads.heard(replace(loads.told(), running=2, free_blocks=1, steps=7))
    >>> loads.died()
    >>> loads.told(waiting=2, tokens=30)
    Load(waiting=2, waiting_tokens=30, running=0, blocks=4, free_blocks=4, kept_blocks=0, steps=7, ...)
    """

    def __init__(self) -> None:
        self._now = Load(0, 0, 0, 0, 0, 0, **dict.fromkeys(COUNTED, 0))
        self._past = dict.fromkeys(COUNTED, 0)

    def ready(self, blocks: int) -> None:
        """A child has loaded, with so many blocks."""
        self._now = replace(self._now, blocks=blocks, free_blocks=blocks)

    def heard(self, load: Load) -> None:
        """A child's own."""
        self._now = load

    def died(self) -> None:
        """It holds nothing any more."""
        for name in COUNTED:
            self._past[name] += getattr(self._now, name)
        blocks = self._now.blocks
        self._now = Load(0, 0, 0, blocks, blocks, 0, **dict.fromkeys(COUNTED, 0))

    def told(self, waiting: int = 0, tokens: int = 0) -> Load:
        """All together, with requests (and their tokens) that wait outside of the child."""
        now = self._now
        counted = {name: past + getattr(now, name) for name, past in self._past.items()}
        return replace(now, waiting=now.waiting + waiting, waiting_tokens=now.waiting_tokens + tokens, **counted)
