"""Drawn schedules: whoever comes, goes, shares or is preempted, every answer is the one that the request has alone.

`LABKIT_SCHEDULES` says how many are drawn over a tiny transformer (and as many over a stub); by default few.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_models import build
from stub_runner import VOCAB, Forgetful, StubRunner, answers, run_out, stub_engine
from stub_runner import alone as alone_over_stub

from labkit.nn.generate import generate
from labkit.serve.engine import Engine, SamplingParams
from labkit.serve.scheduler import Full, Limits

SCHEDULES = int(os.environ.get("LABKIT_SCHEDULES", "10"))
COMMON = (0, 1, 2, 3, 3, 2, 1, 0, 0, 5, 1, 1)
MOST = 6


@dataclass(frozen=True)
class Ask:
    """One request: at which step it comes, what it asks, at which step its client leaves, where its engine dies."""

    arrives: int
    prompt: tuple[int, ...]
    params: SamplingParams
    leaves: int | None
    priority: int
    salt: str


@st.composite
def asks(draw, room: int) -> Ask:
    most = draw(st.integers(1, min(MOST, room)))
    start = draw(st.integers(0, min(len(COMMON), room - most)))
    own = draw(st.lists(st.integers(0, VOCAB - 1), max_size=max(0, min(4, room - most - start))))
    params = SamplingParams(
        max_tokens=most,
        temperature=draw(st.sampled_from([0.0, 0.0, 1.0])),
        top_k=draw(st.sampled_from([0, 3])),
        top_p=draw(st.sampled_from([1.0, 0.9])),
        seed=draw(st.integers(0, 3)),
        n=draw(st.sampled_from([1] * 5 + [2, 3])),
        stop_token_ids=draw(st.sampled_from([(), (), (2,)])),
        logprobs=draw(st.sampled_from([None] * 9 + [1])),
    )
    return Ask(
        draw(st.integers(0, 25)), ((COMMON[:start] + tuple(own)) or (3,))[: room - most + 1], params,
        draw(st.none() | st.integers(0, 40)), draw(st.integers(-2, 2)), draw(st.sampled_from(["", "", "tenant"])),
    )  # fmt: skip


@st.composite
def worlds(draw) -> tuple[Limits, list[Ask], set[int], bool]:
    size, blocks = draw(st.integers(1, 4)), draw(st.integers(2, 12))
    sequences = draw(st.integers(1, 5))
    limits = Limits(
        blocks, size, max_context=64, max_tokens_per_step=draw(st.integers(sequences, 12)), max_sequences=sequences,
        patience=draw(st.sampled_from([0.0, 3.0])), reserve=draw(st.integers(0, 2)),
        reuse_prefixes=draw(st.sampled_from([True, True, False])),
    )  # fmt: skip
    drawn = draw(st.lists(asks(room=size * blocks), min_size=1, max_size=8))
    return limits, drawn, draw(st.sets(st.integers(1, 30), max_size=1)), draw(st.booleans())


@dataclass
class World:
    """Engines one after the other: where one dies, the next goes on with what was told."""

    make: object
    asks: list[Ask]
    deaths: set[int]
    news: dict[tuple[str, int], tuple[list[int], str | None]] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)

    def run(self) -> None:
        engine, number = self.make(), 0
        coming = sorted(enumerate(self.asks), key=lambda pair: pair[1].arrives)
        while coming or engine.busy:
            assert number < 3000, "some request starves"
            if number in self.deaths:
                engine = self.next(engine)
            while coming and coming[0][1].arrives <= number:
                at, ask = coming.pop(0)
                engine.add(str(at), ask.prompt, ask.params, priority=ask.priority, salt=ask.salt)
            for at, ask in enumerate(self.asks):
                if ask.leaves == number and engine.cancel(str(at)):
                    self.left.add(str(at))
                    assert not engine.cancel(str(at))
            engine.check()
            for key, (tokens, reason) in answers(engine.step()).items():
                before, ended = self.news.get(key, ([], None))
                assert ended is None, "news after the end"
                assert key[0] not in self.left, "news for nobody"
                self.news[key] = (before + tokens, reason)
            engine.check()
            number += 1
        pool = engine.scheduler.pool
        assert (pool.held, pool.free, engine.load().waiting_tokens) == (0, pool.num_blocks, 0)

    def next(self, dead: Engine) -> Engine:
        engine = self.make()
        for id, request in dead._requests.items():
            produced = {
                index: self.news.get((id, index), ([], None))[0]
                for index in range(request.params.n)
                if self.news.get((id, index), ([], None))[1] is None
            }
            engine.resume(id, request.prompt, request.params, produced, priority=request.priority, salt=request.salt)
        return engine


def check(world: World, alone) -> None:
    world.run()
    for at, ask in enumerate(world.asks):
        for index, (tokens, reason) in enumerate(alone(ask.prompt, ask.params)):
            found, ended = world.news.get((str(at), index), ([], None))
            assert found == tokens[: len(found)]
            assert str(at) in world.left or (len(found), ended) == (len(tokens), reason)


@settings(max_examples=max(SCHEDULES, 40), deadline=None)
@given(worlds())
def test_over_a_stub_every_answer_is_the_one_alone(drawn):
    limits, drawn_asks, deaths, ahead = drawn
    check(World(lambda: stub_engine(limits, ahead), drawn_asks, deaths), alone_over_stub)


@functools.cache
def transformer(family: str):
    return build(family)


@functools.cache
def alone_over_a_model(family: str, prompt, params: SamplingParams):
    """Greedy: what `nn.generate` says; drawn: what an engine with room for everything answers to one request."""
    model = transformer(family)
    if not params.greedy:
        engine = Engine(model, limits=Limits(num_blocks=64, block_size=4, max_context=200))
        engine.add("alone", prompt, params)
        found = answers(run_out(engine))
        return [found["alone", index] for index in range(params.n)]
    ids = greedy_over_a_model(family, prompt)[: params.max_tokens]
    ends = [at for at, token in enumerate(ids) if token in params.stop_token_ids]
    return [(ids[: ends[0] + 1], "stop") if ends else (ids, "length")] * params.n


@functools.cache
def greedy_over_a_model(family: str, prompt) -> list[int]:
    ids = generate(transformer(family), torch.tensor([prompt]), max_new_tokens=MOST)
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss"])
def test_over_a_transformer_every_answer_is_the_one_alone(family):
    @settings(max_examples=-(-SCHEDULES // 2), deadline=None)
    @given(worlds())
    def holds(drawn):
        limits, drawn_asks, deaths, ahead = drawn
        make = functools.partial(Engine, transformer(family), limits=limits, ahead=ahead)
        check(World(make, drawn_asks, deaths), functools.partial(alone_over_a_model, family))

    holds()


def test_ten_thousand_requests_leave_no_block_behind():
    limits = Limits(
        num_blocks=64, block_size=2, max_context=24, max_tokens_per_step=64, max_sequences=32, max_waiting=60, reserve=0
    )
    engine, wanted = Engine(None, limits=limits, runner=Forgetful()), 10_000
    draw = torch.Generator().manual_seed(1)
    numbers = torch.randint(0, 1 << 30, (wanted, 4), generator=draw).tolist()
    added = ended = 0
    while added < wanted or engine.busy:
        while added < wanted:
            length, start, count, kind = numbers[added]
            prompt = (COMMON * 2)[start % 7 :][: 1 + length % 9]
            params = SamplingParams(
                max_tokens=1 + count % 7, n=1 + (kind % 10 == 0), temperature=float(kind % 5 == 1), seed=kind
            )
            try:
                engine.add(str(added), prompt, params)
            except Full:
                break
            if kind % 13 == 0:
                engine.cancel(str(added - kind % 40))
            added += 1
        ended += sum(delta.finish_reason is not None for delta in engine.step())
        if added % 100 == 0:
            engine.check()
    engine.check()
    load = engine.load()
    assert (load.free_blocks, load.running, load.waiting, load.waiting_tokens) == (64, 0, 0, 0)
    assert load.finished == ended
    assert load.finished + load.cancelled >= wanted
    assert load.preemptions > 0
    assert not engine._requests
    assert not engine.running


class Flat(StubRunner):
    """Every token is as likely as any other."""

    def run(self, chunks):
        outcome = super().run(chunks)
        outcome._rows = [[0.0] * VOCAB for _ in outcome._rows]
        return outcome


@pytest.mark.parametrize("ahead", [False, True])
def test_every_token_of_every_continuation_is_a_draw_of_its_own(ahead):
    limits = Limits(num_blocks=60, block_size=4, max_context=60, max_tokens_per_step=40, max_sequences=12)
    engine = Engine(None, limits=limits, runner=Flat(limits), ahead=ahead)
    for id, seed in (("a", 1), ("b", 1), ("c", 2), ("d", None), ("e", None)):
        engine.add(id, [1], SamplingParams(max_tokens=40, temperature=1.0, n=2, seed=seed))
    found = {key: tuple(tokens) for key, (tokens, _) in answers(run_out(engine)).items()}
    assert (found["a", 0], found["a", 1]) == (found["b", 0], found["b", 1])
    assert len(set(found.values())) == 8
    for tokens in found.values():
        assert set(tokens) == set(range(VOCAB))


@pytest.mark.parametrize("ahead", [False, True])
def test_what_raises_is_found_and_ends_alone(ahead):
    limits = Limits(num_blocks=60, block_size=2, max_context=24, max_tokens_per_step=40, max_sequences=12)
    engine = stub_engine(limits, ahead, poison=4)
    prompts = [(0, 1, at % 4, 2, 3) for at in range(9)]
    prompts[3] = (0, 1, 4)
    for at, prompt in enumerate(prompts):
        engine.add(str(at), prompt, SamplingParams(max_tokens=5, n=1 + at % 3, seed=at, stop_token_ids=(4,)))
    news = run_out(engine)
    found = answers(news)
    assert found["3", 0] == ([], "error")
    assert next(delta.error for delta in news if delta.id == "3") == "it could not be computed: RuntimeError: poison"
    for at, prompt in enumerate(prompts):
        if at != 3:
            wanted = alone_over_stub(prompt, SamplingParams(max_tokens=5, n=1 + at % 3, seed=at, stop_token_ids=(4,)))
            assert [found[str(at), index] for index in range(1 + at % 3)] == wanted
    assert engine.scheduler.pool.held == 0


@pytest.mark.parametrize("ahead", [False, True])
def test_a_continuation_that_is_spoilt_later_ends_its_request_and_no_other(ahead):
    limits = Limits(num_blocks=60, block_size=2, max_context=24, max_tokens_per_step=40, max_sequences=12)
    params = [SamplingParams(max_tokens=4, n=2, temperature=1.0, seed=seed) for seed in range(8)]
    prompts = [(0, 1, at % 4, 2, 3) for at in range(8)]
    engine = stub_engine(limits, ahead, spoilt=5)
    for at in range(8):
        engine.add(str(at), prompts[at], params[at])
    found, spoilt = answers(run_out(engine)), 0
    for at in range(8):
        wanted = alone_over_stub(prompts[at], params[at])
        own = [found[str(at), index] for index in range(2)]
        if any(5 in tokens[:-1] for tokens, _ in wanted):
            spoilt += 1
            assert "error" in {reason for _, reason in own} <= {"error", "length"}
        else:
            assert own == wanted
    assert 0 < spoilt < 8
