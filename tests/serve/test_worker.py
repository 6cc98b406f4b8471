"""A worker in good health: answers, refusals, cancellation, reports, draining, closing."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import threading
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
from worker_help import all_right, ask, read, requests, right, working

from labkit.serve.engine import Delta, SamplingParams, Stream
from labkit.serve.scheduler import Full, Limits
from labkit.serve.worker import Policy, Spec, Worker
from labkit.serve.worker.child import Mail
from labkit.serve.worker.flight import Request

LONG = SamplingParams(2_000)


def test_answers_are_the_engines():
    async def run():
        async with working() as worker:
            assert worker.health().ready
            assert worker.info.name == "stand-in"
            await all_right(worker, requests(40))
            assert worker.health().restarts == 0

    asyncio.run(run())


def test_an_unseeded_draw_is_drawn_here_so_that_another_child_would_draw_the_same():
    async def run():
        async with working() as worker:
            params = SamplingParams(30, temperature=1.0)
            first, second = await ask(worker, (1, 2), params), await ask(worker, (1, 2), params)
            assert first != second
            assert first != right((1, 2), params)  # which is that of seed None

    asyncio.run(run())


@pytest.mark.parametrize(
    ("prompt", "params", "named"),
    [
        ((), SamplingParams(), "at least one"),
        ("text", SamplingParams(), "no token"),
        ((1, 1 << 16), SamplingParams(), "no token"),
        ((1, -1), SamplingParams(), "no token"),
        ((1, True), SamplingParams(), "no token"),
        ((1,), SamplingParams(stop_token_ids=(1 << 16,)), "stop_token_ids"),
        ((1,), SamplingParams(4_096), "4096"),
    ],
)
def test_what_can_never_run_is_refused_at_once(prompt, params, named):
    async def run():
        async with working() as worker:
            with pytest.raises(ValueError, match=named):
                worker.submit(prompt, params)
            await all_right(worker, requests(2))

    asyncio.run(run())


def test_what_only_the_engine_can_refuse_ends_its_stream_alone():
    async def run():
        async with working() as worker:
            others = asyncio.create_task(all_right(worker, requests(5)))
            (one,) = await ask(worker, (1,), SamplingParams(5, json_schema={"type": "nonsense"}))
            assert (one.finish, one.error) == ("error", "this schema is nonsense")
            await others
            assert worker.health().restarts == 0

    asyncio.run(run())


def test_a_schema_too_deep_to_be_handed_on_is_refused():
    schema = {}
    for _ in range(100_000):
        schema = {"items": schema}

    async def run():
        async with working() as worker:
            with pytest.raises(ValueError, match="flatter"):
                worker.submit((1,), SamplingParams(5, json_schema=schema))
            await all_right(worker, requests(2))

    asyncio.run(run())
    while schema:
        schema = schema.pop("items", None)  # by hand, since freeing it whole recurses as well


def test_full_is_full_and_what_was_accepted_is_answered():
    limits = Limits(num_blocks=64, max_sequences=4, max_waiting=20)

    async def run():
        async with working(limits=limits, pace=0.001) as worker:
            asked, accepted = requests(60, longest=20), []
            for one in asked:
                try:
                    accepted.append((one, worker.submit(*one)))
                except Full:
                    break
            assert len(accepted) == 20
            for one, stream in accepted:
                assert await read(stream, one[1].n) == right(*one)
            await all_right(worker, requests(20, longest=20))

    asyncio.run(run())


def test_an_engine_that_is_full_keeps_nobody_out_who_was_accepted():
    async def run():
        limits = Limits(num_blocks=64, max_sequences=2, max_waiting=2)
        async with working(limits=limits, told=False, pace=0.001) as worker:
            streams = [worker.submit((at,), SamplingParams(10)) for at in range(1, 13)]
            streams[7].cancel()
            answers = [(await read(stream))[0].finish for stream in streams]
            assert answers == ["length"] * 7 + ["cancelled"] + ["length"] * 4
            await all_right(worker, [((1,), SamplingParams(1))])
            assert worker.load().finished == 12

    asyncio.run(run())


def test_a_pipe_that_nobody_reads_holds_up_nobody_and_loses_nothing():
    reader, writer = multiprocessing.Pipe(duplex=False)
    mail, sent = Mail(writer), [("step", "x" * 10_000, number) for number in range(200)]
    for message in sent:
        mail.put(message)
    heard = []
    while len(heard) < len(sent):
        heard += reader.recv()
    assert heard == sent
    mail.close()
    writer.close()
    with pytest.raises(EOFError):
        reader.recv()


def test_cancel_is_immediate_and_takes_effect_at_the_next_step():
    async def run():
        async with working(pace=0.005) as worker:
            stream = worker.submit((1,), LONG)
            tokens = [delta async for delta in Upto(stream, 3)]
            stream.cancel()
            stream.cancel()
            rest = [delta async for delta in stream]
            assert len(tokens) == 3
            assert [delta.finish_reason for delta in rest][-1] == "cancelled"
            await all_right(worker, requests(3, longest=5))
            load = worker.load()
            assert (load.running, load.waiting, load.cancelled) == (0, 0, 1)
            assert load.steps < 100

    asyncio.run(run())


class Upto:
    """The first few of a stream."""

    def __init__(self, stream, count):
        self.stream, self.count = stream, count

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.count:
            raise StopAsyncIteration
        self.count -= 1
        return await self.stream.__anext__()


def test_a_thousand_requests_and_cancellations_leave_nothing_behind():
    async def one(worker, asked, draw):
        prompt, params = asked
        stream = worker.submit(prompt, params)
        if draw.random() < 0.5:
            return await read(stream, params.n) == right(prompt, params)
        seen = [delta async for delta in Upto(stream, draw.randrange(0, 4)) if not stream.ended]
        stream.cancel()
        return len(seen) < 4

    async def run():
        draw = random.Random(5)
        async with working(limits=Limits(num_blocks=512, max_sequences=32)) as worker:
            asked = requests(1_000, longest=12)
            for at in range(0, 1_000, 50):
                assert all(await asyncio.gather(*[one(worker, each, draw) for each in asked[at : at + 50]]))
            await all_right(worker, asked[:1])
            load = worker.load()
            assert (load.running, load.waiting) == (0, 0)
            flight = worker._flight
            assert (flight.held, flight.sent, flight.waiting()) == ({}, {}, (0, 0))

    resource_tracker.ensure_running()  # it stays, and keeps a file open
    before = open_files()
    asyncio.run(run())
    assert open_files() == before


def open_files() -> int:
    """Of this process, once the threads of all workers have ended; 0 where that cannot be told."""
    for thread in threading.enumerate():
        if thread.name.startswith("worker-"):
            thread.join(30)
            assert not thread.is_alive()
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_news_of_one_that_was_cancelled_do_not_say_that_the_child_let_go():
    worker = Worker(Spec("standin_engine:build"))
    request = Request(1, (1,), LONG, Stream("1"))
    worker._flight.add(request)
    worker._flight.due()
    request.stream.end("cancelled")
    worker._take(Delta("1", 0, (5,)))
    assert list(worker._flight.sent) == ["1"]


def test_a_reader_that_sleeps_loses_nothing():
    async def run():
        async with working() as worker:
            asked = requests(8, longest=400)
            streams = [worker.submit(*one) for one in asked]
            import time

            time.sleep(0.5)  # the whole event loop stands still; the child goes on
            answers = [await read(stream, one[1].n) for stream, one in zip(streams, asked, strict=True)]
            assert answers == [right(*one) for one in asked]

    asyncio.run(run())


def test_reports_come_only_if_somebody_listens():
    async def run():
        async with working() as worker:
            heard = []
            worker._supervisor.owner.on_news = spy(worker.on_news, heard)
            await all_right(worker, requests(3))
            assert heard
            assert not any(message[-1] for message in heard if message[0] == "step")
            reports = []
            worker.subscribe(broken)
            worker.subscribe(reports.append)
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
            await all_right(worker, requests(3))
            numbers = [report.step.number for report in reports]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            told = sum(len(one.tokens) for asked in requests(3) for one in right(*asked))
            assert sum(report.decode_tokens for report in reports) == told

    asyncio.run(run())


def spy(function, heard):
    def told(message):
        heard.append(message)
        function(message)

    return told


def broken(report):
    raise RuntimeError("a listener that fails")


def test_progress_is_told():
    told = []

    async def run():
        async with working(tell=lambda share, what: told.append((share, what))):
            pass

    asyncio.run(run())
    assert told == [(1.0, "stands in")]


@pytest.mark.parametrize("given", [{"patience": 0}, {"grace": -1}, {"calm": "long"}, {"max_failures": 1.5}])
def test_a_policy_is_checked(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        Policy(**given)


def test_a_target_is_a_module_and_a_name():
    with pytest.raises(ValueError, match="module:function"):
        Spec("standin_engine.build")
