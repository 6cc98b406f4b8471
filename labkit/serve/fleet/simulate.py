"""A fleet of replicas on a clock that is only counted: thousands of them, no model, the same result every time.

A replica is a simple picture of our engine: it reads one prompt after the other, writes answers in `slots` at once, and
keeps the beginnings of prompts it has read. Left out on purpose: that reading a prompt delays the answers beside it,
preemption, and the time the network takes. What a policy does to queues and caches does not need them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from labkit.core.whole import need_whole
from labkit.serve.fleet.autoscale import Autoscale, Scaler
from labkit.serve.fleet.policies import Asked, NobodyReady, Policy
from labkit.serve.fleet.report import FleetReport, Tally
from labkit.serve.fleet.simulated import Call, Engine, Replica


@dataclass(frozen=True)
class Dies:
    """A replica dies; its health check passes again at `back`, with an empty cache."""

    at: float
    replica: int
    back: float = math.inf


@dataclass(frozen=True)
class Slow:
    """What a replica begins from `at` until `until` takes `factor` times as long; its health check passes all along."""

    at: float
    replica: int
    factor: float
    until: float = math.inf


@dataclass(frozen=True)
class Router:
    """What stands between clients and replicas.

    Args:
        notice: seconds until a health check tells that a replica has died.
        retries: how often a request of which nothing was sent yet is given to another one.
        stale: seconds between two looks at the replicas' loads; 0: always the present ones.
    """

    notice: float = 0.0
    retries: int = 3
    stale: float = 0.0

    def __post_init__(self) -> None:
        need_whole("retries", self.retries, 0)
        if not (0 <= self.notice < math.inf and 0 <= self.stale < math.inf):
            raise ValueError(f"notice is {self.notice}, stale {self.stale}; give seconds, 0 or more")


def simulate_fleet(
    replicas: int,
    policy: Policy,
    calls: Iterable[Call],
    engine: Engine | None = None,
    *,
    router: Router | None = None,
    faults: Sequence[Dies | Slow] = (),
    autoscale: Autoscale | None = None,
) -> FleetReport:
    """Run until every call has ended.

    Args:
        replicas: how many there are at the start.
        policy: a fresh one.
        calls: in the order of their arrival.
        engine, router: by default `Engine()` and `Router()`.
        faults: what befalls which of the first replicas.
        autoscale: by default their number stays.

    Raises ValueError for calls out of order or without a token, and for a fault of a replica that is not there.

    >>> from labkit.serve.fleet.policies import policy
    >>> told = simulate_fleet(2, policy("round_robin"), [Call(0.0, 100, 10), Call(0.0, 100, 10)])
    >>> told.answered, round(told.ttft.at(1.0), 3)
    (2, 0.01)
    """
    need_whole("replicas", replicas)
    for fault in faults:
        if not 0 <= fault.replica < replicas:
            raise ValueError(f"replica {fault.replica} is to fail, and there are {replicas}; give one from 0")
    return _Fleet(replicas, policy, engine or Engine(), router or Router(), autoscale).run(iter(calls), faults)


class _Fleet:
    """One simulation on its way: events are (second, order, what, about what)."""

    def __init__(self, count: int, policy: Policy, engine: Engine, router: Router, autoscale: Autoscale | None) -> None:
        self.policy, self.engine, self.router = policy, engine, router
        self.scaler = Scaler(autoscale) if autoscale else None
        self.replicas = [Replica(f"r{at}") for at in range(count)]
        self.started = count
        self.events: list[tuple] = []
        self.order = 0
        self.clock = 0.0
        self.calls: dict[int, tuple[Call, int]] = {}  # those on their way, and their retries left
        self.asked: dict[tuple[int, int], Asked] = {}
        self.tally = Tally()
        self.tally.scale.append((0.0, count))

    def at(self, second: float, what, *about) -> None:
        self.order += 1
        heapq.heappush(self.events, (second, self.order, what, about))

    def run(self, calls: Iterator[Call], faults: Sequence[Dies | Slow]) -> FleetReport:
        for fault in faults:
            self.at(fault.at, self.dies if isinstance(fault, Dies) else self.slows, self.replicas[fault.replica], fault)
        if self.router.stale:
            self.at(self.router.stale, self.look)
        if self.scaler:
            self.at(self.scaler.rule.every, self.scale)
        number, following = 0, next(calls, None)
        events, tally = self.events, self.tally
        while following is not None or self.calls:
            if following is not None and (not events or following.arrival <= events[0][0]):
                if not following.arrival >= self.clock - 1e-12 or following.prompt < 1 or following.output < 1:
                    raise ValueError(
                        f"{following} after second {self.clock}; sort the calls, give each a token or more"
                    )
                self.clock = max(self.clock, following.arrival)
                self.calls[number] = (following, self.router.retries)
                tally.sent += 1
                self.send(number)
                number, following = number + 1, next(calls, None)
            else:
                self.clock, _, what, about = heapq.heappop(events)
                what(*about)
        tally.work += [replica.work for replica in self.replicas]
        return tally.report(self.clock)

    # what happens to a call

    def send(self, number: int) -> None:
        call, _ = self.calls[number]
        try:
            replica = self.replicas[self.policy.choose(self.replicas, self.asks(call))]
        except NobodyReady:
            self.ends(number, "refused")
            return
        if not replica.alive:  # the health check has not noticed yet: nobody answers
            self.again(number)
        elif self.engine.full(len(replica.waiting), len(replica.asks)):
            self.ends(number, "refused")
        else:
            replica.waiting.append(number)
            self.begin(replica)
            self.tally.longest = max(self.tally.longest, len(replica.waiting))

    def again(self, number: int) -> None:
        call, retries = self.calls[number]
        if not retries:
            self.ends(number, "lost")
            return
        self.calls[number] = (call, retries - 1)
        self.tally.retried += 1
        self.send(number)

    def begin(self, replica: Replica) -> None:
        engine, now = self.engine, self.clock
        while replica.waiting and len(replica.asks) < engine.slots:
            number = replica.waiting.popleft()
            call = self.calls[number][0]
            found = replica.hit(call, engine.cache)
            reads = (call.prompt - found) * engine.prefill * replica.factor
            first = max(now, replica.read) + reads
            crowd = engine.crowd * len(replica.asks)
            writes = call.output * (engine.decode + crowd) * replica.factor
            replica.read = first
            replica.work += reads + writes
            replica.asks[number] = first
            self.tally.reads(call.prompt, found)
            self.at(first + writes, self.done, replica, number, first)
        if not self.router.stale:
            replica.queue, replica.running = len(replica.waiting), len(replica.asks)

    def done(self, replica: Replica, number: int, first: float) -> None:
        if replica.asks.get(number) != first:
            return  # it died in between
        del replica.asks[number]
        self.tally.answers(self.calls[number][0].arrival, first, self.clock)
        self.ends(number, "answered")
        self.begin(replica)

    def ends(self, number: int, how: str) -> None:
        del self.calls[number]
        self.tally.ended[how] += 1
        if how != "answered":
            self.tally.failures.append((self.clock, how))

    def asks(self, call: Call) -> Asked:
        """What the router sees of a prompt: for calls of a group, one object, so that it is digested once."""
        if call.group < 0:
            return _NOTHING
        key = call.group, call.shared // 16
        if key not in self.asked:
            self.asked[key] = Asked(b"%016d" % call.group * key[1])
        return self.asked[key]

    # what happens to a replica

    def dies(self, replica: Replica, fault: Dies) -> None:
        streaming = [number for number, first in replica.asks.items() if first <= self.clock]
        others = [number for number, first in replica.asks.items() if first > self.clock] + list(replica.waiting)
        replica.alive = False
        replica.restart()
        if not self.router.stale:
            replica.seen()
        for number in streaming:
            self.ends(number, "broken")
        self.at(self.clock + self.router.notice, self.noticed, replica)
        if fault.back < math.inf:
            self.at(max(fault.back, self.clock), self.returns, replica)
        if not self.router.notice:
            replica.ready = False
        for number in others:
            self.again(number)

    def noticed(self, replica: Replica) -> None:
        replica.ready = replica.alive

    def returns(self, replica: Replica) -> None:
        replica.alive, replica.ready, replica.factor = True, not replica.leaving, 1.0
        replica.seen()

    def slows(self, replica: Replica, fault: Slow) -> None:
        replica.factor = fault.factor
        if fault.until < math.inf:
            self.at(fault.until, self.slows, replica, Slow(fault.until, 0, 1.0))

    def look(self) -> None:
        for replica in self.replicas:
            replica.seen()
        if self.calls or self.events:
            self.at(self.clock + self.router.stale, self.look)

    # how many replicas there are

    def scale(self) -> None:
        rule = self.scaler.rule
        staying = [replica for replica in self.replicas if not replica.leaving]
        ongoing = sum(len(replica.waiting) + len(replica.asks) for replica in self.replicas)
        change = self.scaler.change(self.clock, ongoing, len(staying))
        for _ in range(change):
            replica = Replica(f"r{self.started}", ready=False)
            self.started += 1
            self.replicas.append(replica)
            self.at(self.clock + rule.starts_in, self.returns, replica)
        for replica in staying[len(staying) + change :] if change < 0 else ():
            replica.leaving, replica.ready = True, False
        gone = [replica for replica in self.replicas if replica.leaving and not (replica.asks or replica.waiting)]
        self.tally.work += [replica.work for replica in gone]
        self.replicas = [replica for replica in self.replicas if replica not in gone]
        if change or gone:
            self.tally.scale.append((self.clock, len(self.replicas)))
        self.at(self.clock + rule.every, self.scale)


_NOTHING = Asked()
