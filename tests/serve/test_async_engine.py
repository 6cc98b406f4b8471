"""The engine in a thread: a backend on one event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest
from stub_runner import VOCAB, Forgetful, StubRunner, alone

from labkit.serve.engine import AsyncEngine, Engine, SamplingParams, Unavailable
from labkit.serve.scheduler import Full, Limits

LIMITS = Limits(num_blocks=60, block_size=2, max_context=60, max_tokens_per_step=20, max_sequences=6)


class Gate(Forgetful):
    """Each step waits until it is let through."""

    def __init__(self) -> None:
        self.open = threading.Semaphore(0)

    def run(self, chunks):
        assert self.open.acquire(timeout=20)
        return super().run(chunks)


def over(runner, limits=LIMITS) -> Engine:
    return Engine(None, limits=limits, runner=runner, eos_token_ids=())


async def read(stream):
    return [delta async for delta in stream]


def play(scene, engine):
    """Run a scene with a started backend, and close it whatever comes."""

    async def whole():
        backend = AsyncEngine(engine)
        await backend.start()
        try:
            return await asyncio.wait_for(scene(backend), 30)
        finally:
            await backend.close()

    return asyncio.run(whole())


def test_many_streams_get_their_own_answers():
    async def scene(backend):
        params = [SamplingParams(max_tokens=1 + at % 5, n=1 + at % 3, temperature=at % 2, seed=at) for at in range(20)]
        streams = [backend.submit([1, at % VOCAB, 3], one) for at, one in enumerate(params)]
        found = await asyncio.gather(*map(read, streams))
        for at, deltas in enumerate(found):
            for index, (tokens, reason) in enumerate(alone([1, at % VOCAB, 3], params[at])):
                own = [delta for delta in deltas if delta.index == index]
                assert [token for delta in own for token in delta.token_ids] == tokens
                assert own[-1].finish_reason == reason
        assert backend.health().ready
        assert (backend.info.num_blocks, backend.info.vocab_size) == (60, VOCAB)
        return backend.load()

    load = play(scene, over(StubRunner(LIMITS)))
    assert (load.running, load.waiting, load.free_blocks) == (0, 0, 60)


def test_an_engine_is_made_off_the_loop_and_not_before_start():
    def make():
        assert threading.current_thread() is not threading.main_thread()
        return over(Forgetful())

    backend = AsyncEngine(make)
    with pytest.raises(Unavailable, match="not been started"):
        backend.submit([1], SamplingParams())
    with pytest.raises(Unavailable, match="not been started"):
        _ = backend.info
    assert not backend.health().alive

    async def scene():
        await backend.start()
        deltas = await read(backend.submit([1], SamplingParams(max_tokens=2)))
        await backend.close()
        return deltas

    assert asyncio.run(scene())[-1].finish_reason == "length"
    assert not backend.health().ready


def test_who_leaves_frees_blocks_and_the_others_go_on():
    gate = Gate()

    async def scene(backend):
        first, second = (backend.submit([1, 2, 3], SamplingParams(max_tokens=40)) for _ in range(2))
        gate.open.release(2)
        await anext(second)
        first.cancel()
        gate.open.release(60)
        assert [delta.finish_reason for delta in await read(first)][-1] == "cancelled"
        assert (await read(second))[-1].finish_reason == "length"
        while backend.load().running:
            await asyncio.sleep(0.01)
        return backend.load()

    load = play(scene, over(gate))
    assert (load.cancelled, load.finished, load.free_blocks) == (1, 1, 60)


def test_what_can_never_run_and_what_finds_no_room_is_told_at_once():
    gate = Gate()
    limits = Limits(
        60, 2, max_context=60, max_tokens_per_step=20, max_sequences=1, max_waiting=2, max_waiting_tokens=20
    )

    async def scene(backend):
        with pytest.raises(ValueError, match="at most 60"):
            backend.submit([1] * 60, SamplingParams(max_tokens=9))
        with pytest.raises(ValueError, match="no token"):
            backend.submit([VOCAB], SamplingParams())
        streams = [backend.submit([1], SamplingParams(max_tokens=5)) for _ in range(2)]
        with pytest.raises(Full):
            backend.submit([1], SamplingParams(max_tokens=5))
        gate.open.release(100)
        await asyncio.gather(*map(read, streams))
        await read(backend.submit([1] * 30, SamplingParams(max_tokens=5)))  # more than may wait, and nobody waits

    play(scene, over(gate, limits))


def test_draining_waits_for_those_that_run_and_then_cuts_them_off():
    gate = Gate()

    async def scene(backend):
        quick, endless = (backend.submit([1], SamplingParams(max_tokens=count)) for count in (2, 50))
        gate.open.release(4)
        cut = await backend.drain(0.3)
        with pytest.raises(Unavailable, match="shutting down"):
            backend.submit([1], SamplingParams())
        assert backend.health().draining
        gate.open.release(100)
        return cut, (await read(quick))[-1].finish_reason, (await read(endless))[-1].finish_reason

    assert play(scene, over(gate)) == (1, "length", "cancelled")

    async def idle(backend):
        return await backend.drain(5)

    assert play(idle, over(Forgetful())) == 0


def test_closing_ends_what_runs():
    gate = Gate()

    async def scene(backend):
        stream = backend.submit([1], SamplingParams(max_tokens=50))
        gate.open.release(3)
        await anext(stream)
        closing = asyncio.create_task(backend.close())
        await asyncio.sleep(0)
        gate.open.release(100)
        await closing
        return (await read(stream))[-1].finish_reason

    assert play(scene, over(gate)) == "cancelled"


def test_an_engine_that_fails_as_a_whole_ends_every_stream_and_says_why():
    class Broken(Forgetful):
        def copy(self, pairs):
            raise RuntimeError("the device fell off")

    async def scene(backend):
        (delta,) = await read(backend.submit([1], SamplingParams()))
        assert (delta.finish_reason, "fell off" in delta.error) == ("error", True)
        assert not backend.health().alive
        assert "fell off" in backend.health().reason
        with pytest.raises(Unavailable, match="fell off"):
            backend.submit([1], SamplingParams())

    play(scene, over(Broken()))


def test_reports_come_on_the_loop():
    async def scene(backend):
        reports, here = [], threading.get_ident()
        backend.subscribe(lambda report: reports.append((report, threading.get_ident())))
        await read(backend.submit([1, 2], SamplingParams(max_tokens=3)))
        assert [report.step.num_tokens for report, _ in reports] == [2, 1, 1]
        assert {thread for _, thread in reports} == {here}

    play(scene, over(Forgetful()))
