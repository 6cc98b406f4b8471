"""Tells whoever watches an engine what each step did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from labkit.serve.engine.delta import StepReport
from labkit.serve.scheduler import Load, Step

if TYPE_CHECKING:
    from labkit.serve.engine.request import Continuation
    from labkit.serve.engine.runner import Runner


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

    def tell(self, step: Step, began: float, now: float, decode: int, runner: Runner, load: Callable[[], Load]) -> None:
        """The step is over."""
        if not self.observers:
            return
        ended, self._ended = tuple(self._ended), []
        prefill = step.num_tokens - decode
        report = StepReport(step, began, now - began, decode, prefill, runner.counts(), ended, load())
        for observer in self.observers:
            observer(report)
