"""A runner without a model: logits are hashes of what a paged memory holds, so that any wrong block shows."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from remembering_model import Memory

from labkit.serve.engine import Delta, Engine, SamplingParams
from labkit.serve.engine.sampler import choose
from labkit.serve.scheduler import Limits, Step

VOCAB = 6


class StubOutcome:
    """Logits of entries, one list for each chunk that samples."""

    def __init__(self, entries: list[list[int]]) -> None:
        self._rows = [[hash((*seen, token)) % 1000 / 100 for token in range(VOCAB)] for seen in entries]
        self.best = [row.index(max(row)) for row in self._rows]

    def logits(self, which):
        return torch.tensor([self._rows[at] for at in which], dtype=torch.float64)


class StubRunner:
    """Remembers entries by block; raises for chunks that hold the token `poison`, and has no number after `spoilt`."""

    vocab_size = VOCAB

    def __init__(self, limits: Limits, poison: int | None = None, spoilt: int | None = None) -> None:
        self.memory, self.poison, self.spoilt = Memory(limits), poison, spoilt
        self.last: list[int] = []

    def copy(self, pairs):
        self.memory.run(Step(0, copies=tuple(pairs)))

    def run(self, chunks):
        if any(self.poison in chunk.tokens for chunk in chunks):
            raise RuntimeError("poison")
        entries = self.memory.run(Step(0, chunks=tuple(chunks)))
        outcome = StubOutcome(list(entries.values()))
        for at, chunk in enumerate([chunk for chunk in chunks if chunk.samples]):
            if self.spoilt in chunk.tokens:
                outcome.best[at] = -1
                outcome._rows[at][0] = float("nan")
        return outcome

    def send(self, chunks, sources, choices):
        """Computed at once, with tokens that only the last pass knows."""
        assert all(source < 0 or len(chunk.tokens) == 1 for chunk, source in zip(chunks, sources, strict=True))
        fed = [
            chunk if source < 0 else chunk._replace(tokens=(max(self.last[source], 0),))
            for chunk, source in zip(chunks, sources, strict=True)
        ]
        outcome = self.run(fed)
        self.last = list(outcome.best)
        for row, choice in choices:
            self.last[row] = choose(outcome.logits([row]), [choice]).item()
        return SimpleNamespace(tokens=self.last.copy)

    def counts(self, now=False):
        return None


class Forgetful:
    """As little as a runner can do: a token out of the last one and its position."""

    vocab_size = VOCAB

    def copy(self, pairs):
        pass

    def run(self, chunks):
        outcome = StubOutcome([])
        outcome.best = [(chunk.tokens[-1] + chunk.start) % VOCAB for chunk in chunks if chunk.samples]
        outcome._rows = [[float(token == one) for token in range(VOCAB)] for one in outcome.best]
        return outcome

    def counts(self, now=False):
        return None


def stub_engine(limits: Limits, ahead: bool = False, **changes) -> Engine:
    """An engine over a stub."""
    return Engine(None, limits=limits, runner=StubRunner(limits, **changes), ahead=ahead)


def run_out(engine: Engine) -> list[Delta]:
    """All news until nobody is left; the books are checked after each step."""
    news = []
    while engine.busy:
        news += engine.step()
        engine.check()
    return news


def answers(news: list[Delta]) -> dict[tuple[str, int], tuple[list[int], str | None]]:
    """Tokens and the finish reason of each continuation."""
    found: dict[tuple[str, int], tuple[list[int], str | None]] = {}
    for delta in news:
        tokens, reason = found.get((delta.id, delta.index), ([], None))
        assert reason is None, "news after the end"
        found[delta.id, delta.index] = (tokens + list(delta.token_ids), delta.finish_reason)
    return found


def alone(prompt, params: SamplingParams) -> list[tuple[list[int], str | None]]:
    """What an engine with room for everything answers to one request."""
    engine = stub_engine(Limits(num_blocks=64, block_size=4, max_context=200))
    engine.add("alone", prompt, params)
    found = answers(run_out(engine))
    return [found["alone", index] for index in range(params.n)]
