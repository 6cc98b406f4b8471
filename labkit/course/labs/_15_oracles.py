"""Lab 15: what others make of the same files, names and failures."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import numpy as np

from labkit.course.attempt import Case
from labkit.course.labs._15_cases import PART


def etag(data: bytes, part: int) -> str:
    """What an S3 store (moto's) says that was sent the parts, its least size of a part put to 0."""
    import boto3
    from moto import mock_aws

    with mock_aws(), mock.patch("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 0):
        store = boto3.client("s3", "us-east-1", aws_access_key_id="none", aws_secret_access_key="none")
        store.create_bucket(Bucket="models")
        where = {"Bucket": "models", "Key": "shard"}
        upload = store.create_multipart_upload(**where)["UploadId"]
        sent = []
        for number, at in enumerate(range(0, max(len(data), 1), part), 1):
            body = data[at : at + part]
            told = store.upload_part(**where, UploadId=upload, PartNumber=number, Body=body)
            sent.append({"PartNumber": number, "ETag": told["ETag"]})
        store.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": sent})
        return store.head_object(**where)["ETag"].strip('"')


def etag_fits(case: Case) -> bool:
    """Two of them: each part is a request, and each case a store of its own."""
    data, part = case.args
    return part > 0 and (len(data) == 10 or part == PART)


def safe_path(folder: str, name: str) -> str:
    """`safe_join` of werkzeug, on which flask serves files."""
    from werkzeug.security import safe_join

    joined = safe_join(folder, name)
    if joined is None:
        raise ValueError(name)
    return joined


def path_fits(case: Case) -> bool:
    """Where both ask the same: it lets a name be written in two ways, and knows the tricks of its own system only."""
    _, name = case.args
    told = any(trick in name for trick in ("\\", ":", "\0"))
    inside = name in ("shards/../config.json", "./config.json", "shards/./x", "shards//x", "shards/", "", "shards/..")
    return not told and not inside and not name.startswith("....")


def pages(
    failed: Sequence[int], asked: Sequence[int], budget: float, rules: Sequence[tuple[int, int, float]]
) -> list[bool]:
    """Sums over windows by `numpy.convolve`."""
    if not asked:
        return []

    def ratio(window: int) -> np.ndarray:
        ones = np.ones(window)
        bad, all_ = (np.convolve(counts, ones)[: len(asked)].round() for counts in (failed, asked))
        return np.divide(bad, all_, out=np.zeros(len(asked)), where=all_ > 0)

    fires = [(ratio(long) > factor * budget) & (ratio(short) > factor * budget) for long, short, factor in rules]
    return np.logical_or.reduce(fires).tolist()
