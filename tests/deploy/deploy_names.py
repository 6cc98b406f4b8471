"""Which metrics there are, and which a query names."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from scripted_backend import Scripted

from labkit.serve.fleet.deployed import deployed
from labkit.serve.server.metrics import Metrics

ROOT = Path(__file__).parents[2]
MONITORING = deployed() / "monitoring"
FLEET_DOC = (ROOT / "docs" / "fleet.md").read_text("utf-8")
ENDINGS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@functools.cache
def of_the_server() -> frozenset[str]:
    """What a running `labkit serve` tells at /metrics."""
    backend = Scripted()
    backend.started = True
    families = Metrics(backend).registry.collect()
    return frozenset(family.name + ending for family in families for ending in ENDINGS[family.type])


def of_the_fleet() -> set[str]:
    """What docs/fleet.md says that a fleet tells."""
    return set(re.findall(r"^\| `(labkit_fleet_\w+)`", FLEET_DOC, re.MULTILINE))


def named(query: str) -> set[str]:
    """The series of ours that a query reads, recorded ones too."""
    return set(re.findall(r"(?<![\w:])(?:[a-z_]+:)?labkit_\w+(?::\w+)?", query))
