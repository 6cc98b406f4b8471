"""Drawn schedules: in any company, with any pool, every sequence ends with the tokens that it has alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from remembering_model import VOCAB, Memory, alone, sampled

from labkit.serve.scheduler import Full, Limits, Scheduler, Sequence

COMMON = (0, 1, 2, 3, 3, 2, 1, 0, 0, 0, 1, 1)


@dataclass(frozen=True)
class Ask:
    """One request of a drawn schedule; `ends` tokens come before its end, at step `leaves` its client goes."""

    arrives: int
    prompt: tuple[int, ...]
    max_tokens: int
    ends: int
    leaves: int | None
    priority: int
    salt: str
    reuse: bool
    n: int


@st.composite
def asks(draw, room: int) -> Ask:
    most = draw(st.integers(1, min(6, room)))
    start = draw(st.integers(0, min(len(COMMON), room - most)))
    own = draw(st.lists(st.integers(0, VOCAB - 1), max_size=max(0, min(5, room - most - start))))
    prompt = (COMMON[:start] + tuple(own)) or (3,)
    return Ask(
        arrives=draw(st.integers(0, 30)),
        prompt=prompt[: room - most + 1],
        max_tokens=most,
        ends=draw(st.integers(1, most)),
        leaves=draw(st.none() | st.integers(0, 60)),
        priority=draw(st.integers(-2, 2)),
        salt=draw(st.sampled_from(["", "", "", "tenant"])),
        reuse=draw(st.sampled_from([True, True, False])),
        n=draw(st.sampled_from([1, 1, 1, 2, 3])),
    )


@st.composite
def worlds(draw) -> tuple[Limits, list[Ask], set[int], set[int]]:
    size, blocks = draw(st.integers(1, 4)), draw(st.integers(2, 12))
    sequences = draw(st.integers(1, 6))
    limits = Limits(
        num_blocks=blocks, block_size=size, max_context=1000, max_sequences=sequences,
        max_tokens_per_step=sequences + draw(st.integers(0, 8)), patience=draw(st.sampled_from([0.0, 3.0])),
        reserve=draw(st.integers(0, 2)), reuse_prefixes=draw(st.sampled_from([True, True, False])),
    )  # fmt: skip
    drawn = draw(st.lists(asks(room=size * blocks), min_size=1, max_size=12))
    crashes = draw(st.sets(st.integers(0, 40), max_size=2))
    spoilt = draw(st.sets(st.integers(0, 11), max_size=1))
    return limits, drawn, crashes, spoilt


@dataclass
class World:
    """An engine made of the scheduler and the remembering model."""

    limits: Limits
    asks: list[Ask]
    crashes: set[int]
    spoilt: set[int]
    number: int = 0
    results: dict[str, list[int]] = field(default_factory=dict)
    trace: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler, self.memory = Scheduler(self.limits), Memory(self.limits)
        self.forked: set[int] = set()

    def run(self) -> None:
        most = sum(len(ask.prompt) + ask.max_tokens + 2 for ask in self.asks for _ in range(ask.n)) * 3 + 100
        coming = sorted(enumerate(self.asks), key=lambda pair: pair[1].arrives)
        while coming or len(self.scheduler):
            assert self.number < most, "some sequence starves"
            while coming and coming[0][1].arrives <= self.number:
                self.add(*coming.pop(0))
            for at, ask in enumerate(self.asks):
                if ask.leaves == self.number:
                    self.scheduler.cancel(f"{at}.0")
                    self.scheduler.check()
            self.step()
            self.number += 1

    def add(self, at: int, ask: Ask) -> None:
        self.scheduler.add(
            Sequence(f"{at}.0", ask.prompt, ask.max_tokens, ask.priority, float(self.number), ask.salt, ask.reuse)
        )
        self.scheduler.check()

    def step(self) -> None:
        scheduler = self.scheduler
        waits = bool(len(scheduler))
        step = scheduler.schedule(float(self.number))
        self.trace.append(step)
        scheduler.check()
        assert bool(step) == waits, "there is work and nothing is done, or the reverse"
        assert step.num_tokens <= self.limits.max_tokens_per_step
        if not step:
            return
        moved = {chunk.id for chunk in step.chunks}
        assert not moved & set(step.preempted), "what lost its blocks is computed"
        assert scheduler.running.items[0].id in moved, "the first in order stands still"
        entries = self.memory.run(step)
        if self.number in self.crashes:
            self.memory.lose()
            scheduler.reset()
            scheduler.check()
            return
        for id in list(entries):
            self.fork(id, entries)
        tokens = {id: sampled(seen, int(id.split(".")[1])) for id, seen in entries.items()}
        for ask, at in ((self.asks[at], at) for at in self.spoilt if at < len(self.asks)):
            if f"{at}.0" in tokens and ask.n == 1:
                scheduler.finish(f"{at}.0", forget=True)
                del tokens[f"{at}.0"]
        scheduler.update(step, tokens)
        scheduler.check()
        for id in tokens:
            self.end(id)

    def fork(self, id: str, entries: dict[str, list[int]]) -> None:
        at = int(id.split(".")[0])
        if self.asks[at].n > 1 and at not in self.forked:
            self.forked.add(at)
            new = [f"{at}.{index}" for index in range(1, self.asks[at].n)]
            self.scheduler.fork(id, new)
            self.scheduler.check()
            entries |= dict.fromkeys(new, entries[id])

    def end(self, id: str) -> None:
        sequence, ask = self.scheduler[id], self.asks[int(id.split(".")[0])]
        if len(sequence.produced) == ask.ends:
            self.results[id] = self.scheduler.finish(id).produced
            self.scheduler.check()


def wanted(world: World) -> dict[str, list[int]]:
    """What each sequence that ended must have produced."""
    found = {}
    for at, ask in enumerate(world.asks):
        for index in range(ask.n):
            if ask.leaves is None and not (at in world.spoilt and ask.n == 1):
                found[f"{at}.{index}"] = alone(ask.prompt, ask.ends, index)
    return found


@settings(max_examples=200, deadline=None)
@given(worlds())
def test_every_sequence_ends_with_the_tokens_it_has_alone(drawn):
    world = World(*drawn)
    world.run()
    for id, tokens in wanted(world).items():
        assert world.results[id] == tokens
    for id, tokens in world.results.items():  # those whose client left, but too late
        at, index = map(int, id.split("."))
        assert tokens == alone(world.asks[at].prompt, len(tokens), index)
    pool = world.scheduler.pool
    assert (pool.held, pool.free, len(world.scheduler), world.scheduler.waiting_tokens) == (0, pool.num_blocks, 0, 0)


@settings(max_examples=15, deadline=None)
@given(worlds())
def test_the_same_calls_give_the_same_steps(drawn):
    first, second = World(*drawn), World(*drawn)
    first.run()
    second.run()
    assert first.trace == second.trace


@settings(max_examples=30, deadline=None)
@given(worlds(), st.integers(1, 3))
def test_a_full_queue_refuses_and_those_inside_do_not_notice(drawn, most):
    limits, drawn_asks, _, _ = drawn
    limits = Limits(**{**vars(limits), "max_waiting": most})
    scheduler, memory, refused = Scheduler(limits), Memory(limits), 0
    for at, ask in enumerate(drawn_asks):
        try:
            scheduler.add(Sequence(str(at), ask.prompt, ask.max_tokens, salt=ask.salt))
        except Full:
            refused += 1
    assert refused == max(0, len(drawn_asks) - most)
    while step := scheduler.schedule():
        entries = memory.run(step)
        scheduler.update(step, {id: sampled(seen, 0) for id, seen in entries.items()})
        for id in entries:
            if len(scheduler[id].produced) == drawn_asks[int(id)].max_tokens:
                sequence = scheduler.finish(id)
                assert sequence.produced == alone(sequence.prompt, sequence.max_tokens)
    scheduler.check()
