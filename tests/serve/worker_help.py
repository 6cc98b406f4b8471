"""What the worker's tests share: a worker of the stand-in engine, and reading of answers."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from standin_engine import answer

from labkit.serve.engine import SamplingParams
from labkit.serve.worker import Policy, Spec, Worker

QUICK = Policy(patience=30, first_delay=0.01, longest_delay=0.05, grace=5)
MARK = 7_777  # in the prompt of the request that a fault is for


@dataclass
class Answer:
    """One continuation, put together out of its deltas."""

    tokens: bytes = b""
    text: str = ""
    finish: str | None = None
    error: str | None = None


@asynccontextmanager
async def working(policy: Policy = QUICK, target: str = "standin_engine:build", **options):
    """A worker that is ready, and closed afterwards."""
    on_progress = options.pop("tell", None)
    worker = Worker(Spec(target, options), policy, on_progress=on_progress)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.close()


async def read(stream, n: int = 1) -> list[Answer]:
    """Everything that comes."""
    answers = [Answer() for _ in range(n)]
    async for delta in stream:
        one = answers[delta.index]
        assert one.finish is None
        assert delta.id == stream.id
        one.tokens += bytes(delta.token_ids)
        one.text += delta.text
        one.finish, one.error = delta.finish_reason, delta.error
    return answers


def requests(count: int, seed: int = 0, longest: int = 60) -> list[tuple[tuple[int, ...], SamplingParams]]:
    """Prompts and what is asked for, greedy and drawn, some with several continuations."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        prompt = tuple(draw.randrange(1, 5_000) for _ in range(draw.randrange(1, 20)))
        drawn = {"temperature": 1.0, "seed": draw.randrange(1000)} if draw.random() < 0.5 else {}
        made.append((prompt, SamplingParams(draw.randrange(2, longest), n=draw.choice((1, 1, 3)), **drawn)))
    return made


def right(prompt, params) -> list[Answer]:
    """What must come out."""
    return [Answer(*answer(prompt, params, index), "length") for index in range(params.n)]


async def ask(worker, prompt, params) -> list[Answer]:
    """Submit and read."""
    return await read(worker.submit(prompt, params), params.n)


async def all_right(worker, asked) -> None:
    """Every one of these requests, all at once, gets its whole answer and nothing else."""
    assert await asyncio.gather(*[ask(worker, *one) for one in asked]) == [right(*one) for one in asked]


def lives(pid: int) -> bool:
    """Whether a process still runs; a dead one that nobody has asked about yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
