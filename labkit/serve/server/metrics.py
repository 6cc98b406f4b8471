"""What Prometheus reads: who asked, how long they waited, how full the engine is, and which experts worked.

Latencies are taken when a token arrives from the backend, so that a client who reads slowly does not change them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from labkit.serve.engine import Backend, Delta, StepReport

FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 5)
WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The books of one server, in a registry of their own.

    Args:
        backend: asked for its load and health whenever Prometheus reads.
        clock: of monotonic seconds.
    """

    def __init__(self, backend: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "labkit_requests", "Requests by route and status.", ["route", "code"], registry=registry
        )
        self.in_flight = Gauge("labkit_requests_in_flight", "Requests that are being answered.", registry=registry)
        self.answers = Counter("labkit_answers", "Answers by the way they ended.", ["finish"], registry=registry)
        self.prompt_tokens = Counter("labkit_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.cached_tokens = Counter("labkit_cached_prompt_tokens", "Of these, found in the cache.", registry=registry)
        self.new_tokens = Counter("labkit_generated_tokens", "Tokens of answers.", registry=registry)
        self.first = Histogram(
            "labkit_time_to_first_token_seconds", "From the request to its first token.", registry=registry,
            buckets=FIRST,
        )  # fmt: skip
        self.between = Histogram(
            "labkit_inter_token_seconds", "From one token of an answer to the next.", registry=registry, buckets=BETWEEN
        )
        self.whole = Histogram(
            "labkit_answer_seconds", "From the request to the end of an answer.", registry=registry, buckets=WHOLE
        )
        self.steps = Histogram("labkit_step_seconds", "One step of the engine.", registry=registry, buckets=BETWEEN)
        self._experts: list[list[int]] = []
        self._backend = backend
        registry.register(self)
        backend.subscribe(self.step)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

    def watch(self, prompt_tokens: int, n: int = 1) -> Watch:
        """A request begins: tokens of all its prompts, and answers to each."""
        self.prompt_tokens.inc(prompt_tokens)
        return Watch(self, n)

    def step(self, report: StepReport) -> None:
        """The engine made a step."""
        self.steps.observe(report.seconds)
        if report.experts is None:
            return
        if [len(layer) for layer in self._experts] != [len(layer) for layer in report.experts]:
            self._experts = [[0] * len(layer) for layer in report.experts]
        for sums, layer in zip(self._experts, report.experts, strict=True):
            for expert, tokens in enumerate(layer):
                sums[expert] += tokens

    def collect(self) -> Iterator[Metric]:
        """The backend's numbers, as they are now (the protocol of prometheus-client's collectors)."""
        health = self._backend.health()
        yield _gauge("ready", "1 if requests are accepted.", float(health.ready))
        yield _gauge("draining", "1 if the server is about to end.", float(health.draining))
        yield _counter("backend_restarts", "Times that the engine's process was replaced.", health.restarts)
        try:
            load = self._backend.load()
            layers = self._backend.info.sparse_layers
        except (RuntimeError, AttributeError):
            return  # still loading
        yield _gauge("sequences_running", "Sequences that run.", load.running)
        yield _gauge("sequences_waiting", "Sequences that wait for their turn.", load.waiting)
        yield _gauge("waiting_tokens", "Prompts and longest answers of all that wait.", load.waiting_tokens)
        yield _gauge("kv_blocks", "Blocks of the cache.", load.blocks)
        yield _gauge("kv_blocks_free", "Blocks that nobody holds, with those kept.", load.free_blocks)
        yield _gauge("kv_blocks_kept", "Free blocks whose content can be found again.", load.kept_blocks)
        used = (load.blocks - load.free_blocks) / load.blocks if load.blocks else 0.0
        yield _gauge("kv_usage_ratio", "Share of the blocks that is held, 0 to 1.", used)
        yield _counter("preemptions", "Sequences that lost their blocks and were computed again.", load.preemptions)
        yield _counter("evictions", "Kept blocks that were given to others.", load.evictions)
        yield _counter("engine_steps", "Steps of the engine.", load.steps)
        yield _counter("computed_tokens", "Positions that were computed.", load.computed_tokens)
        experts = CounterMetricFamily(
            "labkit_expert_tokens", "Tokens that were sent to an expert.", labels=["layer", "expert"]
        )
        for layer, tokens in zip(layers, self._experts, strict=False):
            for expert, count in enumerate(tokens):
                experts.add_metric([str(layer), str(expert)], count)
        yield experts


class Watch:
    """The times of one request; call `saw` for each piece of its answers."""

    def __init__(self, metrics: Metrics, n: int = 1) -> None:
        self._metrics, self._began, self._n = metrics, metrics.clock(), n
        self._last: dict[int, float] = {}
        self._counted: set[int] = set()

    def saw(self, number: int, delta: Delta) -> None:
        """A piece of answer `number` has come."""
        metrics, now = self._metrics, self._metrics.clock()
        if delta.cached_tokens and number // self._n not in self._counted:
            self._counted.add(number // self._n)
            metrics.cached_tokens.inc(delta.cached_tokens)
        if delta.token_ids:
            metrics.new_tokens.inc(len(delta.token_ids))
            if number in self._last:
                metrics.between.observe((now - self._last[number]) / len(delta.token_ids))
            else:
                metrics.first.observe(now - self._began)
            self._last[number] = now
        if delta.finish_reason is not None:
            metrics.answers.labels(delta.finish_reason).inc()
            metrics.whole.observe(now - self._began)


def _gauge(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"labkit_{name}", words, value=value)


def _counter(name: str, words: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"labkit_{name}", words, value=value)
