"""What a request asks for, beside its prompt."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from labkit.core.whole import need_whole

GREEDY_BELOW = 1e-5  # nearer to 0, the draw could not be told from the best token
MOST_LOGPROBS = 20
MOST_CONTINUATIONS = 128
MOST_STOPS = 64


@dataclass(frozen=True)
class SamplingParams:
    """How a request is continued.

    Args:
        max_tokens: new tokens of each continuation at most.
        temperature: what logits are divided by; 0 (below 1e-5): the best token, whatever the filters say.
        top_p: only the fewest tokens whose probabilities reach p may be drawn; 1: all.
        top_k: only the k best may be drawn; 0: all. Both mean what they mean in transformers (`nn.sampling`).
        seed: of the draws, any whole number; the same seed gives the same answer in any company. None: one is drawn.
        n: continuations.
        stop: texts that end the answer; they are not part of it.
        stop_token_ids: tokens that end the answer; like the end-of-sequence token they count, and have no text.
        ignore_eos: go on after the end-of-sequence token.
        logprobs: None, or how many alternatives are told beside each token's own log probability, 0 to 20; of the
            model's distribution, before temperature and filters.
        prompt_logprobs: the same of each prompt token.
        json_schema: the answer is JSON that this schema allows; json_object: it is any JSON object.

    Raises ValueError for values out of range, and for both forms of JSON at once.

    >>> SamplingParams(max_tokens=5, stop="END").stop
    ('END',)
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    json_schema: dict[str, Any] | None = None
    json_object: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _texts(self.stop))
        object.__setattr__(self, "stop_token_ids", _ids(self.stop_token_ids))
        need_whole("max_tokens", self.max_tokens, 1)
        need_whole("top_k", self.top_k, 0)
        _at_most("n", self.n, MOST_CONTINUATIONS, least=1)
        _number("temperature", self.temperature)
        _number("top_p", self.top_p)
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; give 0 for the best token, or a positive number")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; give a number above 0, up to 1 for all tokens")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise ValueError(f"seed is {self.seed!r}; give a whole number, or None")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _at_most(name, getattr(self, name), MOST_LOGPROBS, least=0)
        for name in ("ignore_eos", "json_object"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; give True or False")
        if self.json_schema is not None and not isinstance(self.json_schema, dict):
            raise ValueError(f"json_schema is a {type(self.json_schema).__name__}; give a JSON schema as a dict")
        if self.json_schema is not None and self.json_object:
            raise ValueError("json_schema and json_object are both given; give the one or the other")

    @property
    def greedy(self) -> bool:
        """Whether the best token is taken, so that nothing is drawn."""
        return self.temperature < GREEDY_BELOW

    @property
    def constrained(self) -> bool:
        """Whether a grammar says which tokens may come."""
        return self.json_object or self.json_schema is not None


def _texts(stop: str | Iterable[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MOST_STOPS or not all(isinstance(one, str) and one for one in stops):
        raise ValueError(f"stop is {stop!r}; give up to {MOST_STOPS} texts, none of them empty")
    return stops


def _ids(ids: Iterable[int]) -> tuple[int, ...]:
    ids = tuple(ids)
    for one in ids:
        need_whole("a token of stop_token_ids", one, 0)
    return ids


def _at_most(name: str, value: object, most: int, least: int) -> None:
    need_whole(name, value, least)
    if value > most:
        raise ValueError(f"{name} is {value}; give {least} to {most}")


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; give a finite number")
