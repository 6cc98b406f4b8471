"""Which metrics there are, and which a query names."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from scripted_backend import Scripted

from labkit.serve.fleet.deployed import deployed
from labkit.serve.fleet.ledger import Ledger
from labkit.serve.fleet.policies import policy
from labkit.serve.fleet.seats import Seats
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


def books() -> Ledger:
    """Those of a fleet without replicas."""
    return Ledger(Seats(policy("round_robin")), lambda: 0)


@functools.cache
def of_the_fleet() -> frozenset[str]:
    """What a fleet tells of itself."""
    return frozenset(family.name + ending for family in books().registry.collect() for ending in ENDINGS[family.type])


def named(query: str) -> set[str]:
    """The series of ours that a query reads, recorded ones too."""
    return set(re.findall(r"(?<![\w:])(?:[a-z_]+:)?labkit_\w+(?::\w+)?", query))
