"""Who needs what: a publisher's hold on shards, and the one collector that may remove any.

A publisher writes down what it needs, then looks whether a collection runs, and waits until it is over. A collector
writes down that it runs, then looks who needs what. Whichever wrote second sees the other (Dekker's order of store and
load), so nothing that a publisher has found in the store is removed before its manifest is there.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from labkit.serve.registry.errors import Damaged, Lost, Missing
from labkit.serve.registry.manifest import MANIFEST_BYTES, read_table
from labkit.serve.registry.store import Store

HEARTBEAT = 300.0  # seconds after which a hold is written again, so that it is seen to live
BEAT, DEAD = 10.0, 60.0  # a collector is heard of every BEAT seconds; unheard of for DEAD, its place is free
POLL = 0.2


class Hold:
    """A publisher's hold; `beat` keeps it alive through a long upload."""

    def __init__(self, store: Store, key: str, data: bytes) -> None:
        self._store, self._key, self._data = store, key, data
        self._write()

    def _write(self) -> None:
        self._store.write(self._key, self._data)
        self._written = time.monotonic()

    def beat(self) -> None:
        """Write the hold again if that was long ago."""
        if time.monotonic() - self._written > HEARTBEAT:
            self._write()

    def end(self) -> None:
        """Let go."""
        self._store.delete(self._key)


@contextmanager
def holding(
    store: Store, name: str, *, shards: Iterable[str] = (), versions: Iterable[str] = (), keep: bool = False
) -> Iterator[Hold]:
    """Hold shards (SHA-256, hex) and versions (ids) of a model, so that no collection removes them meanwhile.

    With `keep` an error leaves the hold behind: what an interrupted upload has sent stays for the collector's grace.
    """
    table = {"shards": sorted(set(shards)), "versions": sorted(set(versions)), "hold": uuid.uuid4().hex}
    hold = Hold(store, f"{name}/holds/{table['hold']}.json", json.dumps(table).encode())
    try:
        _await_no_collector(store, name)
        yield hold
    except BaseException:
        if not keep:
            hold.end()
        raise
    hold.end()


def held(store: Store, name: str, since: float) -> tuple[set[str], set[str]]:
    """The shards and the versions that holds written after `since` (the store's clock) name; older ones are removed."""
    shards: set[str] = set()
    versions: set[str] = set()
    for each in list(store.keys(f"{name}/holds/")):
        if each.modified < since:
            store.delete(each.key)
            continue
        try:
            table = read_table(store.read(each.key, MANIFEST_BYTES)[0], each.key)
        except Missing:  # let go since it was listed
            continue
        if not all(isinstance(table.get(kind), list) for kind in ("shards", "versions")):
            raise Damaged(
                f"{each.key} in {store.uri} is no hold; nothing is removed. Remove that object, then try again"
            )
        shards |= set(table["shards"])
        versions |= set(table["versions"])
    return shards, versions


class Collector:
    """The one collector of a model at a time; `beat` says that it lives, and raises Lost if its place was taken."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._key = store, _place(name)
        self._owner, self._count = uuid.uuid4().hex, 0
        _await_no_collector(store, name)
        place = _look(store, self._key)
        try:
            self._tag = store.write(self._key, self._data(), absent=place is None, tag=place[1] if place else "")
        except Lost as error:
            raise Lost(f"another collection of {name} has just begun; try again when it is over") from error
        self._beaten = time.monotonic()

    def _data(self) -> bytes:
        return json.dumps({"owner": self._owner, "beat": self._count}).encode()

    def started(self) -> float:
        """When it wrote that it runs, by the store's clock."""
        found = self._store.stat(self._key)
        assert found is not None
        return found.modified

    def beat(self) -> None:
        """Say that it lives, if that was some seconds ago."""
        if time.monotonic() - self._beaten < BEAT:
            return
        self._count += 1
        try:
            self._tag = self._store.write(self._key, self._data(), tag=self._tag)
        except Lost as error:
            raise Lost(
                "this collection was not heard of for a minute and others go on without it; run it again"
            ) from error
        self._beaten = time.monotonic()

    def end(self) -> None:
        """Say that it is over."""
        self._store.write(self._key, _free(), tag=self._tag)


def _place(name: str) -> str:
    return f"{name}/collecting.json"


def _free() -> bytes:
    return json.dumps({"owner": "", "beat": 0, "free": uuid.uuid4().hex}).encode()


def _look(store: Store, key: str) -> tuple[dict[str, Any], str] | None:
    try:
        data, tag = store.read(key, MANIFEST_BYTES)
    except Missing:
        return None
    return read_table(data, key), tag


def _await_no_collector(store: Store, name: str) -> None:
    seen, since = "", time.monotonic()
    while (place := _look(store, _place(name))) is not None and place[0].get("owner"):
        if place[1] != seen:
            seen, since = place[1], time.monotonic()
        elif time.monotonic() - since > DEAD:
            try:
                store.write(_place(name), _free(), tag=seen)
            except Lost:
                continue
        time.sleep(POLL)
