"""A folder becomes a version: hashed, sent, and named last, so that a version is whole or not there."""

from __future__ import annotations

import os
import threading
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from labkit.serve.registry import names, published
from labkit.serve.registry.errors import Lost
from labkit.serve.registry.holds import Hold, holding
from labkit.serve.registry.manifest import MANIFEST_BYTES, Shard, Version
from labkit.serve.registry.meter import Meter, Say
from labkit.serve.registry.plan import Plan, plan
from labkit.serve.registry.store import Store
from labkit.serve.registry.together import together

THREADS = 2  # files; each of them is sent in several parts at a time
TRIES = 100  # of finding a free number among publishers who all publish at once


@dataclass(frozen=True)
class Content:
    """What a folder holds: files by their path in the version, and what is left out as its name begins with '.'."""

    files: dict[str, Path]
    left_out: tuple[str, ...]


def content(folder: Path | str) -> Content:
    """Look through a folder.

    Links to files are followed (a download cache is made of them), links to folders are not.

    Raises ValueError for an empty folder, a link to a folder, anything that is no file, and a name that is not safe
    everywhere; FileNotFoundError if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the folder of a model, as `labkit train` writes it")
    files: dict[str, Path] = {}
    left_out: list[str] = []
    for path in _walk(folder, left_out, folder):
        files[names.need_path(path.relative_to(folder).as_posix())] = path
    if not files:
        raise ValueError(f"{folder} holds no file to publish; give the folder of a model")
    names.need_distinct(list(files))
    return Content(files, tuple(left_out))


def _walk(folder: Path, left_out: list[str], root: Path) -> list[Path]:
    found: list[Path] = []
    for entry in sorted(os.scandir(folder), key=lambda each: each.name):
        path = Path(entry.path)
        if entry.name.startswith("."):
            left_out.append(path.relative_to(root).as_posix())
        elif entry.is_dir():
            if entry.is_symlink():
                raise ValueError(f"{path} is a link to a folder; put the folder itself in its place, or take it away")
            found += _walk(path, left_out, root)
        elif entry.is_file():
            found.append(path)
        else:
            raise ValueError(f"{path} is no file that can be read; take it away, then push again")
    return found


def publish(store: Store, name: str, folder: Path | str, note: str, say: Say | None) -> Version:
    """Send a folder's files and write the manifest of the next free version; see `Registry.push`."""
    files = content(folder).files
    sizes = sum(path.stat().st_size for path in files.values())
    meter = Meter(2 * sizes, say)  # every byte is read once for its hash and sent once
    plans = {
        path: plan(source, store.part_bytes, lambda count, path=path: meter.add(count, f"hashing {path}"))
        for path, source in files.items()
    }
    shards = tuple(Shard(path, each.bytes, each.sha256) for path, each in sorted(plans.items()))
    draft = Version(name, "v1", shards, note, datetime.now(UTC).isoformat(timespec="seconds"), uuid.uuid4().hex)
    if len(draft.json()) > MANIFEST_BYTES - 100:
        raise ValueError(f"the manifest would have over {MANIFEST_BYTES} bytes; publish fewer files or shorter names")
    with holding(store, name, shards=(shard.sha256 for shard in shards), keep=True) as hold:
        _send(store, name, plans, hold, meter)
        version = _write_manifest(store, draft)
        _send(store, name, plans, hold, Meter(0, None))  # nothing is sent unless somebody removed a shard by hand
    return version


def _send(store: Store, name: str, plans: dict[str, Plan], hold: Hold, meter: Meter) -> None:
    distinct = {each.sha256: (path, each) for path, each in plans.items()}
    for path, each in plans.items():
        if distinct[each.sha256][0] != path:
            meter.add(each.bytes, f"{path} is there already")

    def send(item: tuple[str, Plan], stop: threading.Event) -> None:
        path, each = item

        def sent(count: int) -> None:
            hold.beat()
            meter.add(count, f"sending {path}")

        key = published.shard_key(name, each.sha256)
        if store.holds(key, each):
            meter.add(each.bytes, f"{path} is there already")
        else:
            store.upload(key, each, sent)

    together(send, list(distinct.values()), THREADS)


def _write_manifest(store: Store, draft: Version) -> Version:
    """The loser of a race for a number takes the next one."""
    for _ in range(TRIES):
        taken = published.numbers(store, draft.name)
        id = f"v{(taken[-1] if taken else 0) + 1}"
        version = Version(draft.name, id, draft.files, draft.note, draft.created, draft.push)
        try:
            store.write(published.key(draft.name, id), version.json(), absent=True)
        except Lost:
            continue
        return version
    raise Lost(f"no free number for {draft.name} was found in {TRIES} tries; too many publish at once. Push again")
