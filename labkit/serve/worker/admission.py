"""What can be told of a request before the child has seen it: whether it can ever run, and whether there is room."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

from labkit.serve.engine.admission import check_prompt
from labkit.serve.engine.backend import Info
from labkit.serve.engine.params import SamplingParams
from labkit.serve.scheduler.limits import Full, Limits
from labkit.serve.scheduler.step import Load


def admit(info: Info, limits: Limits | None, prompt: Sequence[int], params: SamplingParams) -> tuple[int, ...]:
    """The prompt, if this request could run on an empty engine.

    Args:
        limits: of the engine; None: what `info` says of them.

    Raises ValueError for one that could not, and for options that do not travel between processes.
    """
    limits = limits or Limits(
        info.num_blocks, info.block_size, info.max_context, info.max_sequences, info.max_sequences
    )
    prompt = check_prompt(prompt, params, limits, info.vocab_size)
    if params.json_schema is not None:
        try:
            pickle.dumps(params)
        except (RecursionError, pickle.PicklingError, TypeError, AttributeError) as error:
            raise ValueError(f"this JSON schema cannot be handed on: {error}; make it flatter") from None
    return prompt


def need_room(limits: Limits | None, load: Load, size: int) -> None:
    """Raise `Full` if the queue is; as the engine's own scheduler would, and by the same rule.

    Args:
        limits: of the engine, None where it has none.
        load: with all that wait.
        size: tokens of the new one's prompt and longest answer.
    """
    if limits is not None and limits.full(load.waiting, load.waiting_tokens, size):
        raise Full(f"{load.waiting} requests of {load.waiting_tokens} tokens wait; try again later")
