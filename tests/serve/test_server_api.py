"""The `openai` client drives every feature, over a real socket; answers are exactly what the backend says."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from pydantic import BaseModel
from scripted_backend import END, TEXT, Scripted, expected
from server_thread import Served

from labkit.serve.engine import SamplingParams
from labkit.serve.server import told
from labkit.serve.server.settings import Settings


@pytest.fixture(scope="module")
def served():
    with Served(Scripted(), TEXT) as server:
        yield server
        assert server.backend.held == {}
        assert server.backend.free == server.backend.num_blocks


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def said(prompt, index=0, **params):
    return expected(prompt, SamplingParams(temperature=1.0, **params), index)


def chat_prompt(content):
    return f"user: {content}\nassistant:"


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.owned_by, model.max_model_len) == ("scripted", "labkit", 512)
    assert client.models.retrieve("scripted") == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("another/one")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_text_and_its_usage(client):
    answer = client.completions.create(model="scripted", prompt="A few words", max_tokens=12, seed=3)
    (choice,) = answer.choices
    assert choice.text == said("A few words", max_tokens=12, seed=3)
    assert (choice.finish_reason, choice.logprobs) == ("length", None)
    size = len(TEXT.encode(["A few words"])[0])
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        size, 12, size + 12)  # fmt: skip


@pytest.mark.parametrize(
    "prompt",
    [["one", "two", "three"], [[5, 6, 7], [8, 9]], [5, 6, 7]],
    ids=["texts", "token lists", "tokens"],
)
def test_batches_and_tokens_come_back_in_order(client, prompt):
    answer = client.completions.create(model="scripted", prompt=prompt, n=2, seed=1, max_tokens=6)
    prompts = [prompt] if isinstance(prompt[0], int) else prompt
    wanted = [said(each, index, seed=1, n=2, max_tokens=6) for each in prompts for index in range(2)]
    assert [choice.index for choice in answer.choices] == list(range(len(wanted)))
    assert [choice.text for choice in answer.choices] == wanted
    assert len(set(wanted)) == len(wanted)


def test_the_same_seed_draws_the_same_in_a_batch_and_alone(client):
    def ask(prompt):
        return client.completions.create(model="scripted", prompt=prompt, seed=7).choices

    assert ask(["x", "y"])[1].text == ask("y")[0].text


def test_stops_are_left_out_and_not_streamed_by_halves(client):
    whole = said("Stop here", seed=5, max_tokens=60, ignore_eos=True)
    middle = whole[len(whole) // 2 :]
    stops = [middle[:3], "never in it", "nor this", "", "nor that"]
    stops.remove("")
    for stream in (False, True):
        got = client.completions.create(
            model="scripted", prompt="Stop here", seed=5, max_tokens=60, stop=stops, stream=stream,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        choices = [chunk.choices[0] for chunk in got] if stream else got.choices
        assert "".join(choice.text for choice in choices) == whole[: whole.index(stops[0])]
        assert choices[-1].finish_reason == "stop"


def test_the_end_token_ends_unless_ignored(client):
    def ask(**more):
        return client.completions.create(
            model="scripted", prompt="Long", max_tokens=400, seed=2, extra_body=more
        ).choices[0]  # fmt: skip

    assert ask().finish_reason == "stop"
    assert ask().text == said("Long", max_tokens=400, seed=2)
    assert ask(ignore_eos=True).finish_reason == "length"
    assert "<|endoftext|>" not in ask().text


def test_a_stream_says_the_same_with_usage_at_the_end(client):
    more = {"model": "scripted", "prompt": ["Streams", "are"], "n": 2, "seed": 4, "max_tokens": 9}
    whole = client.completions.create(**more)
    chunks = list(client.completions.create(**more, stream=True, stream_options={"include_usage": True}))
    texts = ["", "", "", ""]
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert all("usage" not in chunk.model_fields_set for chunk in client.completions.create(**more, stream=True))


def test_usage_may_come_with_every_event(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = client.completions.create(model="scripted", prompt="a", max_tokens=5, stream=True, stream_options=options)
    assert [chunk.usage.completion_tokens for chunk in chunks] == [1, 2, 3, 4, 5, 5]


def test_logprobs_of_prompt_and_answer_with_offsets_into_the_text(client):
    more = {"model": "scripted", "prompt": "né €", "echo": True, "logprobs": 2, "max_tokens": 3, "seed": 1}
    for answer in (client.completions.create(**more), list(client.completions.create(**more, stream=True))):
        choices = [c.choices[0] for c in answer] if isinstance(answer, list) else answer.choices
        text = "".join(choice.text for choice in choices)
        parts = [choice.logprobs for choice in choices]
        tokens = [token for part in parts for token in part.tokens]
        offsets = [offset for part in parts for offset in part.text_offset]
        values = [value for part in parts for value in part.token_logprobs]
        tops = [top for part in parts for top in part.top_logprobs]
        assert text == "né €" + said("né €", seed=1, max_tokens=3)
        assert len(tokens) == len(offsets) == len(values) == len(tops)
        assert values[0] is None
        assert tops[0] is None
        assert all(value < 0 for value in values[1:])
        assert all(max(top, key=top.get) == token for top, token in zip(tops[1:], tokens[1:], strict=True))
        assert all(len(top) == 2 for top in tops[1:])
        for token, start in zip(tokens, offsets, strict=True):
            assert token.startswith("bytes:") or text[start:].startswith(token)
        assert tokens[:3] == ["n", "bytes:\\xc3", "bytes:\\xa9"]
        assert offsets[:4] == [0, 1, 1, 2]


def test_echo_alone_tells_only_the_prompt(client):
    for prompt in ("Only this", [5, 6, 7]):
        answer = client.completions.create(model="scripted", prompt=prompt, echo=True, logprobs=0, max_tokens=0)
        text = prompt if isinstance(prompt, str) else TEXT.decode(prompt)
        assert answer.choices[0].text == text
        assert len(answer.choices[0].logprobs.tokens) == answer.usage.prompt_tokens
        assert answer.usage.completion_tokens == 0
        assert all(len(top) == 1 for top in answer.choices[0].logprobs.top_logprobs[1:])


def test_a_chat(client):
    answer = client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], seed=1, n=2,
        max_completion_tokens=8, logprobs=True, top_logprobs=3,
    )  # fmt: skip
    for index, choice in enumerate(answer.choices):
        assert choice.message.role == "assistant"
        assert choice.message.content == said(chat_prompt("Hi"), index, seed=1, n=2, max_tokens=8)
        assert b"".join(bytes(token.bytes) for token in choice.logprobs.content).decode() == choice.message.content
        assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)
    again = [{"role": "user", "content": "Hi"}, answer.choices[0].message, {"role": "user", "content": "More"}]
    assert client.chat.completions.create(model="scripted", messages=again, max_tokens=2).choices[0].message.content


def test_a_chat_without_a_limit_uses_what_the_context_leaves(client):
    answer = client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": "Go on"}], seed=1, extra_body={"ignore_eos": True}
    )
    assert answer.usage.total_tokens == 512
    assert answer.choices[0].finish_reason == "length"


def test_a_streamed_chat(client):
    more = {"model": "scripted", "messages": [{"role": "system", "content": "Be"}, {"role": "user", "content": "Hi"}],
            "seed": 1, "n": 2, "max_tokens": 7}  # fmt: skip
    whole = client.chat.completions.create(**more)
    chunks = list(client.chat.completions.create(**more, stream=True, stream_options={"include_usage": True}))
    contents, roles, ends = ["", ""], [None, None], [None, None]
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        contents[choice.index] += choice.delta.content or ""
        roles[choice.index] = choice.delta.role or roles[choice.index]
        ends[choice.index] = choice.finish_reason
    assert contents == [choice.message.content for choice in whole.choices]
    assert roles == ["assistant"] * 2
    assert ends == ["length"] * 2
    assert chunks[-1].usage == whole.usage


def test_the_clients_own_parsing(client):
    class Answer(BaseModel):
        answer: int

    more = {"model": "scripted", "messages": [{"role": "user", "content": "?"}], "response_format": Answer}
    assert client.chat.completions.parse(**more).choices[0].message.parsed == Answer(answer=42)
    with client.chat.completions.stream(**more) as events:
        assert events.get_final_completion().choices[0].message.parsed == Answer(answer=42)


def test_json(client):
    schema = {"name": "one", "schema": {"type": "object", "properties": {"answer": {"type": "integer"}}}}
    for form in ({"type": "json_object"}, {"type": "json_schema", "json_schema": {**schema, "strict": True}}):
        answer = client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "?"}], response_format=form
        )
        assert json.loads(answer.choices[0].message.content) == {"answer": 42}
        answer = client.completions.create(
            model="scripted", prompt="?", max_tokens=30, extra_body={"response_format": form}
        )
        assert json.loads(answer.choices[0].text) == {"answer": 42}


def test_many_at_once_each_get_their_own(served):
    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
            return await asyncio.gather(
                *(client.completions.create(model="scripted", prompt=f"number {i}", seed=i) for i in range(40))
            )

    answers = asyncio.run(all_of_them())
    assert [answer.choices[0].text for answer in answers] == [said(f"number {i}", seed=i) for i in range(40)]


def test_answers_have_exactly_the_fields_that_are_described(served):
    body = {"model": "scripted", "prompt": "x", "logprobs": 1, "echo": True}
    told.Completion.model_validate_json(served.post("/v1/completions", body).content, strict=True)
    body = {"model": "scripted", "messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 1}
    told.ChatCompletion.model_validate_json(served.post("/v1/chat/completions", body).content, strict=True)
    told.Models.model_validate_json(served.get("/v1/models").content, strict=True)


def test_stop_tokens_and_top_k_reach_the_backend(client):
    first = client.completions.create(model="scripted", prompt="q", seed=1, logprobs=0, max_tokens=4)
    id = TEXT.encode([first.choices[0].logprobs.tokens[2]], special=False)[0][0]
    assert id != END
    answer = client.completions.create(
        model="scripted", prompt="q", seed=1, max_tokens=4, extra_body={"stop_token_ids": [id], "top_k": -1}
    )
    assert answer.usage.completion_tokens <= 3
    assert answer.choices[0].finish_reason == "stop"


def test_keys_open_the_door_and_part_the_caches():
    backend = Scripted()
    with Served(backend, TEXT, Settings(name="own", keys=("first", "second"))) as served:
        for key in ("first", "second"):
            client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)
            client.completions.create(model="own", prompt="x", extra_body={"cache_salt": "mine"})
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="firs", max_retries=0).models.list()
        assert served.get("/v1/models").headers["www-authenticate"] == "Bearer"
        assert [served.get(path).status_code for path in ("/health", "/ready", "/metrics")] == [200, 200, 200]
        assert len(set(backend.salts)) == 2
