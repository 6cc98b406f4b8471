"""The books of serving load no torch, so that labs, simulations and the command line can use them at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "cache.blocks",
        "scheduler",
        "scheduler.simulate",
        "workload",
        "batching",
        "engine.backend",
        "server.settings",
        "server.model",
        "server.keys",
        "timeline",
        "registry",
        "fleet.policies",
        "fleet.simulate",
        "fleet.queueing",
        "fleet.traffic",
    ],
)
def test_counting_needs_no_torch(module):
    here = str(Path(__file__).parents[2])
    code = f"import sys; sys.path.insert(0, {here!r}); import labkit.serve.{module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {name.split(".")[0] for name in loaded} & {
        "torch",
        "numpy",
        "transformers",
        "fastapi",
        "boto3",
        "ray",
    } == set()
