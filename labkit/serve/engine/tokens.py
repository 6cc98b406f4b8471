"""The tokens of one step: whoever wants the best one has it already, the others are chosen here, together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from labkit.serve.engine.delta import TokenLogprob
from labkit.serve.engine.request import Continuation, Request
from labkit.serve.engine.sampler import NO_TOKEN, choose, logprobs
from labkit.serve.scheduler.step import Chunk

if TYPE_CHECKING:
    from labkit.serve.engine.engine import Engine
    from labkit.serve.engine.runner import Outcome

_ROWS = 256  # of a prompt whose logits are held at once


class Tokens:
    """Collects what was chosen: `chosen` tokens and `logprobs`, by sequence."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.chosen: dict[str, int] = {}
        self.logprobs: dict[str, tuple[TokenLogprob, ...]] = {}

    def compute(self, chunks: Sequence[Chunk], failed: dict[str, str]) -> None:
        """Run chunks, by halves where that raises, and choose a token for each that samples and each fork of it.

        Args:
            failed: gets the sequences for which there is none, and why.
        """
        if not chunks:
            return
        try:
            outcome = self._engine.runner.run(chunks)
        except torch.AcceleratorError:  # the device is lost, for everybody
            raise
        except Exception as error:
            if len(chunks) == 1:
                failed[chunks[0].id] = f"it could not be computed: {type(error).__name__}: {error}"
                return
        else:
            return self._take(chunks, outcome, failed)
        middle = len(chunks) // 2
        self.compute(chunks[:middle], failed)
        self.compute(chunks[middle:], failed)

    @torch.no_grad()
    def _take(self, chunks: Sequence[Chunk], outcome: Outcome, failed: dict[str, str]) -> None:
        running, chosen, others = self._engine.running, self.chosen, []
        at = 0
        for id, start, fed, _, samples in chunks:
            if not samples:
                continue
            continuation, token = running[id], outcome.best[at]
            if token == NO_TOKEN:
                failed[id] = "the model's logits are not finite"
            elif continuation.plain and continuation.request.forked:
                chosen[id] = token
            else:
                family = [continuation]
                if not continuation.request.forked:
                    family += self._engine.fork(continuation.request)
                number = start + len(fed) - len(continuation.request.prompt)
                others += [(one, at, number) for one in family]
            at += 1
        if others:
            self._choose(others, outcome, failed)
        self._read_prompts(chunks, outcome)

    def _choose(self, others: list[tuple[Continuation, int, int]], outcome: Outcome, failed: dict[str, str]) -> None:
        places = sorted({at for _, at, _ in others})
        logits_RV = outcome.logits(places)
        row = {at: number for number, at in enumerate(places)}
        rows = [row[at] for _, at, _ in others]
        if rows != list(range(len(places))):
            logits_RV = logits_RV[torch.tensor(rows, device=logits_RV.device)]
        matchers = [one.matcher for one, _, _ in others]
        allowed, wrong = None, {}
        if any(matchers):
            allowed, wrong = self._engine.grammars().allowed(matchers, logits_RV.device)
        tokens = choose(logits_RV, [one.choice(number) for one, _, number in others], allowed).tolist()
        for number, ((one, _, _), token) in enumerate(zip(others, tokens, strict=True)):
            if token == NO_TOKEN:
                failed[one.id] = wrong.get(number, "no token is allowed, or the model's logits are not finite")
            else:
                self.chosen[one.id] = token
        told = [number for number, (one, _, _) in enumerate(others) if one.request.params.logprobs is not None]
        if told := [number for number in told if tokens[number] != NO_TOKEN]:
            picked = logits_RV if len(told) == len(others) else logits_RV[torch.tensor(told, device=logits_RV.device)]
            ids, tops = [tokens[number] for number in told], [others[n][0].request.params.logprobs for n in told]
            found = logprobs(picked, ids, tops, self._engine.vocabulary)
            self.logprobs |= {others[n][0].id: (one,) for n, one in zip(told, found, strict=True)}

    def _read_prompts(self, chunks: Sequence[Chunk], outcome: Outcome) -> None:
        """Log probabilities of prompt tokens, where someone asked for them."""
        first = 0
        for chunk in chunks:
            request = self._engine.running[chunk.id].request
            if request.reads_prompt:
                self._read_prompt(request, chunk, first, outcome)
            first += len(chunk.tokens)

    def _read_prompt(self, request: Request, chunk: Chunk, first: int, outcome: Outcome) -> None:
        have, top = len(request.prompt_logprobs), request.params.prompt_logprobs
        end = min(chunk.start + len(chunk.tokens) + 1, len(request.prompt))  # each row tells the token after it
        for start in range(have, end, _ROWS):
            ids = request.prompt[start : min(start + _ROWS, end)]
            row = first + start - 1 - chunk.start
            rows_RV = outcome.rows(row, row + len(ids))
            request.prompt_logprobs += logprobs(rows_RV, ids, [top] * len(ids), self._engine.vocabulary)
