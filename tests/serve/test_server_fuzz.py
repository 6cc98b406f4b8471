"""schemathesis invents requests from `/openapi.json`: none may end in a 5xx, or in another shape, or disturb others.

`LABKIT_FUZZ` says how many requests are invented at least (`make fuzz`: 5,000).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

from scripted_backend import TEXT, Scripted, expected
from server_thread import Served

from labkit.serve.engine import SamplingParams
from labkit.serve.server.settings import Settings

CASES = int(os.environ.get("LABKIT_FUZZ", "100"))
# Valid by each field alone, wrong together (a prompt and an answer longer than the context): no schema can say that.
WITHOUT = "positive_data_acceptance"


class Neighbour(threading.Thread):
    """Asks the same again and again, and counts wrong answers."""

    def __init__(self, served: Served, key: str) -> None:
        super().__init__(daemon=True)
        self.served, self.key = served, key
        self.asked, self.wrong, self.done = 0, [], threading.Event()

    def run(self) -> None:
        body = {"model": "scripted", "prompt": "a neighbour", "seed": 5, "max_tokens": 30}
        right = expected("a neighbour", SamplingParams(temperature=1.0, seed=5, max_tokens=30))
        while not self.done.wait(0.1):
            answer = self.served.post("/v1/completions", body, headers={"authorization": f"Bearer {self.key}"})
            if answer.status_code != 200 or answer.json()["choices"][0]["text"] != right:
                self.wrong.append(answer.text)
            self.asked += 1


def invent(url: str, key: str, per_operation: int, phases: str, seed: int) -> subprocess.CompletedProcess[str]:
    program = "from schemathesis.cli import schemathesis; schemathesis()"
    return subprocess.run(
        [
            sys.executable, "-c", program, "run", f"{url}/openapi.json", "--phases", phases, "--seed", str(seed),
            "--max-examples", str(per_operation), "--checks", "all", "--exclude-checks", WITHOUT, "--no-shrink",
            "--continue-on-failure", "--header", f"Authorization: Bearer {key}", "--output-sanitize", "false",
            "--suppress-health-check", "all", "--generation-database", "none",
        ],
        capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1", "COLUMNS": "120"},
    )  # fmt: skip


def test_no_invented_request_breaks_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backend, invented, seed = Scripted(), 0, 0
    with Served(backend, TEXT, Settings(keys=("key",))) as served:
        neighbour = Neighbour(served, "key")
        neighbour.start()
        try:
            while invented < CASES:
                phases = "fuzzing" if CASES < 1000 else "coverage,fuzzing,stateful"
                told = invent(served.url, "key", min(max(CASES // 6, 10), 500), phases, seed)
                assert told.returncode == 0, told.stdout[-6000:] + told.stderr[-2000:]
                invented += int(re.search(r"(\d[\d,]*) generated", told.stdout)[1].replace(",", ""))
                seed += 1
        finally:
            neighbour.done.set()
            neighbour.join()
        metrics = served.get("/metrics").text
        assert served.get("/ready").status_code == 200
    print(f"{invented} requests were invented, {neighbour.asked} of a neighbour answered")
    assert neighbour.wrong == []
    assert neighbour.asked > 0
    assert 'code="5' not in metrics
    assert backend.held == {}
    assert backend.free == backend.num_blocks
