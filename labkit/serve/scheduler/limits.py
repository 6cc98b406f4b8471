"""What one step and one engine may hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

from labkit.core.whole import need_whole


class Full(RuntimeError):
    """The queue is full: the same request may be accepted later. (What can never run is a ValueError.)"""


@dataclass(frozen=True)
class Limits:
    """The sizes that a scheduler keeps to.

    Args:
        num_blocks, block_size: of the pool, and positions in each block.
        max_context: prompt and answer of one sequence together, in tokens.
        max_tokens_per_step: positions computed in one step, over all sequences; long prompts are cut to fit (chunked
            prefill: Agrawal et al. 2024, Sarathi-Serve, arXiv 2403.02310, section 4.1).
        max_sequences: that run at once; at most `max_tokens_per_step`, so that every one of them can move in a step.
        max_waiting: sequences in the queue before `add` refuses.
        max_waiting_tokens: prompt and longest answer of all that wait, before `add` refuses; into an empty queue
            everything goes.
        patience: seconds of waiting that one level of priority is worth; with 0, priorities do nothing.
        reserve: blocks left free for each running sequence when another one starts; 0 starts whatever fits now, and
            preempts more.
        reuse_prefixes: whether full blocks can be found again.

    Raises ValueError for sizes that fit nothing.
    """

    num_blocks: int
    block_size: int = 16
    max_context: int = 4096
    max_tokens_per_step: int = 2048
    max_sequences: int = 256
    max_waiting: int = 1024
    max_waiting_tokens: int = 1 << 20
    patience: float = 10.0
    reserve: int = 1
    reuse_prefixes: bool = True

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_size", "max_tokens_per_step", "max_sequences", "max_waiting"):
            need_whole(name, getattr(self, name), 1)
        need_whole("max_context", self.max_context, 2)
        need_whole("max_waiting_tokens", self.max_waiting_tokens, 1)
        need_whole("reserve", self.reserve, 0)
        if isinstance(self.patience, bool) or not isinstance(self.patience, int | float):
            raise ValueError(f"patience is {self.patience!r}; give seconds as a number")
        if not 0 <= self.patience < math.inf:
            raise ValueError(f"patience is {self.patience}; give seconds, 0 or more")
        if not isinstance(self.reuse_prefixes, bool):
            raise ValueError(f"reuse_prefixes is {self.reuse_prefixes!r}; give True or False")
        if self.max_sequences > self.max_tokens_per_step:
            raise ValueError(
                f"max_sequences is {self.max_sequences} and max_tokens_per_step {self.max_tokens_per_step}; every "
                "sequence takes at least one token of a step: raise the one or lower the other"
            )

    def full(self, waiting: int, waiting_tokens: int, tokens: int) -> bool:
        """Whether a queue of so many sequences, of so many tokens, has no room for one of `tokens` more."""
        return waiting >= self.max_waiting or (waiting > 0 and waiting_tokens + tokens > self.max_waiting_tokens)

    def fit(self, prompt: int, max_tokens: int) -> None:
        """Raise ValueError if such a sequence could not run even alone. The last token is never computed."""
        if prompt + max_tokens > self.max_context:
            raise ValueError(
                f"{prompt} tokens of prompt and up to {max_tokens} new ones are {prompt + max_tokens}; at most "
                f"{self.max_context} are served: shorten the prompt, or ask for fewer"
            )
        if prompt + max_tokens - 1 > (room := self.num_blocks * self.block_size):
            raise ValueError(
                f"{prompt} tokens of prompt and up to {max_tokens} new ones never fit into {self.num_blocks} blocks of "
                f"{self.block_size}, {room} positions in all: shorten the prompt, or ask for fewer"
            )
