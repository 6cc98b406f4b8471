"""From a text to a registry."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from labkit.serve.registry import names
from labkit.serve.registry.folder_store import FolderStore
from labkit.serve.registry.home import default_store
from labkit.serve.registry.registry import Registry
from labkit.serve.registry.s3_store import S3Store


def open_registry(uri: str | os.PathLike[str] | None = None) -> Registry:
    """Open a registry; nothing is made or looked at yet.

    Args:
        uri: `s3://bucket/prefix` (endpoint and credentials through boto3's own variables and files, such as
            AWS_ENDPOINT_URL and AWS_PROFILE), `file:///path`, or a path; None for `default_store()`.

    Raises ValueError for anything else.
    """
    text = os.fspath(uri) if uri is not None else default_store()
    if "://" not in text:
        if not text.strip():
            raise ValueError("the store's address is empty; give s3://bucket/prefix, file:///path or a path")
        return Registry(FolderStore(Path(text).expanduser()))
    parts = urlsplit(text)
    if parts.query or parts.fragment or parts.username or parts.password:
        raise ValueError(f"{text!r} holds more than a place; credentials go into boto3's own variables and files")
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return Registry(FolderStore(Path(unquote(parts.path))))
    if parts.scheme == "s3" and parts.netloc:
        prefix = unquote(parts.path).strip("/")
        for part in prefix.split("/") if prefix else ():
            names.need_prefix(part, text)
        return Registry(S3Store(parts.netloc, prefix))
    raise ValueError(f"{text!r} is no store; give s3://bucket/prefix, file:///path or a path")
