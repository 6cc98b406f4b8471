"""What a store must be able to do; the rest of the registry is written against this and knows no other difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from labkit.serve.registry.plan import Plan

Sent = Callable[[int], None]


@dataclass(frozen=True)
class Object:
    """An object in a store: its key, its size in bytes, and when it was written (seconds, by the store's clock)."""

    key: str
    bytes: int
    modified: float


@dataclass(frozen=True)
class Unfinished:
    """An upload that was begun: the key that it will have, the store's name of it, when it was last heard of."""

    key: str
    id: str
    modified: float


class Store(Protocol):
    """Keys are relative paths with `/`, made by the registry out of checked names.

    Every method may raise Interrupted if the store cannot be reached.
    """

    uri: str
    part_bytes: int

    def read(self, key: str, limit: int) -> tuple[bytes, str]:
        """A small object and its tag; Missing if it is not there, Damaged if it has more than `limit` bytes."""

    def write(self, key: str, data: bytes, *, absent: bool = False, tag: str = "") -> str:
        """Write a small object whole and return its tag.

        Raises Lost if `absent` and something is there, or if `tag` is given and is not that of what is there.
        """

    def stat(self, key: str) -> Object | None:
        """The object with a key, or None."""

    def keys(self, prefix: str) -> Iterator[Object]:
        """The objects whose keys begin with a prefix, which ends in `/`."""

    def folders(self) -> Iterator[str]:
        """The first parts of all keys."""

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if it is not there."""

    def stream(self, key: str, start: int) -> Iterator[bytes]:
        """The bytes of an object from `start` on; Missing if it is not there."""

    def holds(self, key: str, plan: Plan) -> bool:
        """Whether the object is there and is, byte by byte, what the plan says."""

    def upload(self, key: str, plan: Plan, sent: Sent) -> None:
        """Send a file; parts of an earlier attempt that lie there whole are not sent again.

        `sent` hears of every part's bytes, those that were there already too.
        """

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        """The uploads that were begun below a prefix and not finished."""

    def abandon(self, upload: Unfinished) -> None:
        """Drop an unfinished upload; nothing happens if it is gone."""
