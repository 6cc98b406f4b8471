"""Which replica gets a request. Pure Python; the same seed and the same calls give the same choices.

A policy sees of each replica what a router sees: how many requests wait and run there, and whether its health check
passes. It never chooses one that is not ready. The simulator and the router of the real fleet run the same objects.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

from labkit.core.whole import need_whole


@dataclass(frozen=True)
class Seen:
    """What a router knows of a replica.

    Args:
        id: its name, the same for as long as it lives.
        queue, running: requests that wait there, and that are being answered.
        ready: whether its health check passes.
    """

    id: str
    queue: int = 0
    running: int = 0
    ready: bool = True


@dataclass(frozen=True)
class Asked:
    """What a router knows of a request.

    Args:
        prompt: its tokens, or its text as bytes.
        max_tokens: how long the answer may become.
        block: items of the prompt in one block of the prefix cache: 16 tokens; take 64 for bytes.
    """

    prompt: bytes | tuple[int, ...] = b""
    max_tokens: int = 0
    block: int = 16

    @cached_property
    def prefixes(self) -> tuple[bytes, ...]:
        """A digest for each whole block, of the prompt up to its end: two prompts share as many as they have in common.

        >>> one, two = Asked((1,) * 32).prefixes, Asked((1,) * 16 + (2,) * 40).prefixes
        >>> len(one), len(two), one[0] == two[0], one[1] == two[1]
        (2, 3, True, False)
        """
        need_whole("block", self.block)
        digest, found = blake2b(digest_size=12), []
        for end in range(self.block, len(self.prompt) + 1, self.block):
            part = self.prompt[end - self.block : end]
            digest.update(part if isinstance(part, bytes) else b"".join(token.to_bytes(8, "little") for token in part))
            found.append(digest.digest())
        return tuple(found)


class NobodyReady(RuntimeError):
    """No replica passes its health check: answer 503 and let the client come again."""


def load(replica: Seen) -> int:
    """Requests that wait and run there."""
    return replica.queue + replica.running


class Policy:
    """How to choose; a policy may remember what it chose.

    Args:
        seed: of what is drawn.
    """

    name = ""

    def __init__(self, seed: int = 0) -> None:
        self._draw = random.Random(seed).random

    def choose(self, replicas: Sequence[Seen], asked: Asked) -> int:
        """The index of the replica that gets this request; raises NobodyReady if none is ready."""
        raise NotImplementedError

    def _pick(self, replicas: Sequence[Seen]) -> int:
        """A ready one, each as likely."""
        count = len(replicas)
        for _ in range(8 if count else 0):
            at = int(self._draw() * count)
            if replicas[at].ready:
                return at
        ready = _ready(replicas)
        return ready[int(self._draw() * len(ready))]

    def _better_of_two(self, replicas: Sequence[Seen]) -> int:
        """Of two different ready ones the less loaded, the first if equal."""
        one = self._pick(replicas)
        for _ in range(8):
            two = self._pick(replicas)
            if two != one:
                break
        else:  # hardly any others: look at them all
            others = [at for at in _ready(replicas) if at != one]
            if not others:
                return one
            two = others[int(self._draw() * len(others))]
        return two if load(replicas[two]) < load(replicas[one]) else one


def _ready(replicas: Sequence[Seen]) -> list[int]:
    found = [at for at, replica in enumerate(replicas) if replica.ready]
    if not found:
        raise NobodyReady(f"none of {len(replicas)} replicas is ready; wait, or look why their health checks fail")
    return found


class RoundRobin(Policy):
    """Each in turn; those that are not ready are passed over.

    >>> turn = RoundRobin()
    >>> fleet = [Seen("a"), Seen("b", ready=False), Seen("c", queue=9)]
    >>> [fleet[turn.choose(fleet, Asked())].id for _ in range(4)]
    ['a', 'c', 'a', 'c']
    """

    name = "round_robin"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._next = 0

    def choose(self, replicas: Sequence[Seen], asked: Asked) -> int:
        count = len(replicas)
        for step in range(count):
            at = (self._next + step) % count
            if replicas[at].ready:
                self._next = at + 1
                return at
        return _ready(replicas)[0]


class Random(Policy):
    """Any ready one: the baseline that knows nothing."""

    name = "random"

    def choose(self, replicas: Sequence[Seen], asked: Asked) -> int:
        return self._pick(replicas)


class PowerOfTwo(Policy):
    """Two ready ones are drawn, and the less loaded of them gets the request.

    With random choice the longest of n queues grows like log n / log log n, with two choices like log log n / log 2.
    Source: Mitzenmacher 2001, The Power of Two Choices in Randomized Load Balancing, IEEE TPDS 12(10), theorem 5; Ray
    Serve routes so by default.

    >>> PowerOfTwo(seed=1).choose([Seen("a", queue=3), Seen("b")], Asked())
    1
    """

    name = "power_of_two"

    def choose(self, replicas: Sequence[Seen], asked: Asked) -> int:
        return self._better_of_two(replicas)


class LeastLoaded(Policy):
    """The least loaded of all, those that are equal in turn: an oracle that looks at everyone for each request.

    >>> LeastLoaded().choose([Seen("a", running=2), Seen("b", running=1), Seen("c")], Asked())
    2
    """

    name = "least_loaded"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._next = 0

    def choose(self, replicas: Sequence[Seen], asked: Asked) -> int:
        ready, start, count = _ready(replicas), self._next, len(replicas)
        at = min(ready, key=lambda at: (replicas[at].queue + replicas[at].running, (at - start) % count))
        self._next = at + 1
        return at


class PrefixAware(Policy):
    """Back to the replica that has read this prompt's beginning, unless too much waits there.

    The router remembers who got which prefixes (it does not ask the caches, so it can be wrong about what was evicted).
    Of those that got the longest known one, the least loaded is wanted. It is taken if it is no busier than `slack`
    requests more, or `ratio` times as many, as the better of two drawn ones; those two decide as well when too little
    of the prompt is known. Whoever gets the request is remembered for its prefixes from then on: a busy prefix spreads.

    Others do much the same with other measures of imbalance. SGLang's router (cache_aware): 0.3 of the prompt must
    match; 64 requests more, and 1.5 times as many, between busiest and idlest of *all* replicas; vLLM's is a fork of
    it. Ray Serve's PrefixCacheAffinityRouter: a tenth of the prompt, a difference of queue lengths. vLLM's production
    stack: a score of matched tokens less relative load. Comparing with two drawn ones needs no view of everyone. The
    idea of a bound: Mirrokni, Thorup and Zadimoghaddam 2018, Consistent Hashing with Bounded Loads (arXiv 1608.01350).

    Args:
        seed: of what is drawn.
        slack, ratio: how much busier the wanted one may be.
        match: the share of the prompt's blocks that must be known, 0 to 1.
        entries: how many prefixes are remembered; the one not seen for longest is forgotten.

    Raises ValueError for values out of range.

    >>> policy, fleet = PrefixAware(seed=0), [Seen(str(n)) for n in range(8)]
    >>> chosen = {policy.choose(fleet, Asked((7,) * 64 + (n,) * 16)) for n in range(20)}
    >>> len(chosen)
    1
    """

    name = "prefix_aware"
    holders = 8  # replicas that are remembered for one prefix

    def __init__(
        self, seed: int = 0, *, slack: int = 4, ratio: float = 1.5, match: float = 0.1, entries: int = 100_000
    ) -> None:
        super().__init__(seed)
        need_whole("slack", slack, 0)
        need_whole("entries", entries)
        if not (ratio >= 1 and 0 <= match <= 1):
            raise ValueError(f"ratio is {ratio}, match {match}; give a ratio of 1 or more, and a share from 0 to 1")
        self.slack, self.ratio, self.match, self.entries = slack, ratio, match, entries
        self._held: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()  # the last one seen at the end
        self._places: dict[str, int] = {}

    def choose(self, replicas: Sequence[Seen], asked: Asked) -> int:
        other = self._better_of_two(replicas)
        at = self._wanted(replicas, asked)
        if at is None or load(replicas[at]) > max(
            load(replicas[other]) + self.slack, self.ratio * load(replicas[other])
        ):
            at = other
        self._places[replicas[at].id] = at
        self._remember(replicas[at].id, asked)
        return at

    def _wanted(self, replicas: Sequence[Seen], asked: Asked) -> int | None:
        """The least loaded of those that got the longest known prefix, if that is long enough."""
        prefixes = asked.prefixes
        for known in range(len(prefixes), 0, -1):
            if known < self.match * len(prefixes):
                return None
            places = [self._place(id, replicas) for id in self._held.get(prefixes[known - 1], ())]
            ready = [at for at in places if at is not None and replicas[at].ready]
            if ready:
                return min(ready, key=lambda at: load(replicas[at]))
        return None

    def _place(self, id: str, replicas: Sequence[Seen]) -> int | None:
        at = self._places.get(id)
        if at is not None and (at >= len(replicas) or replicas[at].id != id):  # moved or gone: look once
            self._places = {replica.id: at for at, replica in enumerate(replicas)}
            at = self._places.get(id)
        return at

    def _remember(self, id: str, asked: Asked) -> None:
        held = self._held
        for digest in asked.prefixes:
            known = held.get(digest, ())
            if id not in known:
                held[digest] = (*known, id)[-self.holders :]
            held.move_to_end(digest)
        while len(held) > self.entries:
            held.popitem(last=False)


POLICIES = {kind.name: kind for kind in (RoundRobin, Random, PowerOfTwo, LeastLoaded, PrefixAware)}


def policy(name: str, seed: int = 0) -> Policy:
    """A fresh policy by its name; raises ValueError for one that is not known.

    >>> policy("power_of_two", seed=3).name
    'power_of_two'
    """
    if name not in POLICIES:
        raise ValueError(f"policy is {name!r}; give one of {', '.join(POLICIES)}")
    return POLICIES[name](seed)
