"""What can be said of a request before any engine sees it. No torch, so that a server may ask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from labkit.serve.engine.params import SamplingParams
from labkit.serve.scheduler.limits import Limits


def check_prompt(prompt: Sequence[int], params: SamplingParams, limits: Limits, vocab_size: int) -> tuple[int, ...]:
    """The prompt, if it can be answered.

    Args:
        prompt: token ids; limits: of the engine; vocab_size: of the model.

    Raises ValueError for an empty or over-long prompt, and for tokens that the model does not know.

    >>> check_prompt([3], SamplingParams(), Limits(num_blocks=4), vocab_size=5)
    (3,)
    """
    prompt = tuple(prompt)
    if not prompt:
        raise ValueError("the prompt is empty; give at least one token")
    if set(map(type, prompt)) != {int} or min(prompt) < 0 or max(prompt) >= vocab_size:
        raise ValueError(f"the prompt holds something that is no token of 0 to {vocab_size - 1}")
    check_tokens("stop_token_ids", params.stop_token_ids, vocab_size)
    limits.fit(len(prompt), params.max_tokens)
    return prompt


def check_tokens(name: str, ids: Iterable[int], vocab_size: int) -> None:
    """Raise ValueError unless all are tokens of the model."""
    for id in ids:
        if type(id) is not int or not 0 <= id < vocab_size:
            raise ValueError(f"{name} has {id!r}; give tokens of 0 to {vocab_size - 1}")
