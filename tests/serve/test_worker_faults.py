"""A worker whose child dies, hangs or raises: neighbours' answers do not change, and the guilty are found."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest
from standin_engine import Fault
from worker_help import MARK, all_right, ask, lives, read, requests, right, working

from labkit.serve.engine import SamplingParams, Unavailable
from labkit.serve.worker import Policy

IMPATIENT = Policy(patience=2.5, first_delay=0.01, longest_delay=0.05)
GUILTY = (MARK, 1), SamplingParams(20)


@pytest.mark.parametrize("kind", ["die", "exit", "raise"])
def test_a_child_that_ends_once_is_replaced_and_nobody_notices(kind, tmp_path):
    faults = [Fault(kind, MARK, at=7, times=1)]

    async def run():
        async with working(faults=faults, folder=str(tmp_path)) as worker:
            await all_right(worker, [*requests(8), GUILTY, *requests(8, seed=1)])
            assert worker.health().restarts == 1
            assert worker.health().ready

    asyncio.run(run())


@pytest.mark.parametrize(("kind", "why"), [("hang", "made no progress"), ("freeze", "no sign of life")])
def test_a_child_that_hangs_is_replaced_and_nobody_notices(kind, why, tmp_path, caplog):
    faults = [Fault(kind, MARK, at=7, times=1)]

    async def run():
        async with working(IMPATIENT, faults=faults, folder=str(tmp_path)) as worker:
            await all_right(worker, [*requests(8), GUILTY])
            assert worker.health().restarts == 1

    asyncio.run(run())
    assert why in caplog.text


def test_a_long_step_is_no_hang(tmp_path):
    faults = [Fault("slow", MARK, at=at) for at in range(5, 9)]

    async def run():
        async with working(IMPATIENT, faults=faults, folder=str(tmp_path)) as worker:
            await all_right(worker, [*requests(8), GUILTY])
            assert worker.health().restarts == 0

    asyncio.run(run())


def test_killed_at_random_moments_no_token_is_lost_and_none_comes_twice():
    async def run():
        draw, steps = random.Random(3), []
        async with working(pace=0.0005) as worker:
            for turn in range(20):
                asked = requests(16, seed=turn, longest=80)
                answers = asyncio.create_task(all_right(worker, asked))
                await asyncio.sleep(draw.random() * 0.06)
                pid = worker.pid
                os.kill(pid, signal.SIGKILL)
                await answers
                while worker.pid in (pid, None) or not worker.health().ready:
                    await asyncio.sleep(0.005)
                steps.append(worker.load().steps)
            assert worker.health().restarts == 20
            assert sorted(set(steps)) == steps  # what is counted only grows

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["die", "raise"])
def test_a_request_that_always_kills_ends_alone(kind, tmp_path):
    faults = [Fault(kind, MARK, at=7)]

    async def run():
        async with working(faults=faults, folder=str(tmp_path), pace=0.001) as worker:
            neighbours = asyncio.create_task(all_right(worker, requests(8)))
            (guilty,) = await ask(worker, *GUILTY)
            later = asyncio.create_task(all_right(worker, requests(4, seed=2)))
            assert guilty.tokens == right(*GUILTY)[0].tokens[:7]
            assert guilty.finish == "error"
            assert "SIGKILL" in guilty.error or "illegal memory access" in guilty.error
            await neighbours
            await later
            assert worker.health().restarts == 3

    asyncio.run(run())


def test_two_that_kill_are_both_found(tmp_path):
    faults = [Fault("die", MARK, at=3), Fault("die", MARK + 1, at=5)]

    async def run():
        async with working(faults=faults, folder=str(tmp_path)) as worker:
            neighbours = asyncio.create_task(all_right(worker, requests(6)))
            asked = [ask(worker, (MARK + at,), SamplingParams(20, n=2)) for at in (0, 1)]
            for answers in await asyncio.gather(*asked):
                assert [one.finish for one in answers] == ["error", "error"]
            await neighbours

    asyncio.run(run())


def test_many_that_kill_do_not_bring_the_worker_to_give_up(tmp_path):
    policy = Policy(first_delay=0.01, longest_delay=0.01, max_failures=3)
    faults = [Fault("die", MARK, at=2)]

    async def run():
        async with working(policy, faults=faults, folder=str(tmp_path)) as worker:
            long = [((1, at), SamplingParams(40)) for at in range(1, 5)]
            neighbours = asyncio.create_task(all_right(worker, long))
            asked = [ask(worker, (MARK, at), SamplingParams(20)) for at in range(6)]
            assert [answers[0].finish for answers in await asyncio.gather(*asked)] == ["error"] * 6
            await neighbours
            assert worker.health().restarts == 2 + 6
            assert worker.health().ready

    asyncio.run(run())


def test_a_long_bystander_holds_up_nobody(tmp_path):
    faults = [Fault("die", MARK, at=4, times=2)]

    async def run():
        async with working(faults=faults, folder=str(tmp_path), pace=0.001) as worker:
            long = (1, 2), SamplingParams(1_500)
            bystander = asyncio.create_task(ask(worker, *long))
            assert await ask(worker, *GUILTY) == right(*GUILTY)
            await all_right(worker, requests(4))
            assert not bystander.done()
            assert await bystander == right(*long)
            assert worker.health().restarts == 2

    asyncio.run(run())


def test_reports_go_on_across_a_death():
    async def run():
        async with working(pace=0.001) as worker:
            reports = []
            worker.subscribe(reports.append)
            for _ in range(2):
                answers = asyncio.create_task(all_right(worker, requests(4)))
                while not reports:
                    await asyncio.sleep(0.005)
                os.kill(worker.pid, signal.SIGKILL)
                await answers
                assert reports[-1].step.chunks
                assert all(chunk.blocks for report in reports for chunk in report.step.chunks)
                reports.clear()

    asyncio.run(run())


def test_draining_goes_on_across_a_death():
    async def run():
        async with working(pace=0.002) as worker:
            answers = asyncio.create_task(all_right(worker, requests(6)))
            await asyncio.sleep(0.03)
            draining = asyncio.create_task(worker.drain(60))
            os.kill(worker.pid, signal.SIGKILL)
            assert await draining == 0
            await answers

    asyncio.run(run())


def test_what_is_cancelled_while_nobody_runs_is_not_given_to_the_next():
    async def run():
        async with working(Policy(first_delay=0.2), pace=0.001) as worker:
            stream = worker.submit((1,), SamplingParams(3_000))
            answers = asyncio.create_task(all_right(worker, requests(4)))
            await asyncio.sleep(0.02)
            os.kill(worker.pid, signal.SIGKILL)
            while worker.health().ready:
                await asyncio.sleep(0.005)
            stream.cancel()
            await answers
            load = worker.load()
            assert (load.running, load.waiting, load.cancelled) == (0, 0, 0)

    asyncio.run(run())


@pytest.mark.parametrize("moment", ["paused", "loading"])
def test_it_can_be_closed_at_any_moment(moment, tmp_path):
    async def run():
        async with working(Policy(first_delay=5 if moment == "paused" else 0.001), pace=0.01) as worker:
            task = asyncio.create_task(ask(worker, (1,), SamplingParams(1_000)))
            await asyncio.sleep(0.05)
            os.kill(worker.pid, signal.SIGKILL)
            while worker.health().ready or (moment == "loading" and worker.pid is None):
                await asyncio.sleep(0.002)
            pid = worker.pid
            await worker.close()
            assert (await task)[0].finish == "cancelled"
            assert pid is None or not lives(pid)

    asyncio.run(run())


def test_arrivals_cancellations_and_killers_all_at_once(tmp_path):
    faults = [Fault("die", MARK, at=3), Fault("raise", MARK + 1, at=9), Fault("slow", MARK + 2, at=6)]
    draw = random.Random(11)

    async def one(worker, asked):
        await asyncio.sleep(draw.random() * 0.3)
        prompt, params = asked
        stream = worker.submit(prompt, params)
        if draw.random() < 0.2:
            await asyncio.sleep(draw.random() * 0.05)
            stream.cancel()
            return True
        answers = await read(stream, params.n)
        if MARK in prompt or MARK + 1 in prompt:
            return all(answer.finish == "error" for answer in answers)
        return answers == right(prompt, params)

    async def run():
        async with working(faults=faults, folder=str(tmp_path), pace=0.0005) as worker:
            asked = requests(60, seed=4)
            asked += [((MARK + at % 3, at), SamplingParams(30)) for at in range(6)]
            draw.shuffle(asked)
            assert all(await asyncio.gather(*[one(worker, each) for each in asked]))
            await all_right(worker, requests(4))
            assert (worker._flight.held, worker._flight.sent) == ({}, {})

    asyncio.run(run())


def test_a_hang_whose_client_has_left_is_blamed_on_nobody(tmp_path):
    faults = [Fault("hang", MARK, at=3)]

    async def run():
        async with working(IMPATIENT, faults=faults, folder=str(tmp_path)) as worker:
            neighbours = asyncio.create_task(all_right(worker, requests(4)))
            stream = worker.submit(*GUILTY)
            async for delta in stream:
                if len(delta.token_ids) and stream.ended is False:
                    break
            await asyncio.sleep(0.3)
            stream.cancel()
            assert (await read(stream))[0].finish == "cancelled"
            await neighbours
            await all_right(worker, requests(4))

    asyncio.run(run())


def test_after_too_many_failures_it_gives_up_and_says_why(tmp_path):
    policy = Policy(first_delay=0.01, longest_delay=0.02, max_failures=2)

    async def run():
        async with working(policy, "standin_engine:build_unless_broken", folder=str(tmp_path), pace=0.01) as worker:
            running = asyncio.create_task(ask(worker, (1,), SamplingParams(1_000)))
            await asyncio.sleep(0.05)
            Path(tmp_path, "broken").touch()
            os.kill(worker.pid, signal.SIGKILL)
            (answer,) = await running
            assert answer.finish == "error"
            assert "no model" in answer.error
            health = worker.health()
            assert (health.alive, health.ready, health.restarts) == (False, False, 2)
            assert "no model" in health.reason
            with pytest.raises(Unavailable, match="no model"):
                worker.submit((1,), SamplingParams())

    asyncio.run(run())


def test_while_it_is_replaced_requests_are_accepted_and_wait(tmp_path):
    async def run():
        async with working(Policy(first_delay=0.3), pace=0.001) as worker:
            os.kill(worker.pid, signal.SIGKILL)
            while worker.health().ready:
                await asyncio.sleep(0.005)
            health = worker.health()
            assert health.alive
            assert "SIGKILL" in health.reason
            answers = asyncio.create_task(all_right(worker, requests(4)))
            await asyncio.sleep(0.02)
            assert worker.load().waiting == 4
            await answers

    asyncio.run(run())


def test_a_child_of_the_child_that_lives_on_does_not_hide_its_death(tmp_path):
    pids = tmp_path / "pids"

    async def run():
        async with working(target="standin_engine:build_parent", pids=str(pids), pace=0.001) as worker:
            grandchild = int(pids.read_text())
            answers = asyncio.create_task(all_right(worker, requests(4)))
            await asyncio.sleep(0.01)
            os.kill(worker.pid, signal.SIGKILL)
            await answers
            assert lives(grandchild)
            os.kill(grandchild, signal.SIGKILL)
        os.kill(int(pids.read_text()), signal.SIGKILL)

    asyncio.run(run())
