"""Stores for the registry's tests, and folders that look like models.

The same tests run on a folder, on moto's server over HTTP, and, where LABKIT_S3_ENDPOINT names one, on a real S3 store
(`make test-store`), with the credentials that boto3 finds.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3_server import s3_client, s3_server

from labkit.serve.registry import Registry
from labkit.serve.registry.folder_store import FolderStore
from labkit.serve.registry.s3_store import S3Store, make_client

PART = 16 * 1024  # so small that small files have several parts
LEAST_PART = 5 * 2**20  # of a real S3 store


def make_model(folder: Path, seed: int = 0, part: int = PART) -> dict[str, bytes]:
    """Write a folder like a model's, of random bytes; what is in it, by path. One file has four parts of `part`."""
    rng = random.Random(seed)
    files = {"model-0.safetensors": rng.randbytes(3 * part + 77), "model-1.safetensors": rng.randbytes(1000)}
    files |= {"config.json": b'{"seed": %d}' % seed, "text/tokenizer.json": b"{}", "empty.txt": b""}
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return files


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def in_folder(tmp_path: Path) -> Iterator[Registry]:
    """A registry in a folder."""
    yield Registry(FolderStore(tmp_path / "store", part_bytes=PART))


@contextmanager
def in_moto(tmp_path: Path) -> Iterator[Registry]:
    """A registry in a new bucket of moto's server."""
    with s3_server() as (endpoint, _):
        client, bucket = s3_client(endpoint), f"registry-{uuid.uuid4().hex}"
        client.create_bucket(Bucket=bucket)
        yield Registry(S3Store(bucket, "models", part_bytes=PART, client=client))


@contextmanager
def in_real(tmp_path: Path) -> Iterator[Registry]:
    """A registry in a new bucket of the store that LABKIT_S3_ENDPOINT names; the bucket is removed afterwards."""
    os.environ["AWS_ENDPOINT_URL_S3"] = os.environ["LABKIT_S3_ENDPOINT"]
    client, bucket = make_client(), f"registry-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=bucket)
    try:
        yield Registry(S3Store(bucket, "models", part_bytes=LEAST_PART, client=client))
    finally:
        for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", ()):
            client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for each in page.get("Contents", ()):
                client.delete_object(Bucket=bucket, Key=each["Key"])
        client.delete_bucket(Bucket=bucket)


STORES = {"folder": in_folder, "s3": in_moto}
if os.environ.get("LABKIT_S3_ENDPOINT"):
    STORES = {"real": in_real}
