"""Whole answers out of an engine's deltas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from labkit.serve.engine.delta import Completion, Delta, Result
from labkit.serve.engine.params import SamplingParams
from labkit.serve.engine.request import Request
from labkit.serve.scheduler.limits import Full

if TYPE_CHECKING:
    from labkit.serve.engine.engine import Engine


@dataclass
class Gathered:
    """The deltas of one request so far, and when the first and the last came."""

    request: Request
    deltas: list[Delta] = field(default_factory=list)
    first: float | None = None
    finished: float = 0.0

    def add(self, delta: Delta, now: float) -> None:
        """One more."""
        self.first = now if self.first is None else self.first
        self.finished = now
        self.deltas.append(delta)

    def result(self) -> Result:
        """All put together."""
        prompt_logprobs = [d.prompt_logprobs for d in self.deltas if d.prompt_logprobs is not None]
        return Result(
            self.request.prompt,
            tuple(self._completion(index) for index in range(self.request.params.n)),
            max(delta.cached_tokens for delta in self.deltas),
            self.request.arrived,
            self.first,
            self.finished,
            prompt_logprobs[0] if prompt_logprobs else None,
        )

    def _completion(self, index: int) -> Completion:
        own = [delta for delta in self.deltas if delta.index == index]
        return Completion(
            index,
            tuple(token for delta in own for token in delta.token_ids),
            "".join(delta.text for delta in own),
            tuple(one for delta in own for one in delta.logprobs),
            own[-1].finish_reason,
            own[-1].error,
        )


def generate(
    engine: Engine, prompts: Iterable[Sequence[int] | str], params: SamplingParams | Sequence[SamplingParams]
) -> list[Result]:
    """See `Engine.generate`."""
    if engine.busy:
        raise ValueError("requests are under way whose news would be lost; step the engine until it is not busy")
    prompts = list(prompts)
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    if len(each) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts and {len(each)} params are given; give one for each, or one for all")
    coming = [engine.prepare(str(at), *pair) for at, pair in enumerate(zip(prompts, each, strict=True))]
    gathered, at = [Gathered(request) for request in coming], 0
    while at < len(coming) or engine.busy:
        while at < len(coming):
            try:
                engine.enter(coming[at])
            except Full:
                break
            at += 1
        for delta in engine.step():
            gathered[int(delta.id)].add(delta, engine.clock())
    return [one.result() for one in gathered]
