"""An alias: what it names, what it named before, and every move that it made; changed by compare-and-swap alone."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from labkit.serve.registry import names
from labkit.serve.registry.errors import Damaged, Lost, Missing, Moved
from labkit.serve.registry.manifest import MANIFEST_BYTES, SHA256, read_table
from labkit.serve.registry.store import Store

BEFORE, MOVES = 100, 1000  # how many versions to go back to, and moves, are remembered


@dataclass(frozen=True)
class Pin:
    """A version by its id and the SHA-256 of its manifest, so that an alias never follows an altered one."""

    id: str
    sha256: str


@dataclass(frozen=True)
class Move:
    """One move of an alias: when (UTC), how (`alias`, `rollback` or `remove`), and what it named then ('' for none)."""

    when: str
    how: str
    id: str


@dataclass(frozen=True)
class Alias:
    """An alias's whole record.

    Args:
        model, name: of which model, and what it is called.
        now: what it names; None if it was removed.
        before: what `rollback` goes back to, the newest last.
        moves: oldest first.
    """

    model: str
    name: str
    now: Pin | None = None
    before: tuple[Pin, ...] = ()
    moves: tuple[Move, ...] = ()

    @property
    def id(self) -> str:
        """The id that it names, '' for none."""
        return self.now.id if self.now else ""

    @property
    def kept(self) -> set[str]:
        """The ids that must not be collected: what it names and what a rollback would."""
        return {pin.id for pin in (self.now, *self.before[-1:]) if pin}

    def to(self, pin: Pin | None) -> Alias:
        """Moved to another version, or to none."""
        before = (*self.before, self.now)[-BEFORE:] if self.now else self.before
        return Alias(self.model, self.name, pin, before, self._moved("alias" if pin else "remove", pin))

    def back(self) -> Alias:
        """Moved back to what it named before."""
        if not self.before:
            raise Missing(
                f"{self.model}@{self.name} has named nothing before {self.id or 'this'}; name a version instead"
            )
        return Alias(self.model, self.name, self.before[-1], self.before[:-1], self._moved("rollback", self.before[-1]))

    def _moved(self, how: str, pin: Pin | None) -> tuple[Move, ...]:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return (*self.moves, Move(now, how, pin.id if pin else ""))[-MOVES:]

    def json(self) -> bytes:
        """As it is stored; no two writings are the same, so that a compare-and-swap cannot mistake one for another."""
        table = {
            "now": _listed(self.now) if self.now else None,
            "before": [_listed(pin) for pin in self.before],
            "moves": [[move.when, move.how, move.id] for move in self.moves],
            "written": uuid.uuid4().hex,
        }
        return json.dumps(table, indent=1).encode()


def _listed(pin: Pin) -> list[str]:
    return [pin.id, pin.sha256]


def read(store: Store, model: str, name: str) -> tuple[Alias, str]:
    """An alias and the tag of its record; an empty one and '' if there is none."""
    key = f"{model}/aliases/{name}.json"
    try:
        data, tag = store.read(key, MANIFEST_BYTES)
    except Missing:
        return Alias(model, name), ""
    table = read_table(data, f"{key} in {store.uri}")
    try:
        now = _pin(table["now"]) if table["now"] is not None else None
        moves = tuple(Move(*map(str, each)) for each in table["moves"])
        return Alias(model, name, now, tuple(_pin(each) for each in table["before"]), moves), tag
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{key} in {store.uri} is no alias as the registry writes it; set {model}@{name} anew") from error


def _pin(pair: list[str]) -> Pin:
    id, sha256 = pair
    if not names.is_version(id) or not SHA256.fullmatch(sha256):
        raise ValueError(f"{pair!r} names no version")
    return Pin(id, sha256)


def read_all(store: Store, model: str) -> dict[str, Alias]:
    """Every alias of a model by name, removed ones too."""
    found = {}
    for each in store.keys(f"{model}/aliases/"):
        name = each.key.rsplit("/", 1)[1].removesuffix(".json")
        found[name] = read(store, model, names.need_alias(name))[0]
    return found


def swap(store: Store, alias: Alias, tag: str) -> None:
    """Write an alias if its record is still the one with the tag; Lost if not."""
    store.write(f"{alias.model}/aliases/{alias.name}.json", alias.json(), absent=not tag, tag=tag)


def need(alias: Alias, expect: str | None) -> None:
    """Raise Moved unless an alias names what was expected; None expects nothing, '' that it names none."""
    if expect is not None and alias.id != expect:
        raise Moved(
            f"{alias.model}@{alias.name} names {alias.id or 'nothing'}, not {expect or 'nothing'} as expected; "
            "nothing was changed. Look who moved it, then try again"
        )


__all__ = ["Alias", "Lost", "Move", "Pin", "need", "read", "read_all", "swap"]
