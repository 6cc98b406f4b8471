"""`labkit fleet serve` from start to end: a client asks it, SIGTERM ends it, and nothing of it stays."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("ray")
from openai import OpenAI

from labkit.serve.fleet import cluster

START = 180.0


@pytest.fixture
def served(tmp_path):
    """The command, and the address that it greets with."""
    words = [sys.executable, "-m", "labkit.course.cli", "fleet", "serve", "--port", "0", "--replicas", "1"]
    process = subprocess.Popen(
        [*words, "--store", str(tmp_path / "store")], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "LABKIT_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    late = threading.Timer(START, process.kill)
    late.start()
    said = []
    for line in process.stdout:
        said.append(line)
        if greeted := re.match(r"serving four-domains v1 on (http://\S+) from 1 replicas", line):
            break
    late.cancel()
    assert greeted, "".join(said)
    yield process, greeted[1]
    if process.poll() is None:
        process.kill()
    process.stdout.close()
    process.wait()


def test_the_command_serves_ends_what_runs_and_leaves_nothing(served):
    process, url = served
    with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["four-domains"]
        asked = {"model": "four-domains", "prompt": "def add(a, b):", "temperature": 0}
        whole = client.completions.create(**asked, max_tokens=200, extra_body={"ignore_eos": True})
        stream = client.completions.create(**asked, max_tokens=200, stream=True, extra_body={"ignore_eos": True})
        text = next(stream).choices[0].text
        process.send_signal(signal.SIGTERM)
        text += "".join(chunk.choices[0].text for chunk in stream)
    assert text == whole.choices[0].text
    assert "ending: what runs is finished" in process.stdout.read()
    assert process.wait(60) == 0
    assert not list(Path(cluster.PLACE).glob(f"lk{process.pid}-*"))
    assert not started_by(process.pid)
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as wire:
        assert wire.connect_ex((host, int(port))) != 0


def started_by(pid: int) -> list[str]:
    """What a fleet of this process started and still runs: each knows its folder from its environment."""
    mark, found = f"{cluster.PLACE}/lk{pid}-".encode(), []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (each / "environ").read_bytes():
                found.append((each / "cmdline").read_text())
        except OSError:
            continue
    return found
