"""The real engine in a worker: a kill changes no answer, whatever was asked."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest
from tokenizers import Tokenizer
from worker_help import QUICK

from labkit.core.runtime import data_path
from labkit.serve.engine import SamplingParams
from labkit.serve.scheduler import Limits
from labkit.serve.worker import Spec, Worker

FOLDER = str(data_path("checkpoints/four-domains"))
LIMITS = Limits(num_blocks=256, block_size=8, max_context=128, max_tokens_per_step=64, max_sequences=8)
OPTIONS = {"folder": FOLDER, "device": "cpu", "limits": LIMITS, "name": "four"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 20}, "b": {"type": "integer"}}}
ASKED = [
    ("def load(path):\n", SamplingParams(40)),
    ("The module", SamplingParams(40, temperature=1.0, seed=7)),
    ("import os\n", SamplingParams(30, temperature=0.8, top_p=0.9, seed=1, n=3, logprobs=2)),
    ("12 + 30 =", SamplingParams(25, prompt_logprobs=1, logprobs=0)),
    ("The café “is”", SamplingParams(40, temperature=1.2, seed=33, stop=("e ", "zz", ", and"))),
    ("A record: ", SamplingParams(40, temperature=1.0, seed=5, json_schema=SCHEMA)),
]


async def collect(stream, n, after, reached):
    """The continuations (tokens, text, logprobs, end), and the prompt's; `reached` is set after so many deltas."""
    answers, told, count = [[(), "", (), None] for _ in range(n)], None, 0
    async for delta in stream:
        one, count = answers[delta.index], count + 1
        one[0], one[1], one[2] = one[0] + delta.token_ids, one[1] + delta.text, one[2] + delta.logprobs
        one[3], told = delta.finish_reason, delta.prompt_logprobs or told
        if count == after:
            reached.set()
    reached.set()
    return answers, told


def nearly(logprobs):
    """Rounded: in other company, sums are added up in another order."""
    return [(one.token_id, one.text, pytest.approx(one.logprob, abs=1e-4)) for one in logprobs]


def test_killed_in_the_middle_every_answer_is_what_it_would_have_been():
    tokenizer, progress = Tokenizer.from_file(f"{FOLDER}/tokenizer.json"), []
    prompts = [tuple(tokenizer.encode(text).ids) for text, _ in ASKED]

    def ask(worker, at, reached):
        params = ASKED[at][1]
        return collect(worker.submit(prompts[at], params), params.n, 4 + 5 * at, reached)

    async def run():
        worker = Worker(
            Spec(options=OPTIONS), replace(QUICK, patience=120), on_progress=lambda *at: progress.append(at)
        )
        await worker.start()
        assert (worker.info.name, worker.info.max_context) == ("four", 128)
        alone = [await ask(worker, at, asyncio.Event()) for at in range(len(ASKED))]
        third = asyncio.Event()
        together = asyncio.gather(*[ask(worker, at, third if at == 2 else asyncio.Event()) for at in range(len(ASKED))])
        await third.wait()
        os.kill(worker.pid, signal.SIGKILL)
        together = await together
        assert worker.health().restarts == 1
        await worker.close()
        return alone, together

    alone, together = asyncio.run(run())
    for (several, prompt), (wanted_several, wanted_prompt) in zip(together, alone, strict=True):
        for (tokens, text, logprobs, finish), wanted in zip(several, wanted_several, strict=True):
            assert [tokens, text, finish] == [wanted[0], wanted[1], wanted[3]]
            assert len(tokens) > 8
            assert [(one.token_id, one.text, one.logprob) for one in logprobs] == nearly(wanted[2])
        assert [(one.token_id, one.text, one.logprob) for one in (prompt or ())[1:]] == nearly(
            (wanted_prompt or ())[1:]
        )
    shares = [share for share, _ in progress]
    assert shares[0] == 0
    assert len(shares) > 10
    assert max(shares) > 0.9
