"""A file in many parts, several at a time; parts that lie there whole from an earlier attempt are not sent again."""

from __future__ import annotations

import base64
from typing import Any

from labkit.serve.registry.errors import Interrupted, Missing
from labkit.serve.registry.plan import Plan
from labkit.serve.registry.s3_said import said
from labkit.serve.registry.store import Sent
from labkit.serve.registry.together import together

THREADS = 4
TRIES = 3  # where somebody else finishes or drops the upload that we take part in


class Multipart:
    """One file's multipart upload.

    Args:
        client, uri: of the store.
        at: bucket and key.
        plan: the file.
        sent: hears of every part's bytes.
    """

    def __init__(self, client: Any, uri: str, at: dict[str, str], plan: Plan, sent: Sent) -> None:
        self._client, self._uri, self._at, self._plan = client, uri, at, plan
        self._sent, self._told = sent, [False] * len(plan.md5s)

    def send(self) -> None:
        """Send what is missing and put the parts together."""
        for _ in range(TRIES):
            id, there = self._earlier()
            try:
                self._send(id or self._begin(), there)
                return
            except Missing:  # two publishers of the same bytes share an upload: the other has finished it
                if self._is_there():
                    for index in range(len(self._told)):
                        self._tell(index)
                    return
        raise Interrupted(f"the upload of {self._plan.source} to {self._uri} was dropped {TRIES} times; push again")

    def _send(self, id: str, there: set[int]) -> None:
        for index in there:
            self._tell(index)
        missing = [index for index in range(len(self._plan.md5s)) if index not in there]
        together(lambda index, stop: self._part(id, index), missing, THREADS)
        listed = sorted(self._listed(id).items())  # a store that encrypts gives other ETags than ours
        parts = [{"PartNumber": number, "ETag": tag} for number, (tag, _) in listed]
        with said(self._uri, self._at["Key"]):
            self._client.complete_multipart_upload(**self._at, UploadId=id, MultipartUpload={"Parts": parts})

    def _part(self, id: str, index: int) -> None:
        data = self._plan.part(index)
        check = base64.b64encode(bytes.fromhex(self._plan.md5s[index])).decode()
        with said(self._uri, self._at["Key"]):
            self._client.upload_part(**self._at, UploadId=id, PartNumber=index + 1, Body=data, ContentMD5=check)
        self._tell(index)

    def _tell(self, index: int) -> None:
        if not self._told[index]:
            self._told[index] = True
            start, stop = self._plan.span(index)
            self._sent(stop - start)

    def _begin(self) -> str:
        with said(self._uri, self._at["Key"]):
            return self._client.create_multipart_upload(**self._at)["UploadId"]

    def _earlier(self) -> tuple[str, set[int]]:
        """The earlier attempt that has most of the parts, and which; '' if there is none in the same steps."""
        best: tuple[str, set[int]] = "", set()
        with said(self._uri, self._at["Key"]):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._at["Bucket"], Prefix=self._at["Key"]
            )
            ids = [
                each["UploadId"] for page in pages for each in page.get("Uploads", ()) if each["Key"] == self._at["Key"]
            ]
        for id in ids:
            whole = self._whole(id)
            if whole is not None and (not best[0] or len(whole) > len(best[1])):
                best = id, whole
        return best

    def _whole(self, id: str) -> set[int] | None:
        """The parts that lie there and are right; None for an upload in other steps, which is left alone."""
        try:
            listed = self._listed(id)
        except Missing:
            return None
        whole = set()
        for number, (tag, size) in listed.items():
            if number > len(self._plan.md5s):
                return None
            start, stop = self._plan.span(number - 1)
            if size != stop - start:
                return None
            if tag.strip('"') == self._plan.md5s[number - 1]:
                whole.add(number - 1)
        return whole

    def _listed(self, id: str) -> dict[int, tuple[str, int]]:
        with said(self._uri, self._at["Key"]):
            pages = self._client.get_paginator("list_parts").paginate(**self._at, UploadId=id)
            return {
                part["PartNumber"]: (part["ETag"], part["Size"]) for page in pages for part in page.get("Parts", ())
            }

    def _is_there(self) -> bool:
        try:
            with said(self._uri, self._at["Key"]):
                answer = self._client.head_object(**self._at)
        except Missing:
            return False
        return answer["ContentLength"] == self._plan.bytes
