"""What every store's registry must do: publish, name, fetch, roll back, collect, and say clearly what is wrong."""

from __future__ import annotations

import dataclasses
import json

import pytest
from registry_stores import STORES, contents, make_model

from labkit.serve.registry import Damaged, Lost, Missing, Moved, Version, default_store, open_registry, split

NAME = "four-domains"


@pytest.fixture(params=STORES)
def registry(request, tmp_path):
    with STORES[request.param](tmp_path) as made:
        yield made


@pytest.fixture
def model(registry, tmp_path):
    folder = tmp_path / "model"
    return folder, make_model(folder, part=registry.store.part_bytes)


def test_what_is_pushed_is_what_is_pulled(registry, model, tmp_path):
    folder, files = model
    version = registry.push(NAME, folder, note="first")
    assert (version.id, version.name, version.note) == ("v1", NAME, "first")
    assert {shard.path: shard.bytes for shard in version.files} == {path: len(data) for path, data in files.items()}
    assert version.bytes == sum(map(len, files.values()))
    assert contents(registry.pull(NAME, "v1", tmp_path / "cache")) == files
    assert registry.models() == [NAME]
    assert registry.versions(NAME) == [version]
    assert registry.version(NAME) == registry.version(NAME, "latest") == version
    assert registry.version(NAME).sha256 == version.sha256


def test_a_version_is_frozen(registry, model):
    version = registry.push(NAME, model[0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        version.id = "v2"


def test_versions_count_on_and_shards_are_kept_once(registry, model):
    folder, _ = model
    registry.push(NAME, folder)
    before = {each.key for each in registry.store.keys(f"{NAME}/blobs/")}
    (folder / "config.json").write_text("{}  ")
    assert registry.push(NAME, folder).id == "v2"
    new = {each.key for each in registry.store.keys(f"{NAME}/blobs/")} - before
    assert len(new) == 1
    assert registry.ids(NAME) == ["v1", "v2"]


def test_progress_ends_at_the_whole(registry, model, tmp_path):
    told = []
    registry.push(NAME, model[0], on_progress=lambda share, what: told.append(share))
    assert told == sorted(told)
    assert told[-1] == 1
    told.clear()
    registry.pull(NAME, "v1", tmp_path / "cache", on_progress=lambda share, what: told.append(share))
    assert told == sorted(told)
    assert told[-1] == 1


def test_an_alias_names_moves_and_goes_back(registry, model):
    folder, _ = model
    for n in range(3):
        (folder / "config.json").write_text(str(n))
        registry.push(NAME, folder)
    registry.alias(NAME, "prod", "v1", expect="")
    registry.alias(NAME, "prod", "v2", expect="v1")
    registry.alias(NAME, "canary", "v3")
    registry.alias(NAME, "prod", "canary")
    assert registry.aliases(NAME) == {"canary": "v3", "prod": "v3"}
    assert registry.rollback(NAME, "prod").id == "v2"
    assert registry.rollback(NAME, "prod", expect="v2").id == "v1"
    with pytest.raises(Missing, match="nothing before v1"):
        registry.rollback(NAME, "prod")
    assert [(move.how, move.id) for move in registry.moves(NAME, "prod")] == [
        ("alias", "v1"), ("alias", "v2"), ("alias", "v3"), ("rollback", "v2"), ("rollback", "v1"),
    ]  # fmt: skip
    registry.unalias(NAME, "canary")
    assert registry.aliases(NAME) == {"prod": "v1"}
    assert registry.rollback(NAME, "canary").id == "v3"


@pytest.mark.parametrize("expect", ["", "v2"])
def test_an_alias_that_is_not_as_expected_stays(registry, model, expect):
    registry.push(NAME, model[0])
    registry.push(NAME, model[0])
    registry.alias(NAME, "prod", "v1")
    for move in (registry.alias, registry.rollback, registry.unalias):
        more = ("v2",) if move == registry.alias else ()
        with pytest.raises((Moved, Missing)):
            move(NAME, "prod", *more, expect=expect)
    assert registry.aliases(NAME) == {"prod": "v1"}


def test_an_alias_does_not_follow_an_altered_manifest(registry, model, tmp_path):
    version = registry.push(NAME, model[0])
    registry.alias(NAME, "prod", "v1")
    other = Version(NAME, "v1", version.files[:1], version.note, version.created, version.push)
    registry.store.write(f"{NAME}/versions/v1.json", other.json())
    with pytest.raises(Damaged, match="not the one that was published"):
        registry.pull(NAME, "prod", tmp_path / "cache")


def test_what_is_not_there_is_said_with_what_is(registry, model):
    with pytest.raises(Missing, match="the store is empty, push a model first"):
        registry.version(NAME)
    registry.push(NAME, model[0])
    registry.alias(NAME, "prod", "v1")
    with pytest.raises(Missing, match=r"there is no four-domains@v2 .* there is v1"):
        registry.version(NAME, "v2")
    with pytest.raises(Missing, match=r"no alias canary .* aliases are prod"):
        registry.version(NAME, "canary")
    with pytest.raises(Missing, match=r"no version of other .* models there: four-domains"):
        registry.version("other")
    with pytest.raises(Missing, match="no model other"):
        registry.collect("other")
    with pytest.raises(FileNotFoundError, match="no folder"):
        registry.push(NAME, "/nowhere/at/all")


def test_collection_keeps_what_aliases_and_their_rollbacks_name(registry, model, tmp_path):
    folder, _ = model
    for n in range(5):
        make_model(folder, n, registry.store.part_bytes)
        registry.push(NAME, folder)
    registry.alias(NAME, "prod", "v1")
    registry.alias(NAME, "prod", "v3")
    said = registry.collect(NAME, keep=1, dry=True)
    assert registry.ids(NAME) == ["v1", "v2", "v3", "v4", "v5"]
    removed = registry.collect(NAME, keep=1)
    assert removed == said
    assert removed.versions == ("v2", "v4")
    assert removed.shards == 2 * 3
    assert registry.ids(NAME) == ["v1", "v3", "v5"]
    for ref in ("prod", "v1", "v5"):
        registry.pull(NAME, ref, tmp_path / "cache")
    with pytest.raises(Missing, match="v4 was removed by a collection"):
        registry.version(NAME, "v4")
    assert registry.rollback(NAME, "prod").id == "v1"
    assert registry.collect(NAME, keep=1).versions == ("v3",)


def test_a_number_is_never_given_twice(registry, model):
    for _ in range(2):
        registry.push(NAME, model[0])
    registry.alias(NAME, "prod", "v1")
    assert registry.collect(NAME, keep=0).versions == ("v2",)
    assert registry.push(NAME, model[0]).id == "v3"


def test_collection_refuses_what_it_cannot_tell(registry, model):
    registry.push(NAME, model[0])
    registry.alias(NAME, "prod", "v1")
    registry.store.write(f"{NAME}/versions/v1.json", b"{")
    with pytest.raises(Damaged, match="nothing was removed"):
        registry.collect(NAME, keep=0)
    registry.store.write(f"{NAME}/aliases/prod.json", b"[]")
    with pytest.raises(Damaged, match="no table"):
        registry.collect(NAME, keep=0)
    for grace in (0, 1799, float("nan"), -1):
        with pytest.raises(ValueError, match="grace"):
            registry.collect(NAME, grace=grace)
    with pytest.raises(ValueError, match="keep is -1"):
        registry.collect(NAME, keep=-1)


def test_two_collections_do_not_run_at_once(registry, model, monkeypatch):
    from labkit.serve.registry import holds

    registry.push(NAME, model[0])
    monkeypatch.setattr(holds, "DEAD", 0.3)
    monkeypatch.setattr(holds, "POLL", 0.05)
    monkeypatch.setattr(holds, "BEAT", 0.0)
    first = holds.Collector(registry.store, NAME)
    second = holds.Collector(registry.store, NAME)  # takes the place of one that is not heard of
    with pytest.raises(Lost, match="not heard of"):
        first.beat()
    second.beat()
    second.end()
    assert registry.push(NAME, model[0]).id == "v2"


def test_manifests_are_json_that_people_can_read(registry, model):
    version = registry.push(NAME, model[0])
    table = json.loads(registry.store.read(f"{NAME}/versions/v1.json", 10**6)[0])
    assert table["files"][0] == {"path": "config.json", "bytes": 11, "sha256": version.files[0].sha256}


def test_a_registry_is_opened_by_its_address(tmp_path, monkeypatch):
    assert open_registry(tmp_path / "a b").uri == open_registry(f"file://{tmp_path}/a%20b").uri
    assert default_store().endswith("registry")
    monkeypatch.setenv("LABKIT_STORE", str(tmp_path / "other"))
    assert open_registry().uri == (tmp_path / "other").as_uri()
    for wrong in ("http://x/y", "file://host/x", "file://", "s3://", "s3://b?x=1", "s3://key:secret@b/x", ""):
        with pytest.raises(ValueError, match=r"give|credentials"):
            open_registry(wrong)


def test_a_name_and_a_reference_are_split():
    assert split("m@v3") == ("m", "v3")
    for wrong in ("m@", "@v1", "M@v1", "a/b@v1"):
        with pytest.raises(ValueError):
            split(wrong)
