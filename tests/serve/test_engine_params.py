"""What a request may ask, and the stream that its client reads."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from labkit.serve.engine.backend import Stream
from labkit.serve.engine.delta import Delta
from labkit.serve.engine.params import SamplingParams


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 1.0}, "max_tokens is 1.0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": True}, "temperature is True"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"n": 0}, "n is 0"),
        ({"n": 129}, "n is 129"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": True}, "seed is True"),
        ({"stop": ("",)}, "none of them empty"),
        ({"stop": ("a",) * 65}, "up to 64"),
        ({"stop": (1,)}, "stop is"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids is -1"),
        ({"logprobs": 21}, "give 0 to 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1"),
        ({"ignore_eos": 1}, "ignore_eos is 1"),
        ({"json_schema": "{}"}, "json_schema is a str"),
        ({"json_schema": {}, "json_object": True}, "both given"),
    ],
)
def test_what_is_out_of_range_is_named(wrong, named):
    with pytest.raises(ValueError, match=named):
        SamplingParams(**wrong)


def test_lists_and_single_texts_are_taken_and_nothing_can_be_changed_afterwards():
    params = SamplingParams(stop=["a", "b"], stop_token_ids=[3], json_schema={"type": "object"})
    assert (params.stop, params.stop_token_ids, params.constrained) == (("a", "b"), (3,), True)
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert pickle.loads(pickle.dumps(params)) == params
    with pytest.raises(AttributeError):
        params.n = 2


@pytest.mark.parametrize(("temperature", "greedy"), [(0, True), (1e-6, True), (1e-4, False), (2.0, False)])
def test_next_to_zero_is_greedy(temperature, greedy):
    assert SamplingParams(temperature=temperature).greedy is greedy


def read(stream: Stream) -> list[Delta]:
    async def all_of_it():
        return [delta async for delta in stream]

    return asyncio.run(all_of_it())


def test_a_stream_ends_after_the_last_delta_of_every_index():
    stream = Stream("a", n=2)
    for delta in (Delta("a", 0, text="x"), Delta("a", 1, finish_reason="stop"), Delta("a", 0, finish_reason="length")):
        assert not stream.ended
        stream.feed(delta)
    stream.feed(Delta("a", 0, text="too late"))
    assert [(delta.index, delta.text, delta.finish_reason) for delta in read(stream)] == [
        (0, "x", None), (1, "", "stop"), (0, "", "length"),
    ]  # fmt: skip


def test_leaving_tells_the_backend_once_and_ends_every_index():
    told = []
    stream = Stream("a", n=2, on_cancel=told.append)
    stream.feed(Delta("a", 1, finish_reason="stop"))
    stream.cancel()
    stream.cancel()
    stream.feed(Delta("a", 0, text="too late"))
    assert told == ["a"]
    assert [(delta.index, delta.finish_reason) for delta in read(stream)] == [(1, "stop"), (0, "cancelled")]


def test_leaving_after_the_end_tells_nobody():
    told = []
    stream = Stream("a", on_cancel=told.append)
    stream.feed(Delta("a", finish_reason="stop"))
    stream.cancel()
    assert told == []


def test_a_reader_that_waits_is_woken():
    async def scene():
        stream = Stream("a")
        reader = asyncio.ensure_future(stream.__anext__())
        await asyncio.sleep(0)
        stream.feed(Delta("a", text="now", finish_reason="stop"))
        return (await reader).text

    assert asyncio.run(scene()) == "now"
