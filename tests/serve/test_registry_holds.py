"""What a collection leaves alone: the shards of an upload in progress, and of one that was interrupted not long ago."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
from registry_stores import PART, STORES, contents, make_model

from labkit.serve.registry import Interrupted, Missing, Registry, collect, holds, published
from labkit.serve.registry import registry as module
from labkit.serve.registry.folder_store import FolderStore

HEX = "a" * 64


@pytest.fixture(params=STORES)
def registry(request, tmp_path, monkeypatch):
    monkeypatch.setattr(holds, "POLL", 0.01)
    with STORES[request.param](tmp_path) as made:
        yield made


def shards(registry):
    return {each.key.rsplit("/", 1)[1] for each in registry.store.keys("m/blobs/")}


def test_what_is_held_stays_and_what_was_let_go_does_not(registry, tmp_path):
    make_model(tmp_path / "model", 0, registry.store.part_bytes)
    registry.push("m", tmp_path / "model")
    registry.store.write(f"m/blobs/{HEX}", b"on its way")
    with holds.holding(registry.store, "m", shards=[HEX], versions=["v1"]):
        assert registry.collect("m", keep=0).versions == ()
        assert HEX in shards(registry)
    assert registry.collect("m", keep=1).shards == 1
    assert HEX not in shards(registry)
    assert registry.collect("m", keep=0).versions == ("v1",)
    assert shards(registry) == set()


def test_an_interrupted_push_keeps_what_it_has_sent(registry, tmp_path, monkeypatch):
    files = make_model(tmp_path / "model", 0, registry.store.part_bytes)
    with monkeypatch.context() as patch:
        patch.setattr(registry.store, "write", failing(registry.store.write, "/versions/"), raising=False)
        with pytest.raises(Interrupted):
            registry.push("m", tmp_path / "model")
    there = shards(registry)
    assert len(there) == len(files)
    assert registry.collect("m", keep=0).shards == 0
    assert shards(registry) == there
    assert registry.ids("m") == []
    assert registry.push("m", tmp_path / "model").id == "v1"


def failing(write, where):
    def wrapped(key, data, **more):
        if where in key:
            raise Interrupted("the network failed")
        return write(key, data, **more)

    return wrapped


def test_what_was_interrupted_long_ago_goes(tmp_path):
    store = FolderStore(tmp_path / "store", part_bytes=PART)
    registry = Registry(store)
    make_model(tmp_path / "model")
    registry.push("m", tmp_path / "model")
    (store.root / f"m/blobs/{HEX}").write_bytes(b"begun")
    (store.root / f"m/holds/{HEX}.json").write_text(json.dumps({"shards": [HEX], "versions": []}))
    part = store._part(f"m/blobs/{'b' * 64}")
    part.write_bytes(b"half")
    assert str(registry.collect("m")) == "no version; 0 shards with 0.0 MB, 0 unfinished uploads"
    old = time.time() - 25 * 3600
    for path in (part, store.root / f"m/holds/{HEX}.json"):
        os.utime(path, (old, old))
    assert (registry.collect("m").shards, part.exists(), list(store.keys("m/holds/"))) == (1, False, [])


def test_a_publisher_waits_for_a_collection(registry, tmp_path):
    make_model(tmp_path / "model", 0, registry.store.part_bytes)
    registry.push("m", tmp_path / "model")
    collector = holds.Collector(registry.store, "m")
    other = threading.Thread(target=registry.push, args=("m", tmp_path / "model"))
    other.start()
    while other.is_alive() and not list(registry.store.keys("m/holds/")):
        time.sleep(0.01)
    for _ in range(20):
        assert registry.ids("m") == ["v1"]
    collector.end()
    other.join()
    assert registry.ids("m") == ["v1", "v2"]


def test_an_alias_is_not_set_to_what_a_collection_has_just_removed(registry, tmp_path, monkeypatch):
    make_model(tmp_path / "model", 0, registry.store.part_bytes)
    for _ in range(2):
        registry.push("m", tmp_path / "model")
    found = registry.version("m", "v1")
    resolve = published.resolve

    def late(store, name, ref):
        result = resolve(store, name, ref)
        assert collect.collect(store, name, 1, 10**6, False).versions == ("v1",)
        return result

    monkeypatch.setattr(module.published, "resolve", late)
    with pytest.raises(Missing, match="v1 was removed by a collection"):
        registry.alias("m", "prod", found.id)
    assert registry.aliases("m") == {}


def test_a_shard_that_was_taken_away_before_the_manifest_was_there_is_sent_again(registry, tmp_path, monkeypatch):
    files = make_model(tmp_path / "model", 0, registry.store.part_bytes)
    write = registry.store.write

    def taking(key, data, **more):
        if "/versions/" in key:
            for each in list(registry.store.keys("m/blobs/")):
                registry.store.delete(each.key)
        return write(key, data, **more)

    monkeypatch.setattr(registry.store, "write", taking, raising=False)
    registry.push("m", tmp_path / "model")
    assert contents(registry.pull("m", "v1", tmp_path / "cache")) == files
