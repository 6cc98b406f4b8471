"""How a worker ends: drained, closed, cut off."""

from __future__ import annotations

import asyncio
import multiprocessing

import pytest
from standin_engine import Fault
from worker_help import QUICK, ask, lives, right, working

from labkit.serve.engine import SamplingParams, Unavailable
from labkit.serve.worker import Policy, Spec, Worker

LONG = SamplingParams(2_000)


def test_draining_refuses_what_is_new_and_waits_for_the_rest():
    async def run():
        async with working(pace=0.002) as worker:
            one = (1, 2), SamplingParams(50)
            task = asyncio.create_task(ask(worker, *one))
            await asyncio.sleep(0.02)
            draining = asyncio.create_task(worker.drain(30))
            await asyncio.sleep(0)
            with pytest.raises(Unavailable, match="draining"):
                worker.submit((1,), LONG)
            health = worker.health()
            assert (health.alive, health.ready, health.draining, health.reason) == (True, False, True, "draining")
            assert await draining == 0
            assert await task == right(*one)

    asyncio.run(run())


def test_draining_cuts_off_what_is_late():
    async def run():
        async with working(pace=0.01) as worker:
            tasks = [asyncio.create_task(ask(worker, (1, at), LONG)) for at in range(1, 4)]
            await asyncio.sleep(0.05)
            assert await worker.drain(0.05) == 3
            assert [answers[0].finish for answers in await asyncio.gather(*tasks)] == ["cancelled"] * 3

    asyncio.run(run())


def test_closing_ends_streams_and_the_process():
    async def run():
        async with working(pace=0.01) as worker:
            task = asyncio.create_task(ask(worker, (1,), LONG))
            await asyncio.sleep(0.05)
            await worker.close()
            assert (await task)[0].finish == "cancelled"
            assert worker.pid is None
            assert multiprocessing.active_children() == []
            assert not worker.health().alive
            with pytest.raises(Unavailable, match="closed"):
                worker.submit((1,), LONG)
            await worker.close()

    asyncio.run(run())


def test_a_child_that_does_not_hear_is_closed_all_the_same(tmp_path):
    async def run():
        policy = Policy(grace=0.3)
        async with working(policy, faults=[Fault("hang", 5, at=1)], folder=str(tmp_path)) as worker:
            stream = worker.submit((5,), LONG)
            await stream.__anext__()
            await asyncio.sleep(0.1)
            pid = worker.pid
            await worker.close()
            assert not lives(pid)

    asyncio.run(run())


def test_before_the_start_nothing_is_accepted():
    async def run():
        worker = Worker(Spec("standin_engine:build"), QUICK)
        with pytest.raises(Unavailable, match="not started"):
            worker.submit((1,), LONG)
        with pytest.raises(Unavailable, match="not started"):
            _ = worker.info
        await worker.close()

    asyncio.run(run())
