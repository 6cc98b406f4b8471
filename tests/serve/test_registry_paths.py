"""A manifest is read as if an enemy had written it: nothing outside of the cache is touched, whatever it says."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from registry_stores import contents

from labkit.serve.registry import Damaged, Registry, Version, manifest
from labkit.serve.registry.folder_store import FolderStore
from labkit.serve.registry.manifest import Shard
from labkit.serve.registry.names import need_alias, need_model, need_path

DATA = b"a shard"
SHA256 = hashlib.sha256(DATA).hexdigest()
SIZES = (-1, 1.0, "7", None, True, 2**63, 10**400)
HASHES = ("", "../x", SHA256.upper(), SHA256 + "\n", 7)
EVIL = [
    "../x", "a/../../x", "..", ".", "", "/etc/passwd", "//x", "a//b", "a/", "/", "./a", "a/./b", "..\\x", "a\\b",
    "C:\\x", "C:x", "c:/x", "\\\\host\\share", "a\0b", "a\nb", "a\x7fb", "a\u202eb", "a\u200bb", ".hidden", ".work/x",
    "a/.git/x", "con", "NUL.txt", "a/aux", "com1.json", "a.", "a ", " a", "a/ b", "a?b", "a*b", 'a"b', "a<b", "a|b",
    "x" * 201, "/".join("a" * 17), "/".join(["x" * 100] * 12), "e\u0301", "\ud800", 7, None, True, ["a"], {"a": 1},
]  # fmt: skip


@pytest.fixture
def registry(tmp_path):
    registry = Registry(FolderStore(tmp_path / "store"))
    registry.store.write(f"m/blobs/{SHA256}", DATA)
    return registry


def table(*paths, **more):
    files = [{"path": path, "bytes": len(DATA), "sha256": SHA256} for path in paths]
    return {"format": 1, "name": "m", "id": "v1", "files": files, "note": "", "created": "", "push": ""} | more


def lay(registry, written) -> None:
    data = written if isinstance(written, bytes) else json.dumps(written, indent=1).encode()
    registry.store.write("m/versions/v1.json", data)


def refused(registry, tmp_path, match="v1"):
    before = contents(tmp_path)
    with pytest.raises(Damaged, match=match):
        registry.pull("m", "v1", tmp_path / "cache")
    assert contents(tmp_path) == before
    assert not (tmp_path / "cache").exists()


def test_an_honest_manifest_is_pulled(registry, tmp_path):
    lay(registry, table("a", "b/c.json", "b/d/ä.txt"))
    assert set(contents(registry.pull("m", "v1", tmp_path / "cache"))) == {"a", "b/c.json", "b/d/ä.txt"}


@pytest.mark.parametrize("path", EVIL, ids=lambda path: ascii(path)[:40])
def test_a_path_that_could_leave_the_cache_is_refused(registry, tmp_path, path):
    with pytest.raises(ValueError):
        need_path(path)
    lay(registry, table("a", path))
    refused(registry, tmp_path)


@pytest.mark.parametrize(
    "paths",
    [
        ("a", "a"),
        ("a", "A"),
        ("straße", "STRASSE"),
        ("a", "a/b"),
        ("A", "a/b"),
        ("B/x", "b/X"),
        ("ﬁ", "fi"),
        ("K", "\u212a"),
    ],
    ids=ascii,
)
def test_two_paths_that_some_systems_take_for_one_are_refused(registry, tmp_path, paths):
    lay(registry, table(*paths))
    refused(registry, tmp_path)


@pytest.mark.parametrize(
    "written",
    [
        b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a": 1, "a": 2}', b'{"format": NaN}',
        b" " * (2**22 + 1),
        b'{"format": ' + b"9" * 10_000 + b"}",
        table(), table("a", format=2), table("a", format=True), table("a", more=1), table("a", name="other"),
        table("a", id="v2"), table("a", id=1), table("a", files={}), table("a", files=[[]]), table("a", files="a"),
        table("a", note=7), table("a", note="x" * 4001), table("a", created=None),
        table(*(f"f{n}" for n in range(10_001))),
        table("a", files=[{"path": "a", "bytes": 7, "sha256": SHA256, "url": "x"}]),
        *(table("a", files=[{"path": "a", "bytes": size, "sha256": SHA256}]) for size in SIZES),
        *(table("a", files=[{"path": "a", "bytes": 7, "sha256": it}]) for it in HASHES),
        table("a", files=[{"path": f"f{n}", "bytes": 2**42, "sha256": SHA256} for n in range(300)]),
    ],
    ids=lambda written: repr(written)[:40],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(registry, tmp_path, written):
    lay(registry, written)
    refused(registry, tmp_path)


def test_a_manifest_with_hidden_differences_is_refused(registry, tmp_path):
    lay(registry, json.dumps(table("a")).encode())  # the same table, written differently: another hash, one version
    refused(registry, tmp_path, "not written as the registry writes it")


def test_a_link_in_the_cache_is_not_followed(registry, tmp_path):
    lay(registry, table("a", "b/c"))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "c").write_bytes(b"precious")
    cache = tmp_path / "cache"
    whole = registry.pull("m", "v1", cache)
    (whole / "b/c").unlink()
    (whole / "b").rmdir()
    (whole / "b").symlink_to(outside)
    (whole / "a").unlink()
    (whole / "a").symlink_to(outside / "c")
    assert contents(registry.pull("m", "v1", cache)) == {"a": DATA, "b/c": DATA}
    assert not (whole / "a").is_symlink()
    assert contents(outside) == {"c": b"precious"}


def test_a_link_on_the_way_into_the_cache_is_refused(registry, tmp_path):
    lay(registry, table("a"))
    (tmp_path / "outside").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/m").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="no folder but a link"):
        registry.pull("m", "v1", tmp_path / "cache")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_link_where_the_version_belongs_is_refused(registry, tmp_path):
    lay(registry, table("a"))
    whole = registry.pull("m", "v1", tmp_path / "cache")
    whole.rename(tmp_path / "outside")
    whole.symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="no folder but a link"):
        registry.pull("m", "v1", tmp_path / "cache")


@pytest.mark.parametrize(
    "ref", ["../m/versions/v1", "v1/../v1", "v01", "v-1", "V1", "", "a" * 40, "latest/", "v1\n", None, 7]
)
def test_a_reference_is_no_path(registry, ref):
    with pytest.raises((ValueError, FileNotFoundError)):
        registry.version("m", ref)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../m", "M", "a b", "a\n", "con", "nul.x", "-a", "a.", "ä", "x" * 65, None, 7]
)
def test_a_model_has_a_plain_name(registry, name, tmp_path):
    for act in (need_model, registry.versions, registry.pull, registry.collect, registry.aliases):
        with pytest.raises(ValueError, match="cannot be called"):
            act(name)
    with pytest.raises(ValueError, match="cannot be called"):
        registry.push(name, tmp_path)


@pytest.mark.parametrize("alias", ["", "v1", "v01", "latest", "Prod", "a/b", "..", "a.json", "x" * 33, "1a", None])
def test_an_alias_has_a_plain_name(registry, alias):
    with pytest.raises(ValueError, match="cannot be called"):
        need_alias(alias)
    with pytest.raises(ValueError, match="cannot be called"):
        registry.alias("m", alias, "v1")


def test_what_a_folder_may_hold_is_what_a_manifest_may(registry, tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    with pytest.raises(ValueError, match="no file to publish"):
        registry.push("m", folder)
    (folder / "weights").write_bytes(b"far away")
    (tmp_path / "blob").write_bytes(b"linked")
    (folder / "linked.json").symlink_to(tmp_path / "blob")  # as a download cache has them
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("")
    version = registry.push("m", folder)
    assert [shard.path for shard in version.files] == ["linked.json", "weights"]
    assert contents(registry.pull("m", "v1", tmp_path / "cache"))["linked.json"] == b"linked"
    (folder / "sub/away").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ValueError, match="link to a folder"):
        registry.push("m", folder)
    (folder / "sub/away").unlink()
    for name in ("a\\b", "a ", "con"):
        (folder / name).write_text("")
        with pytest.raises(ValueError, match="no path of a file"):
            registry.push("m", folder)
        (folder / name).unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(ValueError, match="no file that can be read"):
        registry.push("m", folder)
    assert registry.ids("m") == ["v1"]


def test_a_manifest_reads_back_as_it_was_written():
    version = Version("m", "v7", (Shard("a", 7, SHA256), Shard("b/c", 7, SHA256)), "ein Vermerk", "2026", "word")
    assert manifest.read(version.json(), "m", "v7") == version
    assert manifest.read(version.json(), "m", "v7").sha256 == hashlib.sha256(version.json()).hexdigest()
