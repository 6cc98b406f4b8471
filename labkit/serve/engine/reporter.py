"""Tells whoever watches an engine what each step did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from labkit.serve.engine.delta import StepReport
from labkit.serve.scheduler import Step

if TYPE_CHECKING:
    from labkit.serve.engine.engine import Engine
    from labkit.serve.engine.request import Continuation


class Reporter:
    """Makes a `StepReport` of each step while there are `observers`, and nothing while there are none."""

    def __init__(self) -> None:
        self.observers: list[Callable[[StepReport], None]] = []
        self._ended: list[tuple[str, str]] = []

    def end(self, id: str, reason: str) -> None:
        """A sequence has ended."""
        if self.observers:
            self._ended.append((id, reason))

    def decoding(self, step: Step, running: Mapping[str, Continuation]) -> int:
        """How many sequences decode in a step; 0 if nobody wants to know."""
        if not self.observers:
            return 0
        return sum(
            len(chunk.tokens) == 1 and chunk.start >= len(running[chunk.id].request.prompt) for chunk in step.chunks
        )

    def tell(self, engine: Engine, step: Step, began: float, decode: int) -> None:
        """The step is over."""
        if not self.observers:
            return
        ended, self._ended = tuple(self._ended), []
        seconds, prefill = engine.clock() - began, step.num_tokens - decode
        counts = engine.runner.counts(now=not engine.running)
        report = StepReport(step, began, seconds, decode, prefill, counts, ended, engine.load())
        for observer in self.observers:
            observer(report)
