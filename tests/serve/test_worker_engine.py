"""The real engine in a worker: a kill changes no answer, whatever was asked."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest
from worker_help import QUICK

from labkit.core.runtime import data_path
from labkit.serve.engine import Engine, SamplingParams
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
    ("Naïve café → 😀", SamplingParams(40, temperature=1.5, seed=3, stop=("e ", "zz"))),
    ("A record: ", SamplingParams(40, temperature=1.0, seed=5, json_schema=SCHEMA)),
]


@pytest.fixture(scope="module")
def expected():
    """Each request by itself, in this process."""
    engine = Engine.from_pretrained(**OPTIONS)
    prompts = [tuple(engine.vocabulary.encode(text)) for text, _ in ASKED]
    return prompts, [engine.generate([prompt], params)[0] for prompt, (_, params) in zip(prompts, ASKED, strict=True)]


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


def test_killed_in_the_middle_every_answer_is_what_it_would_have_been(expected):
    prompts, results = expected
    progress = []

    async def run():
        worker = Worker(
            Spec(options=OPTIONS), replace(QUICK, patience=120), on_progress=lambda *at: progress.append(at)
        )
        await worker.start()
        assert worker.info.name == "four"
        assert worker.info.max_context == 128
        reached = [asyncio.Event() for _ in ASKED]
        answers = asyncio.gather(
            *[
                collect(worker.submit(prompt, params), params.n, 4 + 5 * at, reached[at])
                for at, (prompt, (_, params)) in enumerate(zip(prompts, ASKED, strict=True))
            ]
        )
        await reached[2].wait()
        os.kill(worker.pid, signal.SIGKILL)
        answers = await answers
        assert worker.health().restarts == 1
        await worker.close()
        return answers

    for (answers, told), result in zip(asyncio.run(run()), results, strict=True):
        for (tokens, text, logprobs, finish), whole in zip(answers, result.completions, strict=True):
            assert (tokens, text, finish) == (whole.token_ids, whole.text, whole.finish_reason)
            assert [(one.token_id, one.text, one.logprob) for one in logprobs] == nearly(whole.logprobs)
        assert (told is None) == (result.prompt_logprobs is None)
    shares = [share for share, _ in progress]
    assert shares[0] == 0
    assert len(shares) > 10
    assert max(shares) > 0.9


def test_a_folder_that_is_not_there_is_told_to_the_caller(tmp_path):
    async def run():
        with pytest.raises(Exception, match="nowhere"):
            await Worker(Spec(options={"folder": str(tmp_path / "nowhere")}), QUICK).start()

    asyncio.run(run())
