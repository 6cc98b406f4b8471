"""A worker whose child fails while it is built, and what a child loads."""

from __future__ import annotations

import asyncio

import pytest
from standin_engine import Fault
from worker_help import QUICK, ask, lives, right, working

from labkit.serve.engine import SamplingParams, Unavailable
from labkit.serve.worker import Policy, Spec, Worker


def test_what_goes_wrong_while_building_is_told_to_the_caller():
    async def run():
        worker = Worker(Spec("standin_engine:missing", {"folder": "/no/such"}), QUICK)
        with pytest.raises(FileNotFoundError, match="there is no model in /no/such"):
            await worker.start()
        assert not worker.health().alive
        with pytest.raises(Unavailable, match="no model"):
            worker.submit((1,), SamplingParams())

    asyncio.run(run())


@pytest.mark.parametrize("target", ["no_such_module:build", "standin_engine:no_such_function"])
def test_a_target_that_is_not_there_is_told_to_the_caller(target):
    async def run():
        with pytest.raises((ImportError, AttributeError), match="no_such"):
            await Worker(Spec(target), QUICK).start()

    asyncio.run(run())


@pytest.mark.parametrize(("kind", "why"), [("die", "SIGKILL"), ("freeze", "no sign of life"), ("hang", "no progress")])
def test_a_death_while_loading_is_told_to_the_caller(kind, why, tmp_path):
    policy = Policy(loading_patience=4, patience=2.5)
    options = {"loading": [Fault(kind, 2)], "folder": str(tmp_path)}

    async def run():
        with pytest.raises(RuntimeError, match=why):
            await Worker(Spec("standin_engine:build", options), policy).start()

    asyncio.run(run())


def test_a_start_that_is_given_up_leaves_no_process(tmp_path):
    options = {"loading": [Fault("hang", 2)], "folder": str(tmp_path)}

    async def run():
        halfway = asyncio.Event()
        worker = Worker(Spec("standin_engine:build", options), QUICK, on_progress=lambda *_: halfway.set())
        starting = asyncio.create_task(worker.start())
        await halfway.wait()
        assert "50%, halfway" in worker.health().reason
        pid = worker.pid
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not lives(pid)

    asyncio.run(run())


def test_it_loads_nothing_heavy():
    async def run():
        async with working(target="standin_engine:build_light") as worker:
            assert await ask(worker, (1,), SamplingParams(3)) == right((1,), SamplingParams(3))

    asyncio.run(run())
