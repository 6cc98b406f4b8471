"""Shards that were altered, cut, or taken away, in the store or in the cache; and a disk that is full."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil

import pytest
from registry_stores import PART, STORES, contents, make_model

from labkit.serve.registry import Damaged, Registry, SmallDisk, fetch
from labkit.serve.registry.folder_store import FolderStore


@pytest.fixture(params=STORES)
def registry(request, tmp_path):
    with STORES[request.param](tmp_path) as made:
        yield made


@pytest.fixture
def pushed(registry, tmp_path):
    folder = tmp_path / "model"
    files = make_model(folder, 0, registry.store.part_bytes)
    return folder, files, registry.push("m", folder)


def key_of(version, path):
    (shard,) = (each for each in version.files if each.path == path)
    return f"m/blobs/{shard.sha256}"


def flipped(data: bytes) -> bytes:
    at = random.Random(len(data)).randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


HARM = {
    "one bit": flipped,
    "cut": lambda data: data[:-1],
    "emptied": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "another": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("harm", HARM)
def test_an_altered_shard_is_refused_named_and_mended_by_another_push(registry, pushed, tmp_path, harm):
    folder, files, version = pushed
    path = "model-0.safetensors"
    cache = tmp_path / "cache"
    registry.store.write(key_of(version, path), HARM[harm](files[path]))
    with pytest.raises(Damaged, match=path):
        registry.pull("m", "v1", cache)
    assert [each.name for each in (cache / "m").iterdir() if each.name[0] != "."] == []
    registry.push("m", folder)
    for ref in ("v1", "v2"):
        assert contents(registry.pull("m", ref, cache)) == files


def test_a_missing_shard_is_refused_named_and_mended_by_another_push(registry, pushed, tmp_path):
    folder, files, version = pushed
    registry.store.delete(key_of(version, "config.json"))
    with pytest.raises(Damaged, match=r"config.json .* is missing"):
        registry.pull("m", "v1", tmp_path / "cache")
    registry.push("m", folder)
    assert contents(registry.pull("m", "v1", tmp_path / "cache")) == files


def test_a_version_that_is_here_serves_on_when_the_store_is_damaged(registry, pushed, tmp_path):
    _, files, version = pushed
    whole = registry.pull("m", "v1", tmp_path / "cache")
    registry.store.delete(key_of(version, "config.json"))
    assert registry.pull("m", "v1", tmp_path / "cache") == whole
    assert contents(whole) == files


def test_a_damaged_cache_is_mended(registry, pushed, tmp_path):
    _, files, _ = pushed
    cache = tmp_path / "cache"
    whole = registry.pull("m", "v1", cache)
    (whole / "config.json").write_bytes(flipped(files["config.json"]))
    (whole / "model-0.safetensors").unlink()
    (whole / "text/extra.py").write_text("never published")
    fresh = []
    registry.pull("m", "v1", cache, on_progress=lambda share, what: fresh.append(what))
    assert contents(whole) == files
    assert {what for what in fresh if what.startswith("fetching")} == {
        "fetching config.json",
        "fetching model-0.safetensors",
    }


def test_what_an_interrupted_pull_left_is_not_believed(registry, pushed, tmp_path, monkeypatch):
    _, files, version = pushed
    cache = tmp_path / "cache"
    work = cache / "m/.work" / f"v1-{version.sha256[:16]}"
    monkeypatch.setattr(shutil, "rmtree", lambda *_: None)
    whole = registry.pull("m", "v1", cache)
    shutil.copytree(whole, work / "tree")
    for path in (work / "tree").rglob("*.*"):
        path.write_bytes(flipped(path.read_bytes() or b"\0"))
    (work / "tree/stranger.py").write_text("")
    for each in sorted(whole.rglob("*"), reverse=True):
        each.unlink() if each.is_file() else each.rmdir()
    whole.rmdir()
    for shard in version.files:
        (work / "parts" / fetch.part_name(shard)).write_bytes(flipped(files[shard.path] or b"\0"))
    monkeypatch.undo()
    assert contents(registry.pull("m", "v1", cache)) == files


@pytest.fixture
def folder_pushed(tmp_path):
    files = make_model(tmp_path / "model")
    registry = Registry(FolderStore(tmp_path / "store", part_bytes=PART))
    registry.push("m", tmp_path / "model")
    return registry, files


@pytest.mark.parametrize("left", [0, 1, PART, 3 * PART])
def test_a_disk_that_fills_up_is_said_and_the_pull_goes_on_later(folder_pushed, tmp_path, left):
    registry, files = folder_pushed
    cache, small, roomy = tmp_path / "cache", SmallDisk(left), SmallDisk(10**9)
    with pytest.raises(OSError, match="make room and pull again") as caught:
        registry.pull("m", "v1", cache, write=small)
    assert caught.value.errno == errno.ENOSPC
    assert [each.name for each in (cache / "m").iterdir() if each.name[0] != "."] == []
    assert contents(registry.pull("m", "v1", cache, write=roomy)) == files
    assert small.written == left
    assert small.written + roomy.written == sum(map(len, files.values())), "what was fetched is not fetched again"


def test_too_little_room_is_said_before_anything_is_fetched(folder_pushed, tmp_path, monkeypatch):
    registry, files = folder_pushed
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match=r"needs 0\.1 MB more .* give another cache") as caught:
            registry.pull("m", "v1", tmp_path / "cache")
    assert caught.value.errno == errno.ENOSPC
    assert contents(registry.pull("m", "v1", tmp_path / "cache")) == files


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 96 KiB, where this machine lets us make one."""
    disk, libc = tmp_path / "disk", ctypes.CDLL(None, use_errno=True)
    disk.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"size=98304") != 0:
        pytest.skip(f"no file system can be made here: {os.strerror(ctypes.get_errno())}")
    yield disk
    libc.umount2(os.fsencode(disk), 2)


def test_a_really_full_disk(folder_pushed, tiny_disk, monkeypatch):
    registry, files = folder_pushed
    (tiny_disk / "ballast").write_bytes(bytes(65536))
    free = shutil.disk_usage(tiny_disk)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match="make room and pull again"):
        registry.pull("m", "v1", tiny_disk / "cache")
    assert [each.name for each in (tiny_disk / "cache/m").iterdir() if each.name[0] != "."] == []
    (tiny_disk / "ballast").unlink()
    assert contents(registry.pull("m", "v1", tiny_disk / "cache")) == files


def test_a_full_store_keeps_its_versions(tiny_disk, tmp_path):
    registry = Registry(FolderStore(tiny_disk / "store", part_bytes=PART))
    make_model(tmp_path / "small", 0, 1000)
    registry.push("m", tmp_path / "small")
    make_model(tmp_path / "large", 1, 2 * PART)
    with pytest.raises(OSError) as caught:
        registry.push("m", tmp_path / "large")
    assert caught.value.errno == errno.ENOSPC
    assert registry.ids("m") == ["v1"]
    registry.pull("m", "v1", tmp_path / "cache")
