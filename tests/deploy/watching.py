"""Prometheus and Alertmanager as processes on free ports, and a server that names targets and is told of alerts."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml
from deploy_names import MONITORING

from labkit.serve.fleet.hastened import hastened

FASTER = 100.0
OFTEN = "200ms"


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def until(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first answer that is not empty; fails with the last one after so many seconds."""
    end = time.monotonic() + seconds
    while not (got := what()):
        assert time.monotonic() < end, f"still {got!r} after {seconds:g} s"
        time.sleep(0.05)
    return got


class Hook:
    """Answers /targets and /metrics with what it is given, and keeps what is posted, by path."""

    def __init__(self) -> None:
        self.targets: list[dict[str, Any]] = []
        self.metrics = ""
        self.posted: dict[str, list[dict[str, Any]]] = {}
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told = (json.dumps(hook.targets), "application/json")
                body, kind = told if self.path == "/targets" else (hook.metrics, "text/plain; version=0.0.4")
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(body.encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.posted.setdefault(self.path, []).append(json.loads(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]

    def told(self, path: str, status: str) -> set[str]:
        """The names of the alerts that came with this status."""
        alerts = [alert for message in self.posted.get(path, ()) for alert in message["alerts"]]
        return {alert["labels"]["alertname"] for alert in alerts if alert["status"] == status}

    def __enter__(self) -> Hook:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Program:
    """A process with an HTTP interface, while a `with` block lasts.

    Args:
        command: what to run; its output goes to a file in `folder`.
        ready: path that answers 200 once it is.
    """

    def __init__(self, command: Sequence[str], folder: Path, port: int, ready: str = "/-/ready") -> None:
        self.url, self._command, self._ready = f"http://127.0.0.1:{port}", list(command), ready
        self._log = folder / "log.txt"

    def __enter__(self) -> Any:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        self._client = httpx.Client(base_url=self.url, timeout=10)
        until(self._is_ready)
        return self

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return self._client.get(self._ready).status_code == 200
        except httpx.TransportError:
            return False

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait(10)

    def get(self, path: str, **params: Any) -> Any:
        """The answer, from JSON; it must be a good one."""
        answer = self._client.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()


class Alertmanager(Program):
    """With our configuration: its receivers are the hook, and it does not wait for minutes."""

    def __init__(self, folder: Path, hook: Hook) -> None:
        name = next(filter(None, map(shutil.which, ("prometheus-alertmanager", "alertmanager"))))
        config = (
            (MONITORING / "alertmanager.yml").read_text().replace("http://pager:9095", f"http://127.0.0.1:{hook.port}")
        )
        config = config.replace("group_wait: 30s", "group_wait: 1s").replace("group_interval: 5m", "group_interval: 1s")
        (folder / "alertmanager.yml").write_text(config)
        self.port = free_port()
        super().__init__(
            [
                name, f"--config.file={folder / 'alertmanager.yml'}", f"--storage.path={folder}",
                f"--web.listen-address=127.0.0.1:{self.port}", "--cluster.listen-address=",
            ],
            folder, self.port,
        )  # fmt: skip

    def held_back(self) -> set[str]:
        """The alerts that another one inhibits."""
        return {
            each["labels"]["alertname"] for each in self.get("/api/v2/alerts") if each["status"]["inhibitedBy"]
        }  # fmt: skip


class Prometheus(Program):
    """With our configuration and our rules, in which time runs faster."""

    def __init__(self, folder: Path, hook: Hook, alertmanager: Alertmanager) -> None:
        (folder / "rules.yml").write_text(hastened((MONITORING / "rules.yml").read_text(), FASTER))
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": OFTEN, "evaluation_interval": OFTEN}
        config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager.port}"]
        config["scrape_configs"] = [each for each in config["scrape_configs"] if each["job_name"] == "labkit"]
        (found,) = config["scrape_configs"][0]["http_sd_configs"]
        found.update(url=f"http://127.0.0.1:{hook.port}/targets", refresh_interval="1s")
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        super().__init__(
            [
                "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            folder, port,
        )  # fmt: skip

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The vector that a query gives now."""
        return self.get("/api/v1/query", query=query)["data"]["result"]

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        alerts = self.get("/api/v1/alerts")["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}
