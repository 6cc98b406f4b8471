"""The command under torchrun: it trains, a worker that is killed ends it with a name, and one process goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from labkit.train import journal

SMALL = {
    "steps": 400, "batch": 2, "sequence": 16, "width": 16, "experts": 4, "layers": 1, "bytes": 9000, "save-every": 2,
    "log-every": 1, "timeout": 60, "backend": "gloo",
}  # fmt: skip
PATIENCE = 120.0


def start(folder: Path, ranks: int) -> subprocess.Popen:
    runner = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    small = [f"--{name}={value}" for name, value in SMALL.items()]
    command = [sys.executable, *runner, "-m", "labkit.train.parallel", f"--folder={folder}", *small]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def workers(parent: int) -> list[int]:
    """The processes that torchrun started, by number."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return sorted(int(child) for child in children)


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_worker_ends_the_job_with_its_name_and_one_process_goes_on(tmp_path):
    job = start(tmp_path, 2)
    try:
        wait_for(lambda: any(tmp_path.glob("step-*")), job)
        killed = workers(job.pid)[1]
        os.kill(killed, signal.SIGKILL)
        said, _ = job.communicate(timeout=PATIENCE)
    finally:
        job.kill()
    assert job.returncode != 0
    assert re.search(rf"rank +: 1 .*\n.*exitcode +: -9 \(pid: {killed}\)", said), said[-3000:]
    assert f"Signal 9 (SIGKILL) received by PID {killed}" in said
    reached = max(int(path.name[5:]) for path in tmp_path.glob("step-*"))
    assert 2 <= reached < 400
    one = start(tmp_path, 1)
    try:
        wait_for(lambda: any(int(path.name[5:]) > reached for path in tmp_path.glob("step-*")), one)
    finally:
        one.kill()
        one.communicate()
    ranks = {row["step"]: row["ranks"] for row in journal.read(tmp_path / "log.jsonl")}
    assert ranks[reached] == 2
    assert ranks[reached + 1] == 1
