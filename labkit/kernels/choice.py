"""What a dispatcher decided, and the hook by which a test or a learner decides instead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """The implementation that will run, and the reason in words."""

    name: str
    reason: str


class Forced:
    """The implementation that must run, in this thread or task, or None; `what` says of which dispatcher."""

    def __init__(self, what: str) -> None:
        self._name: ContextVar[str | None] = ContextVar(f"labkit_forced_{what}", default=None)

    @property
    def name(self) -> str | None:
        """What is forced now."""
        return self._name.get()

    @contextlib.contextmanager
    def to(self, name: str) -> Iterator[None]:
        """Force an implementation inside the block.

        >>> forced = Forced("example")
        >>> with forced.to("loop"):
        ...     forced.name
        'loop'
        """
        token = self._name.set(name)
        try:
            yield
        finally:
            self._name.reset(token)
