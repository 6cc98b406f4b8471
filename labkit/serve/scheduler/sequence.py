"""One continuation on its way: its tokens, how far they are computed, and the blocks that hold them."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from labkit.serve.cache.blocks import chain, root

_MOST = 100


class Status(enum.Enum):
    """Where a sequence stands; one that was preempted waits again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"


@dataclass(eq=False, slots=True)
class Sequence:
    """One continuation of one prompt.

    Args:
        id: unlike that of any other sequence in the scheduler.
        prompt: token ids, at least one.
        max_tokens: new tokens at most.
        priority: lower goes first, −100 to 100; what a level is worth, `Limits.patience` says.
        arrival: seconds, on the clock that `schedule` is given.
        salt: sequences with different salts share no blocks.
        reuse: False computes every prompt token anew, as logprobs of the prompt need.

    `tokens` are the prompt and what was produced; the first `num_computed` of them have valid entries in `blocks`.
    Raises ValueError for values out of range.
    """

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    priority: int = 0
    arrival: float = 0.0
    salt: str = ""
    reuse: bool = True
    tokens: list[int] = field(init=False, repr=False)
    status: Status | None = field(init=False, default=None)
    num_computed: int = field(init=False, default=0)
    blocks: tuple[int, ...] = field(init=False, default=(), repr=False)
    digests: list[bytes] = field(init=False, default_factory=list, repr=False)
    rank: tuple[float, int] = field(init=False, default=(0.0, 0), repr=False)
    admitted: float | None = field(init=False, default=None)
    cached_tokens: int = field(init=False, default=0)
    preemptions: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.prompt = tuple(self.prompt)
        if not self.prompt:
            raise ValueError(f"sequence {self.id!r} has an empty prompt; give at least one token")
        if set(map(type, self.prompt)) != {int} or min(self.prompt) < 0 or max(self.prompt) >= 1 << 63:
            raise ValueError(f"the prompt of sequence {self.id!r} holds something that is no token id of 0 or more")
        if type(self.max_tokens) is not int or self.max_tokens < 1:
            raise ValueError(f"max_tokens of sequence {self.id!r} is {self.max_tokens!r}; give a whole number above 0")
        if type(self.priority) is not int or abs(self.priority) > _MOST:
            raise ValueError(f"priority of sequence {self.id!r} is {self.priority!r}; give −{_MOST} to {_MOST}")
        if not math.isfinite(self.arrival):
            raise ValueError(f"arrival of sequence {self.id!r} is {self.arrival}; give seconds")
        self.tokens = list(self.prompt)

    @property
    def produced(self) -> list[int]:
        """The new tokens so far."""
        return self.tokens[len(self.prompt) :]

    @property
    def todo(self) -> int:
        """Tokens that have to be computed before the next one can be sampled; one while decoding."""
        return len(self.tokens) - self.num_computed

    def name_blocks(self, count: int, block_size: int) -> list[bytes]:
        """Digests of the first `count` full blocks of its tokens, each computed once."""
        digests = self.digests
        while len(digests) < count:
            start = len(digests) * block_size
            before = digests[-1] if digests else root(self.salt)
            digests.append(chain(before, self.tokens[start : start + block_size]))
        return digests[:count]

    def twin(self, id: str) -> Sequence:
        """Another continuation of the same tokens, which holds no blocks yet."""
        twin = Sequence(id, self.prompt, self.max_tokens, self.priority, self.arrival, self.salt, self.reuse)
        twin.tokens, twin.digests = list(self.tokens), list(self.digests)
        twin.admitted, twin.cached_tokens = self.admitted, self.cached_tokens
        return twin
