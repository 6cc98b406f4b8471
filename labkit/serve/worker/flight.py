"""The requests that are under way, and which of them the child may have now. Pure: no process, no clock.

How a request that kills is found: all that were in the child when it died may have been it. Those that were in two
deaths are suspects. They run alone, one after the other, before anybody else; if the child dies once more, that one is
guilty. One that gets well beyond the place where it fell is pardoned, once, and runs with the others again, so that
long answers of bystanders hold up nobody for long.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from labkit.serve.engine.backend import Stream
from labkit.serve.engine.delta import Delta
from labkit.serve.engine.params import SamplingParams
from labkit.serve.worker.messages import Message
from labkit.serve.worker.policy import PARDON, SUSPECT


@dataclass(eq=False)
class Request:
    """What is known here of one request.

    `produced` are the tokens that were delivered of each continuation that has not ended, `told` how many there were
    in all, and `fell` how many at the last death; `deaths` are those of children it was in.
    """

    number: int
    prompt: tuple[int, ...]
    params: SamplingParams
    stream: Stream
    priority: int = 0
    salt: str = ""
    deaths: int = 0
    told: int = 0
    fell: int = 0
    pardoned: bool = False
    produced: dict[int, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.produced = {index: [] for index in range(self.params.n)}

    @property
    def id(self) -> str:
        """As the engine knows it."""
        return self.stream.id

    @property
    def size(self) -> int:
        """Tokens that its prompt and longest answer take."""
        return len(self.prompt) + self.params.max_tokens

    @property
    def suspect(self) -> bool:
        """Whether it may have killed more than once."""
        return self.deaths >= SUSPECT

    def take(self, delta: Delta) -> None:
        """News for whoever waits; those of continuations that have ended are left out."""
        if delta.index not in self.produced:
            return
        self.produced[delta.index].extend(delta.token_ids)
        self.told += len(delta.token_ids)
        if delta.finish_reason is not None:
            del self.produced[delta.index]
        if self.suspect and not self.pardoned and self.told >= self.fell + PARDON * self.params.n:
            self.pardoned, self.deaths = True, SUSPECT - 1
        self.stream.feed(delta)

    def fall(self) -> None:
        """The child died with it."""
        self.deaths += 1
        self.fell = self.told

    def command(self) -> Message:
        """For the child: begin, or go on where the last one died."""
        produced = {index: tuple(tokens) for index, tokens in self.produced.items()} if self.deaths else None
        return ("run", self.id, self.prompt, self.params, self.priority, self.salt, produced)


class Flight:
    """Requests under way: `held` here, or `sent` to the child, both in order of arrival.

    One that was cancelled stays among those sent until the child says that it has let go: a child that hangs on it
    must not be handed a suspect, who would be blamed.
    """

    def __init__(self) -> None:
        self.held: dict[str, Request] = {}
        self.sent: dict[str, Request] = {}
        self._unread: deque[int] = deque()
        self._read = 0

    @property
    def open(self) -> list[Request]:
        """Those that somebody waits for, in order of arrival."""
        everybody = sorted([*self.held.values(), *self.sent.values()], key=lambda request: request.number)
        return [request for request in everybody if not request.stream.ended]

    @property
    def busy(self) -> bool:
        """Whether somebody waits."""
        return bool(self.held) or any(not request.stream.ended for request in self.sent.values())

    def add(self, request: Request) -> None:
        """A new one; it is held until it is due."""
        self.held[request.id] = request

    def remove(self, id: str) -> None:
        """It has ended, and no child has it any more."""
        self.held.pop(id, None)
        self.sent.pop(id, None)

    def due(self) -> list[Request]:
        """Those that the child may have now; they count as sent."""
        if not self.held:
            return []
        suspects = [request for request in self.held.values() if request.suspect]
        if suspects:
            going = [] if self.sent else suspects[:1]
        elif any(request.suspect for request in self.sent.values()):
            going = []
        else:
            going = list(self.held.values())
        for request in going:
            self.sent[request.id] = self.held.pop(request.id)
            self._unread.append(request.size)
        return going

    def read(self, count: int) -> None:
        """The child has taken so many requests since it began."""
        while self._read < count and self._unread:
            self._unread.popleft()
            self._read += 1

    def waiting(self) -> tuple[int, int]:
        """Requests, and their tokens, that no child's load counts yet."""
        held = [request.size for request in self.held.values()]
        return len(held) + len(self._unread), sum(held) + sum(self._unread)

    def died(self) -> list[Request]:
        """The child is dead: hold what it had, and return those that are now known to have killed it."""
        killers = [request for request in self.sent.values() if request.suspect and not request.stream.ended]
        for request in self.sent.values():
            request.fall()
        self.held = {request.id: request for request in self.open if request not in killers}
        self.sent = {}
        self._unread.clear()
        self._read = 0
        return killers
