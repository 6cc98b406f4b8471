"""A push or a pull that stops at any byte: nothing half is ever seen, and the next one goes on from there."""

from __future__ import annotations

import builtins
import hashlib
import random
import uuid
from pathlib import Path

import pytest
from registry_stores import PART, contents
from s3_server import s3_client, s3_server

from labkit.serve.registry import Interrupted, Missing, Registry, fetch, folder_store, publish, s3_upload
from labkit.serve.registry.folder_store import FolderStore
from labkit.serve.registry.s3_store import S3Store

POINTS = {"folder": 100, "s3": 24}  # what differs on S3 is where the parts end, and every request costs
SIZE = 3 * PART + 77


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


def fill(folder: Path, seed: int) -> dict[str, bytes]:
    files = {"a.safetensors": random.Random(seed).randbytes(SIZE), "config.json": b"{%d}" % seed}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


def points(most: int, kind: str) -> list[int]:
    """Random bytes, and those at which something begins or ends."""
    rng = random.Random(8)
    edges = [0, 1, PART - 1, PART, PART + 1, most - 1]
    return edges + [rng.randrange(most) for _ in range(POINTS[kind] - len(edges))]


class Breaking:
    """A file that takes so many bytes in all, then breaks."""

    def __init__(self, file, left: list[int]) -> None:
        self._file, self._left = file, left

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        passed = data[: self._left[0]]
        self._left[0] -= len(passed)
        self._file.write(passed)
        if len(passed) < len(data):
            self._file.flush()
            raise Interrupted("the power failed")


def breaking_open(left: list[int]):
    """`open` for a module whose files break after so many bytes written."""

    def opened(path, mode="r"):
        file = builtins.open(path, mode)  # noqa: SIM115 (the caller closes it)
        return Breaking(file, left) if "+" in mode else file

    return opened


def test_a_push_to_a_folder_stops_at_any_byte(model, tmp_path, monkeypatch):
    registry = Registry(FolderStore(tmp_path / "store", part_bytes=PART))
    read: list[str] = []
    part = folder_store.Plan.part
    monkeypatch.setattr(folder_store.Plan, "part", lambda self, n: read.append(self.source.name) or part(self, n))
    for n, at in enumerate(points(SIZE, "folder")):
        files = fill(model, n + 1)
        with monkeypatch.context() as patch:
            patch.setattr(folder_store, "open", breaking_open([at]), raising=False)
            with pytest.raises(Interrupted):
                registry.push(f"m{n}", model)
        assert registry.ids(f"m{n}") == []
        sha256 = hashlib.sha256(files["a.safetensors"]).hexdigest()
        kept = sum(each.stat().st_size for each in (tmp_path / "store/.registry/uploads").glob(f"*{sha256}.part"))
        read.clear()
        registry.push(f"m{n}", model)
        assert read.count("a.safetensors") == 4 - kept // PART  # what lies there whole is not sent again
        assert contents(registry.pull(f"m{n}", "v1", tmp_path / "cache")) == files


@pytest.fixture
def strict():
    with s3_server() as (endpoint, app):
        client = s3_client(endpoint, attempts=1)
        bucket = f"registry-{uuid.uuid4().hex}"
        client.create_bucket(Bucket=bucket)
        yield app, Registry(S3Store(bucket, part_bytes=PART, client=client))


def test_a_push_to_s3_stops_at_any_byte(strict, model, tmp_path, monkeypatch):
    app, registry = strict
    fill(model, 0)
    registry.push("m", model)  # the store's conditions are looked at once
    taken = app.received
    fill(model, 1)
    registry.push("m", model)
    whole = app.received - taken  # hold, shards, manifest
    for n, at in enumerate(points(whole, "s3")):
        files = fill(model, n + 2)
        for module in (publish, s3_upload):  # one after the other, so that it can be told what must have arrived
            monkeypatch.setattr(module, "THREADS", 1 + n % 2)
        app.cut(up=at)
        with pytest.raises(Interrupted):
            registry.push(f"m{n}", model)
        app.mend()
        assert registry.ids(f"m{n}") == []
        before = app.received
        registry.push(f"m{n}", model)
        if n % 2 == 0:
            there = min(3, max(0, at - 1000) // PART)
            assert app.received - before <= whole - there * PART + 100
        if n % 4 == 0:
            assert contents(registry.pull(f"m{n}", "v1", tmp_path / "cache")) == files


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_pull_stops_at_any_byte(kind, strict, model, tmp_path, monkeypatch):
    app, registry = strict
    if kind == "folder":
        registry = Registry(FolderStore(tmp_path / "store"))
    files = fill(model, 0)
    registry.push("m", model)
    monkeypatch.setattr(fetch, "PAUSE", 0)
    monkeypatch.setattr(fetch, "TRIES", 1)
    monkeypatch.setattr(fetch, "CHUNK", 1000)
    stream = registry.store.stream
    for n, at in enumerate(points(SIZE, kind)):
        cache = tmp_path / f"cache-{n}"
        left, fetched = [at], []

        def broken(key, start, left=left, fetched=fetched):
            for chunk in stream(key, start):
                for piece in (chunk[i : i + 1000] for i in range(0, len(chunk), 1000)):
                    passed = piece[: left[0]]
                    left[0] -= len(passed)
                    fetched.append(len(passed))
                    yield passed
                    if len(passed) < len(piece):
                        raise Interrupted("the network failed")

        version = registry.version("m", "v1")
        if kind == "folder":
            monkeypatch.setattr(registry.store, "stream", broken, raising=False)
        else:
            app.cut(down=at)
            monkeypatch.setattr(registry, "version", lambda *_, version=version: version)
        with pytest.raises(Interrupted):
            registry.pull("m", "v1", cache)
        assert [each.name for each in (cache / "m").iterdir() if each.name[0] != "."] == []
        app.mend()
        left[0] = 10**9
        whole = registry.pull("m", "v1", cache)
        assert contents(whole) == files
        if kind == "folder":
            assert sum(fetched) == SIZE + len(files["config.json"])  # not a byte twice


def test_a_broken_download_goes_on_by_itself(strict, model, tmp_path, monkeypatch):
    app, registry = strict
    files = fill(model, 0)
    registry.push("m", model)
    monkeypatch.setattr(fetch, "PAUSE", 0)
    ranges = []

    def tamper(environ):
        if environ["REQUEST_METHOD"] == "GET" and "/blobs/" in environ["PATH_INFO"]:
            ranges.append(environ.get("HTTP_RANGE", ""))
            app.mend()
            if len(ranges) < 5:
                app.cut(down=PART // 2)

    app.tamper = tamper
    app._broken = lambda: False
    assert contents(registry.pull("m", "v1", tmp_path / "cache")) == files
    assert any(each.startswith("bytes=") for each in ranges)


def test_a_store_that_is_away_is_said(strict, model, tmp_path):
    app, registry = strict
    fill(model, 0)
    app.cut(up=0)
    with pytest.raises(Interrupted, match="cannot be reached any more"):
        registry.push("m", model)
    app.mend()
    with pytest.raises(Missing):
        registry.version("m")
