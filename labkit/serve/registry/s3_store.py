"""An S3 bucket as a store, through boto3; any store that speaks S3 and keeps the conditions of a write.

What lies there is compared by ETag where the store makes it as S3 does (MD5 of each part), and read through where not.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from labkit.serve.registry.errors import Damaged, Lost, Missing, Unfit
from labkit.serve.registry.plan import CHUNK, PART_BYTES, Plan
from labkit.serve.registry.s3_said import Busy, said
from labkit.serve.registry.s3_upload import Multipart
from labkit.serve.registry.store import Object, Sent, Unfinished

BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
HIDDEN = ".registry"
TRIES = 6  # where the store says that somebody else writes to the same key


class S3Store:
    """A store in a bucket.

    Args:
        bucket: its name; it must be there.
        prefix: a part of its keys, without `/` at its ends; '' for all of it.
        part_bytes: the size of an upload's parts; stores want 5 MiB or more.
        client: a boto3 S3 client; None makes one from boto3's own variables and files.
    """

    def __init__(self, bucket: str, prefix: str = "", part_bytes: int = PART_BYTES, client: Any = None) -> None:
        if not BUCKET.fullmatch(bucket):
            raise ValueError(f"{bucket!r} is no name of a bucket; give s3://bucket or s3://bucket/prefix")
        self.bucket, self.prefix, self.part_bytes = bucket, f"{prefix}/" if prefix else "", part_bytes
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._given, self._lock, self._kept = client, threading.RLock(), False

    @property
    def _client(self) -> Any:
        with self._lock:
            if self._given is None:
                with said(self.uri, "a client"):
                    self._given = make_client()
            return self._given

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + key}

    def read(self, key: str, limit: int) -> tuple[bytes, str]:
        with said(self.uri, key):
            answer = self._client.get_object(**self._at(key))
            data = answer["Body"].read(limit + 1)
            answer["Body"].close()
        if len(data) > limit:
            raise Damaged(f"{key} in {self.uri} has more than {limit} bytes; no such text is read")
        return data, answer["ETag"]

    def write(self, key: str, data: bytes, *, absent: bool = False, tag: str = "") -> str:
        if not absent and not tag:
            return self._put(key, data)
        self._need_conditions()
        condition = {"IfNoneMatch": "*"} if absent else {"IfMatch": tag}
        for attempt in range(TRIES):
            try:
                return self._put(key, data, **condition)
            except Busy:
                time.sleep(0.05 * 2**attempt)
            except (Lost, Missing):
                if absent or tag:
                    return self._ours(key, data)
        raise Lost(f"{key} in {self.uri} is being written by others all the time; try again")

    def _ours(self, key: str, data: bytes) -> str:
        """The tag of what is there if we wrote it: an answer got lost, and the request was sent again."""
        with suppress(Missing, Damaged):
            there, tag = self.read(key, len(data))
            if there == data:
                return tag
        raise Lost(f"{key} in {self.uri} was changed by somebody else")

    def _put(self, key: str, data: bytes, **condition: str) -> str:
        check = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        with said(self.uri, key):
            return self._client.put_object(**self._at(key), Body=data, ContentMD5=check, **condition)["ETag"]

    def _need_conditions(self) -> None:
        """Refuse a store that ignores If-None-Match or If-Match: two publishers could both win there."""
        with self._lock:
            if self._kept:
                return
            key = f"{HIDDEN}/probe-{uuid.uuid4().hex}"
            self._put(key, b"first", IfNoneMatch="*")
            try:
                self._need_condition(key, "If-None-Match", IfNoneMatch="*")
                self._need_condition(key, "If-Match", IfMatch=f'"{"0" * 32}"')
            finally:
                self.delete(key)
            self._kept = True

    def _need_condition(self, key: str, header: str, **condition: str) -> None:
        try:
            self._put(key, b"second", **condition)
        except Lost:
            return
        raise Unfit(
            f"{self.uri} ignores {header}: two publishers could both win, and a move of an alias be lost. Use a "
            "store that keeps the conditions of a write, or a folder"
        )

    def stat(self, key: str) -> Object | None:
        try:
            answer = self._head(key)
        except Missing:
            return None
        return Object(key, answer["ContentLength"], answer["LastModified"].timestamp())

    def _head(self, key: str) -> dict[str, Any]:
        with said(self.uri, key):
            return self._client.head_object(**self._at(key))

    def keys(self, prefix: str) -> Iterator[Object]:
        for page in self._pages("list_objects_v2", Prefix=self.prefix + prefix):
            for each in page.get("Contents", ()):
                key = each["Key"].removeprefix(self.prefix)
                yield Object(key, each["Size"], each["LastModified"].timestamp())

    def folders(self) -> Iterator[str]:
        for page in self._pages("list_objects_v2", Prefix=self.prefix, Delimiter="/"):
            for each in page.get("CommonPrefixes", ()):
                name = each["Prefix"].removeprefix(self.prefix).rstrip("/")
                if not name.startswith("."):
                    yield name

    def _pages(self, operation: str, **more: str) -> Iterator[dict[str, Any]]:
        pages = iter(self._client.get_paginator(operation).paginate(Bucket=self.bucket, **more))
        while True:
            with said(self.uri, f"a list of {more['Prefix'] or 'it'}"):
                page = next(pages, None)
            if page is None:
                return
            yield page

    def delete(self, key: str) -> None:
        with suppress(Missing), said(self.uri, key):
            self._client.delete_object(**self._at(key))

    def stream(self, key: str, start: int) -> Iterator[bytes]:
        with said(self.uri, key):
            answer = self._client.get_object(**self._at(key), **({"Range": f"bytes={start}-"} if start else {}))
        body, skip = answer["Body"], 0
        if start and not answer.get("ContentRange", "").startswith(f"bytes {start}-"):
            skip = start  # the store sends everything, whatever was asked for
        try:
            while True:
                with said(self.uri, key):
                    chunk = body.read(CHUNK)
                if not chunk:
                    return
                left, skip = chunk[skip:], max(0, skip - len(chunk))
                if left:
                    yield left
        finally:
            body.close()

    def holds(self, key: str, plan: Plan) -> bool:
        try:
            answer = self._head(key)
        except Missing:
            return False
        if answer["ContentLength"] != plan.bytes:
            return False
        if answer["ETag"].strip('"') == plan.etag():
            return True
        digest = hashlib.sha256()
        with suppress(Missing):
            for chunk in self.stream(key, 0):
                digest.update(chunk)
        return digest.hexdigest() == plan.sha256

    def upload(self, key: str, plan: Plan, sent: Sent) -> None:
        if len(plan.md5s) == 1:
            self._put(key, plan.part(0))
            sent(plan.bytes)
        else:
            Multipart(self._client, self.uri, self._at(key), plan, sent).send()
        if not self.holds(key, plan):
            raise Damaged(f"{self.uri} has not kept {plan.source} as it was sent; push again")

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        for page in self._pages("list_multipart_uploads", Prefix=self.prefix + prefix):
            for each in page.get("Uploads", ()):
                key = each["Key"].removeprefix(self.prefix)
                if key.startswith(prefix):
                    yield Unfinished(key, each["UploadId"], each["Initiated"].timestamp())

    def abandon(self, upload: Unfinished) -> None:
        with suppress(Missing), said(self.uri, upload.key):
            self._client.abort_multipart_upload(**self._at(upload.key), UploadId=upload.id)


def make_client() -> Any:
    """A client from boto3's own variables and files; stores other than Amazon's get the bucket in the path."""
    import boto3
    from botocore.config import Config

    session = boto3.session.Session()
    client = session.client("s3", config=_config())
    style = session._session.get_scoped_config().get("s3", {})
    if "amazonaws.com" in client.meta.endpoint_url or "addressing_style" in style:
        return client
    return session.client("s3", config=_config().merge(Config(s3={"addressing_style": "path"})))


def _config() -> Any:
    from botocore.config import Config

    return Config(
        retries={"mode": "standard", "max_attempts": 4},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=16,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
