"""kill -9 at twenty random points: every checkpoint is whole, and what follows is as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_run_that_is_killed_twenty_times_is_the_run_that_was_not(tmp_path):
    path = os.pathsep.join([str(HERE), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, HERE / "killed_runs.py", tmp_path, "20"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] >= 20
    assert told["damaged"] == []
    assert told["within_a_save"] >= 2  # else this test would not have met the dangerous moments
    assert [row["step"] for row in told["whole"]["rows"]] == list(range(3, 25, 3))
    for story in told["stories"]:
        assert story == told["whole"]
