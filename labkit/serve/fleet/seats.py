"""The replicas as one front knows them: who is there, what is under way with each, and who gets the next request.

Pure: no Ray, no clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any

from labkit.serve.fleet.policies import Asked, NobodyReady, Policy, Seen

KEY_BYTES = 4096  # of a prompt, for policies that look at its beginning
BLOCK_BYTES = 64


@dataclass(frozen=True)
class Member:
    """A replica that runs.

    Args:
        id: of Ray Serve; pid: of its process; node: the address of its machine.
        model, version: what it serves.
        metrics: host:port of what Prometheus reads.
    """

    id: str
    pid: int
    node: str
    model: str
    version: str
    metrics: str


class Seats:
    """Who is there, and what is under way.

    Args:
        policy: chooses; another one may take its place at any time.

    >>> from labkit.serve.fleet.policies import policy
    >>> seats = Seats(policy("round_robin"))
    >>> seats.seat([Member("a", 1, "", "m", "v1", ""), Member("b", 2, "", "m", "v1", "")])
    >>> seats.take(Asked()), seats.take(Asked()), seats.under_way("a")
    ('a', 'b', 1)
    >>> seats.bury("a"), seats.bury("a")
    (True, False)
    >>> seats.take(Asked())
    'b'
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._members: dict[str, Member] = {}
        self._under_way: dict[str, int] = {}
        self._dead: set[str] = set()

    @property
    def members(self) -> list[Member]:
        """Those that are there, in the order in which they came."""
        return list(self._members.values())

    def seat(self, members: Iterable[Member]) -> None:
        """These are there now, and no others; the dead stay dead, though somebody may still count them."""
        told = {member.id: member for member in members}
        self._dead &= set(told)
        kept = {id: told[id] for id in self._members if id in told}
        self._members = {id: member for id, member in {**kept, **told}.items() if id not in self._dead}

    def bury(self, id: str) -> bool:
        """It has died; whether that is news."""
        self._dead.add(id)
        return self._members.pop(id, None) is not None

    def under_way(self, id: str) -> int:
        """Requests that were sent to it from here and are not answered yet."""
        return self._under_way.get(id, 0)

    def take(self, asked: Asked, without: Set[str] = frozenset()) -> str:
        """Who gets this request, counted from now on; `give` it back at the end.

        Args:
            without: whom it was sent to before; they get it again only if there is nobody else.

        Raises NobodyReady if nobody is there.
        """
        if not self._members:
            raise NobodyReady("no replica is ready; try again later")
        others = bool(set(self._members) - without)
        seen = [Seen(id, running=self.under_way(id), ready=not (others and id in without)) for id in self._members]
        id = seen[self.policy.choose(seen, asked)].id
        self._under_way[id] = self.under_way(id) + 1
        return id

    def give(self, id: str) -> None:
        """One that was taken has ended."""
        self._under_way[id] -= 1
        if not self._under_way[id]:
            del self._under_way[id]


def asked_of(body: bytes) -> Asked:
    """What a policy may know of a request; what is no request says nothing, its replica will refuse it.

    >>> asked_of(b'{"prompt": "2 + 2", "max_tokens": 4}')
    Asked(prompt=b'2 + 2', max_tokens=4, block=64)
    >>> asked_of(b"nonsense").prompt
    b''
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return Asked(block=BLOCK_BYTES)
    if not isinstance(given, dict):
        return Asked(block=BLOCK_BYTES)
    most = given.get("max_tokens")
    most = most if isinstance(most, int) and not isinstance(most, bool) and most > 0 else 0
    return Asked(_key(given.get("prompt", given.get("messages"))), most, BLOCK_BYTES)


def _key(prompt: Any) -> bytes:
    text = prompt if isinstance(prompt, str) else json.dumps(prompt)
    return text[:KEY_BYTES].encode("utf-8", "replace")[:KEY_BYTES]
