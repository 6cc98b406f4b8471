"""What Prometheus reads of the fleet as a whole; each replica keeps its own books besides (`serve.server.metrics`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from labkit.serve.fleet.seats import Member, Seats

OUTCOMES = ("answered", "refused", "failed", "broken", "left")
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Ledger:
    """The books of one front.

    Args:
        seats: asked who is there whenever Prometheus reads.
        wanted: how many replicas there should be, as last heard of.
    """

    def __init__(self, seats: Seats, wanted: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "labkit_fleet_requests", "Requests by replica and outcome: " + ", ".join(OUTCOMES) + ".",
            ["replica", "outcome"], registry=registry,
        )  # fmt: skip
        self.retries = Counter(
            "labkit_fleet_retries", "Requests that were sent again, by reason.", ["reason"], registry=registry
        )
        self.rollouts = Counter(
            "labkit_fleet_rollouts", "Changes of the version, by outcome: done, refused, failed.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self.deaths = Counter("labkit_fleet_replica_deaths", "Replicas that were found dead.", registry=registry)
        self.in_flight = Gauge("labkit_fleet_requests_in_flight", "Requests that are under way.", registry=registry)
        self.seconds = Histogram(
            "labkit_fleet_request_seconds", "From a request to the end of its answer.", buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        for outcome in ("done", "refused", "failed"):
            self.rollouts.labels(outcome)
        for reason in ("died", "unavailable"):
            self.retries.labels(reason)
        self._seats, self._wanted = seats, wanted
        registry.register(self)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Who is there now (the protocol of prometheus-client's collectors)."""
        members = self._seats.members
        wanted = GaugeMetricFamily("labkit_fleet_replicas_wanted", "Replicas that there should be.")
        wanted.add_metric([], self._wanted())
        ready = GaugeMetricFamily("labkit_fleet_replicas_ready", "Replicas that accept requests.")
        ready.add_metric([], len(members))
        yield wanted
        yield ready
        each = GaugeMetricFamily(
            "labkit_fleet_replica_info", "1 for each replica that is there.", labels=["replica", "model", "version"]
        )
        busy = GaugeMetricFamily(
            "labkit_fleet_replica_in_flight", "Requests under way with a replica.", labels=["replica"]
        )
        for member in members:
            each.add_metric([member.id, member.model, member.version], 1)
            busy.add_metric([member.id], self._seats.under_way(member.id))
        yield each
        yield busy


def targets(members: Sequence[Member], front: str) -> list[dict[str, object]]:
    """What Prometheus scrapes, as its http_sd wants it: a group for each replica, and one for the front.

    Args:
        front: host:port under which this was asked for.

    Source: Prometheus, documentation of `http_sd_config`.
    """
    groups: list[dict[str, object]] = [
        {
            "targets": [member.metrics],
            "labels": {"job": "labkit", "replica": member.id, "model": member.model, "version": member.version},
        }
        for member in members
    ]
    return [*groups, {"targets": [front], "labels": {"job": "labkit-fleet"}}]
