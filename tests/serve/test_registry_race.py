"""Several at once: publishers, movers of an alias, pullers; in threads and in processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from registry_stores import STORES, contents, make_model

from labkit.serve.registry import Lost, Moved, Registry, holds
from labkit.serve.registry.folder_store import FolderStore

HERE = Path(__file__).parents[2]


@pytest.fixture(params=STORES)
def registry(request, tmp_path):
    with STORES[request.param](tmp_path) as made:
        yield made


def at_once(count, work):
    """Run `work(n)` in so many threads that start together; what each returned or raised."""
    gate, results = threading.Barrier(count), [None] * count

    def one(n):
        gate.wait()
        try:
            results[n] = work(n)
        except Exception as error:
            results[n] = error

    threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_publishers_at_once_all_win_another_number(registry, tmp_path):
    part = registry.store.part_bytes
    files = [make_model(tmp_path / f"model-{n}", n, part) for n in range(4)]
    got = at_once(4, lambda n: registry.push("m", tmp_path / f"model-{n}", note=str(n)))
    assert sorted(version.id for version in got) == ["v1", "v2", "v3", "v4"]
    for n, version in enumerate(got):
        assert registry.version("m", version.id).note == str(n)
        assert contents(registry.pull("m", version.id, tmp_path / "cache")) == files[n]
    assert list(registry.store.keys("m/holds/")) == []


def test_publishers_of_the_same_bytes_do_not_disturb_each_other(registry, tmp_path):
    files = make_model(tmp_path / "model", 0, registry.store.part_bytes)
    got = at_once(3, lambda n: registry.push("m", tmp_path / "model"))
    assert sorted(version.id for version in got) == ["v1", "v2", "v3"]
    for version in got:
        assert contents(registry.pull("m", version.id, tmp_path / "cache")) == files
    assert list(registry.store.unfinished("m/blobs/")) == [] or registry.store.uri.startswith("s3")


def test_one_of_those_who_expect_the_same_moves_the_alias(registry, tmp_path):
    make_model(tmp_path / "model", 0, registry.store.part_bytes)
    for _ in range(4):
        registry.push("m", tmp_path / "model")
    registry.alias("m", "prod", "v1")
    got = at_once(3, lambda n: registry.alias("m", "prod", f"v{n + 2}", expect="v1"))
    won = [each for each in got if not isinstance(each, Exception)]
    assert len(won) == 1
    assert all(isinstance(each, Moved) for each in got if each not in won)
    assert registry.aliases("m") == {"prod": won[0].id}
    assert registry.rollback("m", "prod").id == "v1"


def test_no_move_of_an_alias_is_forgotten(registry, tmp_path):
    make_model(tmp_path / "model", 0, registry.store.part_bytes)
    for _ in range(2):
        registry.push("m", tmp_path / "model")
    got = at_once(4, lambda n: registry.alias("m", "prod", f"v{n % 2 + 1}"))
    moved = [each for each in got if not isinstance(each, Lost)]
    moves = registry.moves("m", "prod")
    assert 1 <= len(moves) <= len(moved)
    assert moves[-1].id == registry.aliases("m")["prod"]


def test_a_collection_beside_publishers_takes_nothing_that_they_need(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(holds, "POLL", 0.01)
    part = registry.store.part_bytes
    files = make_model(tmp_path / "model", 0, part)
    registry.push("m", tmp_path / "model")
    make_model(tmp_path / "other", 1, part)
    registry.push("m", tmp_path / "other")

    def work(n):
        if n < 2:
            return [registry.push("m", tmp_path / "model").id for _ in range(3)]
        return [registry.collect("m", keep=0) if n == 2 else registry.alias("m", "prod", "latest") for _ in range(3)]

    got = at_once(4, work)
    assert not any(isinstance(each, Exception) for each in got[:2]), got
    for alias, id in registry.aliases("m").items():
        assert contents(registry.pull("m", alias, tmp_path / "cache")) in (files, contents(tmp_path / "other")), id
    for version in registry.versions("m"):
        registry.pull("m", version.id, tmp_path / "cache")


def test_pullers_of_one_version_do_not_disturb_each_other(registry, tmp_path):
    files = make_model(tmp_path / "model", 0, registry.store.part_bytes)
    registry.push("m", tmp_path / "model")
    got = at_once(4, lambda n: contents(registry.pull("m", "v1", tmp_path / "cache")))
    assert got == [files] * 4
    assert [each.name for each in (tmp_path / "cache/m/.work").iterdir()] == []


PUSH = """
import sys
from labkit.serve.registry import Registry
from labkit.serve.registry.folder_store import FolderStore
registry = Registry(FolderStore(__import__("pathlib").Path(sys.argv[1]), part_bytes=16384))
print("ready", flush=True)
sys.stdin.readline()
print(*[registry.push("m", sys.argv[2]).id for _ in range(int(sys.argv[3]))])
"""
PULL = """
import sys
from labkit.serve.registry import open_registry
print("ready", flush=True)
sys.stdin.readline()
print(open_registry(sys.argv[1]).pull("m", "v1", sys.argv[2]))
"""


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(HERE)},
    )  # fmt: skip


def go(*processes):
    for each in processes:
        assert each.stdout.readline() == "ready\n"
    for each in processes:
        each.stdin.write("\n")
        each.stdin.flush()


def test_processes_publish_at_once(tmp_path):
    make_model(tmp_path / "model")
    processes = [start(PUSH, tmp_path / "store", tmp_path / "model", 5) for _ in range(3)]
    go(*processes)
    said = [process.communicate()[0].split() for process in processes]
    assert sorted(int(id[1:]) for ids in said for id in ids) == list(range(1, 16))
    assert len(Registry(FolderStore(tmp_path / "store")).versions("m")) == 15


def test_processes_pull_at_once(tmp_path):
    files = make_model(tmp_path / "model")
    Registry(FolderStore(tmp_path / "store")).push("m", tmp_path / "model")
    processes = [start(PULL, tmp_path / "store", tmp_path / "cache") for _ in range(3)]
    go(*processes)
    said = {process.communicate()[0].strip() for process in processes}
    assert len(said) == 1
    assert contents(Path(said.pop())) == files


@pytest.mark.parametrize("code", [PUSH, PULL], ids=["push", "pull"])
def test_a_process_that_is_killed_leaves_nothing_half_and_no_lock(tmp_path, code):
    files = make_model(tmp_path / "model", 0, part=2**20)
    registry = Registry(FolderStore(tmp_path / "store"))
    if code == PULL:
        registry.push("m", tmp_path / "model")
        process = start(code, tmp_path / "store", tmp_path / "cache")
    else:
        process = start(code, tmp_path / "store", tmp_path / "model", 10**6)
    go(process)
    place = tmp_path / ("cache/m/.work" if code == PULL else "store/m")
    while not place.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for version in registry.versions("m"):
        assert contents(registry.pull("m", version.id, tmp_path / "cache")) == files
    assert registry.push("m", tmp_path / "model").number > 0
    assert contents(registry.pull("m", "latest", tmp_path / "cache")) == files
