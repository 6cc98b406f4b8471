"""Collection: versions that nothing names any more are removed, then the shards that no version needs."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.core.whole import need_whole
from labkit.serve.registry import aliases, published
from labkit.serve.registry.errors import Damaged, Lost, Missing
from labkit.serve.registry.holds import HEARTBEAT, Collector, held
from labkit.serve.registry.manifest import MANIFEST_BYTES, Version
from labkit.serve.registry.store import Store

GRACE = 24 * 3600.0
LEAST_GRACE = 6 * HEARTBEAT


@dataclass(frozen=True)
class Collected:
    """What a collection removed: versions' ids, how many shards with how many bytes, how many unfinished uploads."""

    versions: tuple[str, ...]
    shards: int
    bytes: int
    uploads: int

    def __str__(self) -> str:
        what = ", ".join(self.versions) or "no version"
        return f"{what}; {self.shards} shards with {self.bytes / 1e6:,.1f} MB, {self.uploads} unfinished uploads"


def collect(store: Store, name: str, keep: int, grace: float, dry: bool) -> Collected:
    """Remove what nothing needs; see `Registry.collect`."""
    need_whole("keep", keep, least=0)
    if not grace >= LEAST_GRACE:
        raise ValueError(
            f"grace is {grace}; give {LEAST_GRACE:.0f} seconds or more: a publisher is heard of every {HEARTBEAT:.0f}"
        )
    collector = Collector(store, name)
    try:
        return _collect(store, name, keep, grace, dry, collector)
    finally:
        collector.end()


def _collect(store: Store, name: str, keep: int, grace: float, dry: bool, collector: Collector) -> Collected:
    since = collector.started() - grace
    # In this order: what lets go of its hold meanwhile has its alias or its manifest written before.
    shards, ids = held(store, name, since)
    for alias in aliases.read_all(store, name).values():
        ids |= alias.kept
    kept, doomed = _sorted(store, name, keep, ids)
    if not dry:
        for id, version in doomed.items():
            collector.beat()
            _remove(store, name, id, version)
    shards |= {shard.sha256 for version in kept for shard in version.files}
    count = size = 0
    for each in list(store.keys(f"{name}/blobs/")):
        if each.key.rsplit("/", 1)[1] not in shards:
            count, size = count + 1, size + each.bytes
            collector.beat()
            if not dry:
                store.delete(each.key)
    uploads = [
        u for u in store.unfinished(f"{name}/blobs/") if u.modified < since and u.key.rsplit("/", 1)[1] not in shards
    ]
    for upload in uploads if not dry else ():
        collector.beat()
        store.abandon(upload)
    return Collected(tuple(doomed), count, size, len(uploads))


def _sorted(store: Store, name: str, keep: int, ids: set[str]) -> tuple[list[Version], dict[str, Version | None]]:
    kept: list[Version] = []
    doomed: dict[str, Version | None] = {}
    for number in reversed(published.numbers(store, name)):
        id = f"v{number}"
        stays = id in ids or len(kept) < keep
        try:
            version = published.version(store, name, id)
        except Missing:
            continue
        except Damaged as error:
            if stays:
                raise Damaged(f"nothing was removed, as what {name}@{id} needs cannot be told: {error}") from error
            version = None
        if version is not None and stays:
            kept.append(version)
        else:
            doomed[id] = version
    return kept, dict(reversed(doomed.items()))


def _remove(store: Store, name: str, id: str, version: Version | None) -> None:
    data, tag = store.read(published.key(name, id), MANIFEST_BYTES)
    if version is not None and data != version.json():
        raise Lost(f"{name}@{id} was changed while it was being removed; run the collection again")
    store.write(published.key(name, id), published.remains(version), tag=tag)
