"""A worker on a GPU: the next child finds the memory of the last one free, and goes on where it was."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest
import torch
from worker_gpu_model import build
from worker_help import QUICK

from labkit.serve.engine import SamplingParams
from labkit.serve.scheduler import Limits
from labkit.serve.worker import Spec, Worker

pytestmark = pytest.mark.gpu
LIMITS = Limits(num_blocks=60, block_size=16, max_context=128, max_tokens_per_step=48, max_sequences=20)
PROMPTS = [(1, 2, 3, 4, 5, 6, 7), (8,), (1, 2, 3), (30, 31, 32, 33) * 8, (9, 9), tuple(range(40))]
PARAMS = [SamplingParams(60, temperature=at % 2, seed=at, n=1 + at % 3) for at in range(len(PROMPTS))]


async def tokens_of(stream, n, reached):
    answers = [()] * n
    async for delta in stream:
        answers[delta.index] += delta.token_ids
        if len(answers[0]) == 20:
            reached.set()
    return answers


async def killed(options):
    """The answers of a worker that is killed in their middle."""
    worker = Worker(Spec("worker_gpu_model:build", options), replace(QUICK, patience=120))
    await worker.start()
    reached = [asyncio.Event() for _ in PROMPTS]
    streams = [worker.submit(prompt, params) for prompt, params in zip(PROMPTS, PARAMS, strict=True)]
    answers = asyncio.gather(
        *[tokens_of(*each) for each in zip(streams, [params.n for params in PARAMS], reached, strict=True)]
    )
    await reached[0].wait()
    os.kill(worker.pid, signal.SIGKILL)
    answers = await answers
    assert worker.health().restarts == 1
    await worker.close()
    return answers


@pytest.mark.parametrize("family", ["olmoe", "mixtral"])
def test_a_kill_changes_no_answer(family):
    options = {"family": family, "dtype": "float64", "limits": LIMITS}
    results = build(**options).generate(PROMPTS, PARAMS)
    wanted = [[one.token_ids for one in result.completions] for result in results]
    assert asyncio.run(killed(options)) == wanted


def test_the_next_child_finds_the_memory_free():
    free, _ = torch.cuda.mem_get_info()
    hold = int(0.7 * free)
    answers = asyncio.run(killed({"family": "olmoe", "dtype": "float32", "limits": LIMITS, "hold": hold}))
    assert [len(tokens) for several in answers for tokens in several] == [
        60 for params in PARAMS for _ in range(params.n)
    ]
    assert torch.cuda.mem_get_info()[0] > hold
