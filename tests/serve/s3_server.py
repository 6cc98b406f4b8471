"""An S3 server over HTTP for tests: moto's, with what it lacks of a real one in front of it.

moto looks at the condition of a write, then writes, and lets another request pass in between: here writes go one at a
time. It keeps a body that was cut off on its way and does not compare Content-MD5: here both are refused, as S3 does.
"""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from werkzeug.serving import WSGIRequestHandler

KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}


class Strict:
    """A WSGI application in front of moto's.

    `tamper(environ)` may change a request; `log` holds method, path and query of all.
    """

    def __init__(self, app: Any) -> None:
        self._app, self._lock = app, threading.Lock()
        self.tamper = lambda environ: None
        self.log: list[tuple[str, str, str]] = []

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        self.tamper(environ)
        self.log.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", "")))
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._app(environ, start)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if len(body) != int(environ.get("CONTENT_LENGTH") or 0):
            return self._refuse(start, "IncompleteBody")
        wanted = environ.get("HTTP_CONTENT_MD5")
        if wanted and base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode() != wanted:
            return self._refuse(start, "BadDigest")
        environ["wsgi.input"] = io.BytesIO(body)
        with self._lock:
            return self._app(environ, start)

    @staticmethod
    def _refuse(start: Any, code: str) -> list[bytes]:
        start("400 Bad Request", [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]


class Silent(WSGIRequestHandler):
    """Says nothing about each request."""

    def log_request(self, *args: Any) -> None:
        pass


@contextmanager
def s3_server() -> Iterator[tuple[str, Strict]]:
    """A server on a free port: its address, and the application in front."""
    import moto.s3.models
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto.s3.models.S3_UPLOAD_PART_MIN_SIZE = 1
    app = Strict(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Silent)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", app
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def s3_client(endpoint: str, keys: dict[str, str] = KEYS, *, attempts: int = 2, read_timeout: float = 20) -> Any:
    """A client of a server, that gives up soon."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "max_attempts": attempts},
        connect_timeout=5,
        read_timeout=read_timeout,
        max_pool_connections=16,
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session(**keys).client("s3", endpoint_url=endpoint, config=config)
