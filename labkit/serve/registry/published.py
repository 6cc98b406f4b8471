"""The versions that lie in a store: found, read, named, and marked as gone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from labkit.serve.registry import aliases, names
from labkit.serve.registry.errors import Damaged, Missing
from labkit.serve.registry.manifest import MANIFEST_BYTES, Version, read, read_table
from labkit.serve.registry.store import Store


def key(name: str, id: str) -> str:
    """Where a manifest lies."""
    return f"{name}/versions/{id}.json"


def shard_key(name: str, sha256: str) -> str:
    """Where a shard's bytes lie."""
    return f"{name}/blobs/{sha256}"


def numbers(store: Store, name: str) -> list[int]:
    """The numbers that are taken, of living versions and of removed ones."""
    found = (re.fullmatch(r".*/v([1-9][0-9]{0,8})\.json", each.key) for each in store.keys(f"{name}/versions/"))
    return sorted(int(match[1]) for match in found if match)


def version(store: Store, name: str, id: str) -> Version:
    """A version by its id. Raises Missing if it was never there or was removed, Damaged if it cannot be believed."""
    data = _manifest(store, name, id)
    if data is None:
        raise Missing(f"there is no {name}@{id} in {store.uri}; {_others(store, name)}")
    if when := gone(data):
        raise Missing(f"{name}@{id} was removed by a collection ({when}); {_others(store, name)}")
    return read(data, name, id)


def _manifest(store: Store, name: str, id: str) -> bytes | None:
    try:
        return store.read(key(name, id), MANIFEST_BYTES)[0]
    except Missing:
        return None


def gone(data: bytes) -> str:
    """When a version was removed, if this is what is left of it; else ''."""
    if len(data) > 400:
        return ""
    try:
        table = read_table(data, "")
    except Damaged:
        return ""
    return str(table["gone"]) if table.keys() == {"gone", "sha256"} else ""


def remains(version: Version | None) -> bytes:
    """What is left in a removed version's place, so that its number is never given again."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"gone": now, "sha256": version.sha256 if version else ""}).encode()


def living(store: Store, name: str) -> Iterator[tuple[str, bytes]]:
    """The ids and manifests of the versions that were not removed, the newest first; nothing in them was checked."""
    for number in reversed(numbers(store, name)):
        data = _manifest(store, name, f"v{number}")
        if data is not None and not gone(data):
            yield f"v{number}", data


def resolve(store: Store, name: str, ref: str) -> Version:
    """A version by id, by alias, or `latest`.

    Raises Missing, saying what there is, and Damaged if an alias's manifest is not the one that it was set to.
    """
    if ref == names.LATEST:
        newest = next(living(store, name), None)
        if newest is None:
            raise Missing(f"there is no version of {name} in {store.uri}; {_models(store)}")
        return read(newest[1], name, newest[0])
    if names.is_version(ref):
        return version(store, name, ref)
    pin = aliases.read(store, name, names.need_alias(ref))[0].now
    if pin is None:
        set_ones = [each.name for each in aliases.read_all(store, name).values() if each.now]
        has = f"aliases are {', '.join(sorted(set_ones))}" if set_ones else "no alias is set"
        raise Missing(f"there is no alias {ref} of {name} in {store.uri}; {has}, and {_others(store, name)}")
    return pinned(store, name, pin)


def pinned(store: Store, name: str, pin: aliases.Pin) -> Version:
    """The version that a pin names, or Damaged if its manifest is another than when the pin was made."""
    found = version(store, name, pin.id)
    if found.sha256 != pin.sha256:
        raise Damaged(
            f"the manifest of {name}@{pin.id} is not the one that was published (sha256 {found.sha256[:12]}…, expected "
            f"{pin.sha256[:12]}…); do not use it: set the alias to another version, or roll it back"
        )
    return found


def _others(store: Store, name: str) -> str:
    ids = [id for id, _ in living(store, name)]
    if not ids:
        return f"there is no version of {name}; {_models(store)}"
    return f"there {'is' if len(ids) == 1 else 'are'} {', '.join(reversed(ids[:10]))}"


def _models(store: Store) -> str:
    models = list(store.folders())
    return f"models there: {', '.join(models[:20])}" if models else "the store is empty, push a model first"
