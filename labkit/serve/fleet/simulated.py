"""One simulated replica: what it can do, and what a request asks of it."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import NamedTuple

from labkit.core.whole import need_whole


class Call(NamedTuple):
    """One request to come.

    `arrival` in seconds; `prompt` and `output` in tokens; calls of one `group` (a system prompt, a conversation; -1:
    none) begin with the same `shared` tokens.
    """

    arrival: float
    prompt: int
    output: int
    group: int = -1
    shared: int = 0


@dataclass(frozen=True)
class Engine:
    """What one replica can do.

    Args:
        slots: requests that are answered at once.
        prefill: seconds for one token of a prompt; prompts are read one after the other.
        decode: seconds for one token of an answer, plus `crowd` for each other request that runs when it begins.
        cache: tokens of prompts that are kept, the beginning not used for longest given up first.
        waiting: requests that may wait; one more is refused. None: no limit.
    """

    slots: int = 16
    prefill: float = 1e-4
    decode: float = 1e-2
    crowd: float = 0.0
    cache: int = 100_000
    waiting: int | None = None

    def __post_init__(self) -> None:
        need_whole("slots", self.slots)
        need_whole("cache", self.cache, 0)
        if self.waiting is not None:
            need_whole("waiting", self.waiting, 0)
        for name in ("prefill", "decode", "crowd"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give seconds, 0 or more")

    def full(self, waiting: int, running: int) -> bool:
        """Whether one more request is refused."""
        return self.waiting is not None and running >= self.slots and waiting >= self.waiting


class Replica:
    """One replica; `queue`, `running` and `ready` are what the router sees."""

    __slots__ = (
        "alive", "asks", "cache", "factor", "held", "id", "leaving", "queue", "read", "ready", "running", "waiting",
        "work",
    )  # fmt: skip

    def __init__(self, id: str, ready: bool = True) -> None:
        self.id, self.ready, self.alive = id, ready, ready
        self.queue = self.running = 0
        self.leaving, self.factor, self.work = False, 1.0, 0.0
        self.waiting: deque[int] = deque()  # calls by their number
        self.asks: dict[int, float] = {}  # calls that run, and when their first token comes
        self.restart()

    def restart(self) -> None:
        """Nothing read, nothing kept."""
        self.read = 0.0  # until when it reads prompts
        self.cache: OrderedDict[int, int] = OrderedDict()
        self.held = 0
        self.waiting.clear()
        self.asks.clear()

    def seen(self) -> None:
        """The router looks."""
        self.queue, self.running = len(self.waiting), len(self.asks)

    def hit(self, call: Call, most: int) -> int:
        """Tokens of this prompt that are kept; from now on its beginning is, within `most` tokens."""
        if call.group < 0 or not call.shared:
            return 0
        found = self.cache.pop(call.group, 0)
        keeps = max(found, call.shared)
        self.cache[call.group] = keeps
        self.held += keeps - found
        while self.held > most:
            self.held -= self.cache.popitem(last=False)[1]
        return min(found, call.shared, call.prompt - 1)
