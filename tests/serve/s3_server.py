"""An S3 server over HTTP for tests: moto's, with what it lacks of a real one in front of it.

moto looks at the condition of a write, then writes, and lets another request pass in between: here writes go one at a
time. It keeps a body that was cut off on its way and does not compare Content-MD5: here both are refused, as S3 does.
A part of an upload that is no more makes it fail inside: here that is NoSuchUpload.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from werkzeug.serving import WSGIRequestHandler

KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}


class Strict:
    """A WSGI application in front of moto's.

    `tamper(environ)` may change a request; `log` holds method, path and query of all. After `cut(up=…)` or
    `cut(down=…)` that many more bytes of bodies pass (towards the server, or from it); then the connection is broken in
    the middle and nobody gets through until `mend()`.
    """

    def __init__(self, app: Any) -> None:
        self._app, self._lock, self._writing = app, threading.Lock(), threading.Lock()
        self.tamper = lambda environ: None
        self.log: list[tuple[str, str, str]] = []
        self._left: dict[str, int | None] = {"up": None, "down": None}
        self.received = 0

    def cut(self, **bytes_left: int) -> None:
        """Break the connection after so many more bytes of bodies."""
        self._left |= bytes_left

    def mend(self) -> None:
        """Let everything through again."""
        self._left = {"up": None, "down": None}

    def _take(self, way: str, count: int) -> int:
        """How many of `count` bytes still pass."""
        with self._lock:
            left = self._left[way]
            if left is None:
                return count
            self._left[way] = max(0, left - count)
            return min(left, count)

    def _broken(self) -> bool:
        return 0 in self._left.values()

    @staticmethod
    def _hang_up(environ: dict[str, Any]) -> list[bytes]:
        with suppress(OSError):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return []

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        if self._broken():
            start("200 OK", [])
            return self._hang_up(environ)
        self.tamper(environ)
        self.log.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", "")))
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._answer(environ, self._app(environ, start))
        return self._write(environ, start)

    def _write(self, environ: dict[str, Any], start: Any) -> Any:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        passed = self._take("up", size)
        body = environ["wsgi.input"].read(passed)
        self.received += len(body)
        if passed < size:
            start("200 OK", [])
            return self._hang_up(environ)
        if len(body) != size:
            return self._refuse(start, "IncompleteBody")
        wanted = environ.get("HTTP_CONTENT_MD5")
        if wanted and base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode() != wanted:
            return self._refuse(start, "BadDigest")
        environ["wsgi.input"] = io.BytesIO(body)
        with self._writing:
            try:
                return self._app(environ, start)
            except KeyError:
                return self._refuse(start, "NoSuchUpload", "404 Not Found")

    def _answer(self, environ: dict[str, Any], answer: Any) -> Iterator[bytes]:
        for chunk in answer:
            passed = self._take("down", len(chunk))
            yield chunk[:passed]
            if passed < len(chunk):
                self._hang_up(environ)
                return

    @staticmethod
    def _refuse(start: Any, code: str, status: str = "400 Bad Request") -> list[bytes]:
        start(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]


class Silent(WSGIRequestHandler):
    """Says nothing about each request."""

    def log_request(self, *args: Any) -> None:
        pass


@contextmanager
def s3_server() -> Iterator[tuple[str, Strict]]:
    """The address of a server, and the application in front; buckets of earlier tests may still be there."""
    port, app = _started()
    app.log.clear()
    try:
        yield f"http://127.0.0.1:{port}", app
    finally:
        app.tamper = lambda environ: None
        app.mend()


@functools.cache
def _started() -> tuple[int, Strict]:
    """One server for all tests of a process: it ends with it."""
    import moto.s3.models
    from moto.server import create_backend_app
    from werkzeug.serving import make_server

    moto.s3.models.S3_UPLOAD_PART_MIN_SIZE = 1
    app = Strict(create_backend_app("s3"))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port, app


@functools.cache
def s3_client(endpoint: str, *, attempts: int = 2) -> Any:
    """A client of a server, that gives up soon."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "max_attempts": attempts},
        connect_timeout=5,
        read_timeout=20,
        max_pool_connections=16,
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session(**KEYS).client("s3", endpoint_url=endpoint, config=config)
