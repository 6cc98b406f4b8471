"""The cache: a version's folder appears in it with one rename, when every byte was verified.

cache/four-domains/v3-0123456789abcdef/     a whole version; its name holds its manifest's SHA-256
cache/four-domains/.work/v3-0123…/          what is fetched so far; the next pull takes it up
cache/four-domains/.locks/v3-0123…          held by whoever pulls this version
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from pathlib import Path

from labkit.serve.registry import disk, published
from labkit.serve.registry.fetch import fetch, part_name
from labkit.serve.registry.manifest import Shard, Version
from labkit.serve.registry.meter import Meter, Say
from labkit.serve.registry.plan import CHUNK
from labkit.serve.registry.small_disk import Write, plainly
from labkit.serve.registry.store import Store
from labkit.serve.registry.together import together

THREADS = 4


class Cache:
    """A folder of pulled versions; many processes may use it at once.

    Args:
        folder: made with the first pull.
        write: how bytes come into its files; see `Registry.pull`.
    """

    def __init__(self, folder: Path, write: Write = plainly) -> None:
        self.folder, self._write = folder.expanduser().absolute(), write

    def pull(self, store: Store, version: Version, say: Say | None) -> Path:
        """Bring a version here, verified; see `Registry.pull`."""
        model, place = self.folder / version.name, f"{version.id}-{version.sha256[:16]}"
        for part in (".work", ".locks"):
            disk.make_folder(self.folder, model / part)
        whole, work = model / place, model / ".work" / place
        with disk.locked(model / ".locks" / place):
            meter = Meter(version.bytes, say)
            there = disk.is_folder(whole)
            wanted = self._damaged(whole, version, meter) if there else list(version.files)
            if wanted:
                self._need_room(version, work, wanted)
                self._fill(store, version, work, wanted, meter)
                self._show(work, whole, wanted, there)
            if work.exists():
                shutil.rmtree(work)
        return whole

    def _damaged(self, whole: Path, version: Version, meter: Meter) -> list[Shard]:
        """The shards of a version here that are not as they should be; files that are no part of it are removed."""
        disk.remove_strangers(whole, {shard.path for shard in version.files})
        wanted = []
        for shard in version.files:
            if _is_whole(whole, shard):
                meter.add(shard.bytes, f"{shard.path} is here already")
            else:
                wanted.append(shard)
        return wanted

    def _fill(self, store: Store, version: Version, work: Path, wanted: list[Shard], meter: Meter) -> None:
        disk.make_folder(self.folder, work / "parts")
        disk.make_folder(self.folder, work / "tree")

        def bring(shard: Shard, stop: threading.Event) -> None:
            tree = work / "tree"
            if _is_whole(tree, shard):
                meter.add(shard.bytes, f"{shard.path} is here already")
                return
            part = work / "parts" / part_name(shard)
            key = published.shard_key(version.name, shard.sha256)
            fetch(store, key, shard, part, lambda count: meter.add(count, f"fetching {shard.path}"), stop, self._write)
            if not stop.is_set():
                disk.make_folder(tree, (tree / shard.path).parent)
                os.replace(part, tree / shard.path)

        together(bring, wanted, THREADS)

    def _show(self, work: Path, whole: Path, wanted: list[Shard], there: bool) -> None:
        tree = work / "tree"
        disk.remove_strangers(tree, {shard.path for shard in wanted})
        if there:  # file by file: each is damaged or whole, never half
            for shard in wanted:
                disk.make_folder(whole, (whole / shard.path).parent)
                os.replace(tree / shard.path, whole / shard.path)
                disk.sync_folder((whole / shard.path).parent)
        else:
            disk.sync_tree(tree)
            os.rename(tree, whole)
        disk.sync_folder(whole.parent)

    def _need_room(self, version: Version, work: Path, wanted: list[Shard]) -> None:
        here = sum(path.stat().st_size for path in disk.files(work))
        need, room = sum(shard.bytes for shard in wanted) - here, shutil.disk_usage(self.folder).free
        if need > room:
            raise OSError(
                errno.ENOSPC,
                f"{version.name}@{version.id} needs {need / 1e6:,.1f} MB more in {self.folder}, where "
                f"{room / 1e6:,.1f} MB are free; make room, or give another cache, and pull again",
            )


def _is_whole(root: Path, shard: Shard) -> bool:
    path = root / shard.path
    if not disk.is_plain(root, path) or os.lstat(path).st_size != shard.bytes:
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == shard.sha256
