"""What only S3 has: conditions that a store may ignore, uploads in parts, answers that get lost, credentials."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import uuid

import pytest
from registry_stores import PART, contents, make_model
from s3_server import s3_client, s3_server

from labkit.serve.registry import (
    Damaged,
    Interrupted,
    Lost,
    Missing,
    Refused,
    Registry,
    Unfit,
    open_registry,
    s3_store,
    s3_upload,
)
from labkit.serve.registry.plan import plan
from labkit.serve.registry.s3_store import S3Store


@pytest.fixture
def made(tmp_path):
    with s3_server() as (endpoint, app):
        client = s3_client(endpoint)
        bucket = f"registry-{uuid.uuid4().hex}"
        client.create_bucket(Bucket=bucket)
        yield app, client, S3Store(bucket, "a/b", part_bytes=PART, client=client), endpoint


@pytest.fixture
def model(tmp_path):
    return tmp_path / "model", make_model(tmp_path / "model")


@pytest.mark.parametrize("header", ["HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"])
def test_a_store_that_ignores_a_condition_is_refused(made, model, header):
    app, _, store, _ = made
    app.tamper = lambda environ: environ.pop(header, None)
    for _ in range(2):
        with pytest.raises(Unfit, match=r"ignores If-(None-)?Match: two publishers could both win"):
            Registry(store).push("m", model[0])
    assert Registry(store).ids("m") == []
    assert list(store.keys(".registry/")) == []


def test_the_servers_conditions_hold(made):
    """Both on a write; moto's answers are those that the registry is written for."""
    _, _, store, _ = made
    tag = store.write("x", b"1", absent=True)
    with pytest.raises(Lost):
        store.write("x", b"2", absent=True)
    with pytest.raises(Lost):
        store.write("x", b"2", tag='"0"')
    with pytest.raises(Lost):
        store.write("absent", b"2", tag=tag)
    assert store.read("x", 10) == (b"1", tag)
    assert store.read("x", 10)[1] != store.write("x", b"3", tag=tag)
    with pytest.raises(Damaged, match="more than 0 bytes"):
        store.read("x", 0)


def test_a_store_that_wants_etags_without_quotes_gets_them(made):
    """Ceph 16 compares If-Match with the bare ETag, and answers 412 to the form in quotes."""
    app, _, store, _ = made
    asked = []

    def bare(environ):
        if environ.get("HTTP_IF_MATCH", "").startswith('"'):
            environ["HTTP_IF_MATCH"] = '"never"'
        asked.append(environ.get("HTTP_IF_MATCH"))

    app.tamper = bare
    tag = store.write("x", b"1", absent=True)
    assert tag != store.write("x", b"2", tag=tag)
    with pytest.raises(Lost):
        store.write("x", b"3", tag=tag)
    assert asked[-2] == tag.strip('"')


def test_a_write_whose_answer_got_lost_is_known_as_ours(made):
    app, _, store, _ = made
    store.write("probe", b"", absent=True)
    lost = []

    def tamper(environ):
        if environ["REQUEST_METHOD"] == "PUT" and not lost:
            lost.append("")
            lost.append(store._put("x", b"mine"))  # it arrives, and the answer does not: boto3 sends it again

    app.tamper = tamper
    assert store.write("x", b"mine", absent=True) == lost[1]


def test_a_store_that_is_busy_is_asked_again(made, monkeypatch):
    app, _, store, _ = made
    store.write("probe", b"", absent=True)
    refusals, refuse = [3], app._write

    def busy(environ, start):
        if refusals[0]:
            refusals[0] -= 1
            environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            start("409 Conflict", [("Content-Type", "application/xml")])
            return [b"<Error><Code>ConditionalRequestConflict</Code></Error>"]
        return refuse(environ, start)

    monkeypatch.setattr(app, "_write", busy)
    store.write("x", b"1", absent=True)
    refusals[0] = 99
    monkeypatch.setattr(s3_store, "TRIES", 2)
    with pytest.raises(Lost, match="by others all the time"):
        store.write("y", b"1", absent=True)


def test_only_missing_parts_are_sent(made, model, tmp_path):
    app, client, store, _ = made
    source = model[0] / "model-0.safetensors"
    todo = plan(source, PART)
    at = {"Bucket": store.bucket, "Key": "a/b/m/blobs/x"}
    other = client.create_multipart_upload(**at)["UploadId"]  # in other steps: left alone
    client.upload_part(**at, UploadId=other, PartNumber=1, Body=b"1234")
    id = client.create_multipart_upload(**at)["UploadId"]
    for number, body in ((1, todo.part(0)), (2, bytes(PART)), (4, todo.part(3))):
        client.upload_part(**at, UploadId=id, PartNumber=number, Body=body)
    app.log.clear()
    told = []
    store.upload("m/blobs/x", todo, told.append)
    sent = [query for method, _, query in app.log if method == "PUT"]
    assert sorted(query[-1] for query in sent) == ["2", "3"]
    assert sum(told) == todo.bytes
    assert b"".join(store.stream("m/blobs/x", 0)) == source.read_bytes()
    assert [each.id for each in store.unfinished("m/blobs/")] == [other]


def test_an_upload_that_somebody_else_finishes_counts(made, model):
    _, client, store, _ = made
    todo = plan(model[0] / "model-0.safetensors", PART)
    mine = s3_upload.Multipart(client, store.uri, store._at("m/blobs/x"), todo, lambda count: None)
    begin, finished = mine._begin, []

    def shared():
        id = begin()
        finished.append(id)
        return id

    mine._begin = shared
    part = mine._part

    def late(id, index):
        if index == 3 and len(finished) == 1:
            finished.append("other")
            store.upload("m/blobs/x", todo, lambda count: None)  # joins the same upload and puts it together
        part(id, index)

    mine._part = late
    mine.send()
    assert store.holds("m/blobs/x", todo)


def test_an_upload_that_is_dropped_again_and_again_is_said(made, model, monkeypatch):
    _, client, store, _ = made
    todo = plan(model[0] / "model-0.safetensors", PART)
    upload = s3_upload.Multipart(client, store.uri, store._at("m/blobs/x"), todo, lambda count: None)
    begin = upload._begin

    def dropped():
        id = begin()
        client.abort_multipart_upload(**store._at("m/blobs/x"), UploadId=id)
        return id

    upload._begin = dropped
    with pytest.raises(Interrupted, match="dropped 3 times; push again"):
        upload.send()


def test_a_file_that_changes_while_it_is_pushed_is_not_published(made, model, monkeypatch):
    _, _, store, _ = made
    source = model[0] / "model-0.safetensors"
    part = s3_upload.Multipart._part

    def changing(self, id, index):
        source.write_bytes(source.read_bytes()[::-1])
        part(self, id, index)

    monkeypatch.setattr(s3_upload.Multipart, "_part", changing)
    with pytest.raises(ValueError, match="was written to while it was pushed"):
        Registry(store).push("m", model[0])
    assert Registry(store).ids("m") == []


def test_a_store_with_other_etags_is_read_through(made, model):
    """Where a store encrypts, an ETag is no MD5."""
    _, client, store, _ = made
    todo = plan(model[0] / "model-0.safetensors", PART)
    client.put_object(**store._at("m/blobs/x"), Body=todo.source.read_bytes())  # one part: another ETag than of four
    assert store.holds("m/blobs/x", todo)
    client.put_object(**store._at("m/blobs/x"), Body=bytes(todo.bytes))
    assert not store.holds("m/blobs/x", todo)


def test_a_store_that_ignores_ranges_still_gives_the_right_bytes(made, model, tmp_path):
    app, _, store, _ = made
    data = bytes(range(256)) * 8192
    store.write("x", data)
    app.tamper = lambda environ: environ.pop("HTTP_RANGE", None)
    for start in (0, 1, 2**20 - 1, 2**20, 2**20 + 5):
        assert b"".join(store.stream("x", start)) == data[start:]


def test_an_old_upload_is_dropped_but_no_young_and_no_held_one(made, model, monkeypatch):
    _, client, store, _ = made
    registry = Registry(store)
    version = registry.push("m", model[0])
    for name in ("0" * 64, "1" * 64, version.files[0].sha256):
        client.create_multipart_upload(**store._at(f"m/blobs/{name}"))
    begun = {each.key[8:]: each for each in store.unfinished("m/blobs/")}  # moto says of all that they are years old
    young = dataclasses.replace(begun["1" * 64], modified=store.stat("m/versions/v1.json").modified)
    monkeypatch.setattr(
        store, "unfinished", lambda prefix: [*list(begun.values())[:1], young, *list(begun.values())[2:]]
    )
    assert registry.collect("m").uploads == 1
    monkeypatch.undo()
    assert {each.key[8:] for each in store.unfinished("m/blobs/")} == {"1" * 64, version.files[0].sha256}


def test_several_prefixes_of_a_bucket_are_several_registries(made, model):
    _, client, store, _ = made
    other = Registry(S3Store(store.bucket, "a", part_bytes=PART, client=client))
    Registry(store).push("m", model[0])
    other.push("n", model[0])
    assert Registry(store).models() == ["m"]
    assert other.models() == ["b", "n"]
    assert other.ids("b") == []


def test_a_bucket_that_is_not_there_is_said(made):
    _, client, _, _ = made
    registry = Registry(S3Store("no-such-bucket", client=client))
    with pytest.raises(Missing, match="there is no bucket for s3://no-such-bucket"):
        registry.models()
    with pytest.raises(Missing, match="there is no bucket"):
        registry.version("m")


def environment(monkeypatch, **values):
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_it_is_opened_with_what_boto3_finds(made, model, monkeypatch, tmp_path):
    _, _, store, endpoint = made
    environment(monkeypatch, AWS_ENDPOINT_URL=endpoint, AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
    registry = open_registry(f"s3://{store.bucket}/some/where/")
    assert registry.uri == f"s3://{store.bucket}/some/where"
    registry.push("m", model[0])
    assert contents(registry.pull("m", "v1", tmp_path / "cache")) == model[1]


def test_no_credentials_and_no_server_are_said(made, monkeypatch):
    _, _, store, endpoint = made
    environment(monkeypatch, AWS_ENDPOINT_URL=endpoint)
    with pytest.raises(Refused, match="credentials come from boto3's own variables"):
        open_registry(f"s3://{store.bucket}").models()
    gone = S3Store("bucket", client=s3_client("http://127.0.0.1:9", attempts=1))
    with pytest.raises(Interrupted, match="cannot be reached any more"):
        Registry(gone).models()


def test_no_right_to_it_is_said(made, monkeypatch):
    app, _, store, _ = made

    def refuse(environ, start):
        start("403 Forbidden", [("Content-Type", "application/xml")])
        return [b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"]

    monkeypatch.setattr(app, "_app", refuse)
    with pytest.raises(Refused, match="AccessDenied: no"):
        Registry(store).models()


def test_without_boto3_it_is_said_what_to_install():
    code = (
        "import sys; sys.modules['boto3'] = None\n"
        "from labkit.serve.registry import open_registry\n"
        "try: open_registry('s3://bucket').models()\n"
        "except ModuleNotFoundError as error: print(error.name, error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("boto3 ")
    assert "pip install 'labkit[fleet]'" in said
