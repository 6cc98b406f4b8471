"""What comes out of an engine: news of each continuation, whole results, and what each step did. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.serve.scheduler.step import Load, Step

FINISHES = ("stop", "length", "cancelled", "error")


@dataclass(frozen=True)
class TokenLogprob:
    """One token and how likely the model found it.

    Args:
        token_id, text: the token, and its own text (bytes that are no whole character are shown as �).
        logprob: natural logarithm of its probability, before temperature and filters.
        top: (token id, text, logprob) of the most likely tokens, the best first.
    """

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """What is new of one continuation.

    Args:
        id: of the request; index: which of its `n` continuations.
        token_ids: the tokens of this step; the texts of all deltas together are the answer.
        text: never half a character, never what may yet turn out to be the beginning of a stop: so it may lag behind
            the tokens, and be empty.
        logprobs: one for each of token_ids, if asked for.
        prompt_logprobs: of each prompt token, with the first delta of index 0; None for the first token, which
            nothing predicts.
        finish_reason: None, or "stop", "length", "cancelled", "error": nothing more comes of this index.
        error: what went wrong, for people.
        cached_tokens: of the prompt, found in the cache; the same in every delta.
    """

    id: str
    index: int = 0
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish_reason: str | None = None
    error: str | None = None
    cached_tokens: int = 0


@dataclass(frozen=True)
class Completion:
    """One whole continuation: the deltas of an index, put together."""

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Result:
    """One whole request; `arrived`, `first` (token) and `finished` are seconds on the engine's clock."""

    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    cached_tokens: int
    arrived: float
    first: float
    finished: float
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None

    @property
    def text(self) -> str:
        """Of the first continuation."""
        return self.completions[0].text


@dataclass(frozen=True)
class StepReport:
    """What one step did; it can be pickled and holds no tensors.

    Args:
        step: what was computed. The id of a sequence is that of its request, a dot, and its index: `"7.0"`.
        began, seconds: when, on the engine's clock, and how long, with sampling.
        decode_tokens, prefill_tokens: positions of sequences that decode, and of prompts (or what is computed again).
        experts: tokens that each expert of each sparse layer got, since the last report that had any; None where the
            model counts none, or has not been read yet.
        ended: (sequence id, finish reason) of those that ended with this step or since the last one.
        load: of the scheduler, afterwards.
    """

    step: Step
    began: float
    seconds: float
    decode_tokens: int
    prefill_tokens: int
    experts: tuple[tuple[int, ...], ...] | None = None
    ended: tuple[tuple[str, str], ...] = ()
    load: Load | None = None
