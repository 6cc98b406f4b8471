"""Whatever is wrong with a request, the answer has OpenAI's shape, names the fault, and the server goes on."""

from __future__ import annotations

import json
import time

import pytest
from scripted_backend import TEXT, Scripted
from server_thread import Served

from labkit.serve.server import strict_json, told
from labkit.serve.server.settings import Settings

TEXTS, CHAT = "/v1/completions", "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def served():
    backend = Scripted()
    settings = Settings(
        max_body_bytes=20_000, body_seconds=0.5, header_seconds=0.7, max_choices=8, max_output_tokens=300
    )
    with Served(backend, TEXT, settings) as server:
        yield server
        assert backend.held == {}
        assert backend.free == backend.num_blocks


def fault(response, status):
    """The error in an answer, which must have exactly the described fields."""
    assert response.status_code == status, response.text
    return told.Error.model_validate_json(response.content, strict=True).error


def body(**more):
    return {"model": "scripted", "prompt": "x", **more}


def talk(**more):
    return {"model": "scripted", "messages": [{"role": "user", "content": "x"}], **more}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the body is empty"),
        (b" \n", "the body is empty"),
        (b"{", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b'{"a": 1} x', "Extra data"),
        (b'\xef\xbb\xbf{"model": "scripted"}', "not JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8: byte 12 is 0xff"),
        (b'{"prompt": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"prompt": "a\nb"}', "not JSON"),
        (b'{"prompt": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b'{"temperature": NaN}', "NaN is no number of JSON"),
        (b'{"temperature": -Infinity}', "-Infinity is no number"),
        (b'{"temperature": 1e999}', "larger than any float"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"model": "a", "model": "b"}', "the key 'model' stands twice"),
        (b"[" * 10_000, "more than 64 deep"),
        (b'{"a":' * 100, "more than 64 deep"),
        (b'{"prompt": "' + b"[" * 1000, "not JSON"),
        (b"[1, 2]", "give a JSON object"),
        (b'"text"', "give a JSON object"),
        (b"null", "give a JSON object"),
        (b"\x00\x01", "not JSON"),
    ],
)
@pytest.mark.parametrize("path", [TEXTS, CHAT])
def test_a_body_that_is_no_strict_json_is_refused(served, path, content, words):
    error = fault(served.post(path, content=content, headers=JSON), 400)
    assert words in error.message
    assert error.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "give a text"),
        ({"prompt": [[]]}, "prompt", "empty"),
        ({"prompt": None}, "prompt", "null was given"),
        ({"prompt": 7}, "prompt", "7 was given"),
        ({"prompt": ["a", 1]}, "prompt", "texts alone"),
        ({"prompt": [1, "a"]}, "prompt", "token 1 is 'a'"),
        ({"prompt": [1, True]}, "prompt", "token 1 is true"),
        ({"prompt": [1.0]}, "prompt", "1.0"),
        ({"prompt": [-1]}, "prompt", "token 0 is -1"),
        ({"prompt": [4096]}, "prompt", "the model knows 0 to 4095"),
        ({"prompt": [10**30]}, "prompt", "token ids"),
        ({"prompt": [[1], "a"]}, "prompt", "token lists"),
        ({"prompt": "word " * 600}, "prompt", "tokens; 511 are allowed"),
        ({"prompt": [5] * 512}, "prompt", "512 tokens; 511 are allowed"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"max_tokens": 10**9}, "max_tokens", "this server gives 300 at most"),
        ({"max_tokens": 10**30}, "max_tokens", "less than or equal"),
        ({"max_tokens": 300, "prompt": [5] * 400}, "max_tokens", "ask for 112 or fewer"),
        ({"max_tokens": "5"}, "max_tokens", "'5' was given; input should be a valid integer"),
        ({"max_tokens": 5.5}, "max_tokens", "5.5 was given"),
        ({"max_tokens": True}, "max_tokens", "true was given"),
        ({"temperature": -0.1}, "temperature", "greater than"),
        ({"temperature": 2.1}, "temperature", "less than"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 0}, "n", "greater than"),
        ({"n": 9}, "n", "9 answers; 8 are allowed"),
        ({"prompt": ["a"] * 5, "n": 2}, "n", "10 answers"),
        ({"prompt": ["a"] * 9}, "prompt", "9 answers"),
        ({"stop": [""]}, "stop", "1 to 1024 letters"),
        ({"stop": ["a"] * 17}, "stop", "up to 16"),
        ({"stop": 5}, "stop", "give a text"),
        ({"stop_token_ids": [4096]}, "stop_token_ids", "the model knows"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"logprobs": 21}, "logprobs", "less than"),
        ({"logprobs": True}, "logprobs", "valid integer"),
        ({"stream": 1}, "stream", "valid boolean"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown parameter"),
        ({"response_format": {"type": "xml"}}, "response_format", "'json_object', 'json_schema'"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "hue"}}}},
         "response_format.json_schema.schema", "Invalid type: hue"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema", "missing"),
        ({"temprature": 1}, "temprature", "unknown parameter 'temprature'"),
        ({"best_of": 3}, "best_of", "not supported"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"min_p": 0.1}, "min_p", "not supported"),
        ({"model": 5}, "model", "valid string"),
        ({"model": None}, "model", "valid string"),
    ],
)  # fmt: skip
def test_a_wrong_field_of_a_completion_is_named(served, more, param, words):
    error = fault(served.post(TEXTS, body(**more)), 400)
    assert error.param == param
    assert words in error.message


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hi"}, "messages", "valid list"),
        ({"messages": [5]}, "messages.0", "5 was given"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'user'"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0.role", "'tool' was given"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "null was given"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages.0.content", "'image_url'; this model reads parts of type text only"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content", "holds"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
         "messages.0.tool_calls", "unknown parameter"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, "messages", "are allowed"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"max_tokens": 0}, "max_tokens", "greater than"),
        ({"max_completion_tokens": 10**9}, "max_completion_tokens", "at most"),
        ({"max_completion_tokens": 3, "max_tokens": 4}, "max_completion_tokens", "give the second alone"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": 2}, "logprobs", "valid boolean"),
        ({"echo": True}, "echo", "unknown parameter"),
    ],
)  # fmt: skip
def test_a_wrong_field_of_a_chat_is_named(served, more, param, words):
    error = fault(served.post(CHAT, talk(**more)), 400)
    assert error.param == param
    assert words in error.message


def test_what_changes_nothing_may_be_given(served):
    neutral = {
        "best_of": 1, "suffix": None, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "user": "me",
        "stop": None, "n": None, "stream": None, "logprobs": None, "max_tokens": None, "seed": None, "top_p": None,
    }  # fmt: skip
    assert served.post(TEXTS, body(**neutral)).status_code == 200
    neutral = {"tools": [], "tool_choice": "none", "store": False, "parallel_tool_calls": True, "modalities": ["text"]}
    assert served.post(CHAT, talk(**neutral, max_tokens=2)).status_code == 200
    assert served.post(TEXTS, body(presence_penalty=False)).status_code == 400


def test_another_model_another_path_another_method(served):
    assert fault(served.post(TEXTS, body(model="gpt")), 404).code == "model_not_found"
    assert fault(served.post("/v1/embeddings", {}), 404).code == "not_found"
    assert fault(served.get("/"), 404).message.startswith("GET /:")
    wrong = served.get(TEXTS)
    assert fault(wrong, 405).code == "method_not_allowed"
    assert wrong.headers["allow"] == "POST"
    for path in ("/v1/completions/", "/v1//completions", "/%00", "/v1/models/" + "x" * 5000, "/metrics/x"):
        assert "not" in fault(served.get(path), 404).code


def test_another_kind_of_body(served):
    for headers in ({}, {"content-type": "text/plain"}, JSON | {"content-encoding": "gzip"}):
        error = fault(served.post(TEXTS, content=json.dumps(body()), headers=headers), 415)
        assert error.code == "unsupported_media_type"
    good = {"content-type": "Application/JSON; charset=utf-8"}
    assert served.post(TEXTS, content=json.dumps(body()), headers=good).status_code == 200


def test_a_body_too_large_is_refused_whether_it_says_so_or_not(served):
    large = json.dumps(body(prompt="x" * 30_000)).encode()
    assert fault(served.post(TEXTS, content=large, headers=JSON), 413).code == "body_too_large"
    parts = (large[at : at + 1000] for at in range(0, len(large), 1000))
    assert fault(served.post(TEXTS, content=parts, headers=JSON), 413).code == "body_too_large"


def test_a_body_without_end_is_cut_off(served):
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    got = served.raw(head + b"transfer-encoding: chunked\r\n\r\n" + b"2710\r\n" + b"x" * 10000 + b"\r\n", 3)
    assert b"408" in got.split(b"\r\n")[0]
    assert b"body_timeout" in got
    flood = b"".join(b"2710\r\n" + b"x" * 10000 + b"\r\n" for _ in range(20))
    began = time.perf_counter()
    got = served.raw(head + b"transfer-encoding: chunked\r\n\r\n" + flood, 30)
    assert got == b"" or b"body_too_large" in got  # the reset of the connection may overtake the answer
    assert time.perf_counter() - began < 20, "the connection stayed open"


def test_a_slow_body_and_a_slow_head_are_not_waited_for(served):
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    got = served.raw(head + b"content-length: 100\r\n\r\n{", 3)
    assert b"body_timeout" in got
    assert b"connection: close" in got.lower()
    assert b"head_timeout" in served.raw(b"POST /v1/comp", 3)
    assert b"head_timeout" in served.raw(b"", 3)


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"x" * 100_000, b"GET / HTTP/9\r\n\r\n"])
def test_what_is_no_http_is_told_so(served, data):
    got = served.raw(data + b"\r\n\r\n", 3)
    status, _, rest = got.partition(b"\r\n")
    assert status.startswith(b"HTTP/1.1 400")
    assert told.Error.model_validate_json(rest.partition(b"\r\n\r\n")[2]).error.code == "invalid_http"
    assert served.get("/health").status_code == 200


def test_a_path_that_is_no_text_and_two_requests_at_once(served):
    head = b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n"
    assert served.raw(head % b"/\xff", 0.5).split(b" ")[1] in (b"400", b"404")
    assert served.raw(head % b"/%ff%fe?%00", 0.5).split(b" ")[1] == b"404"
    got = served.raw(head % b"/health" + head % b"/ready", 0.5)
    assert got.count(b"HTTP/1.1 200 OK") == 2


def test_two_lengths_are_refused(served):
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    got = served.raw(head + b"content-length: 5\r\ncontent-length: 6\r\n\r\n{}", 3)
    assert got.startswith(b"HTTP/1.1 400")


def test_a_fault_of_ours_is_told_in_the_same_shape(served, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("a secret detail")

    monkeypatch.setattr(served.backend, "submit", broken)
    error = fault(served.post(TEXTS, body()), 500)
    assert (error.type, error.code) == ("server_error", "internal")
    assert "secret" not in error.message
    monkeypatch.undo()
    assert served.post(TEXTS, body()).status_code == 200


def test_strict_json_takes_time_that_grows_with_the_body_only():
    def seconds(data):
        began = time.perf_counter()
        with pytest.raises(ValueError, match="JSON"):
            strict_json.read(data)
        return time.perf_counter() - began

    for hostile in (b'"' + b'\\"' * 500_000, b'{"a":"' + b"\\" * 1_000_000, b"[],[]" * 200_000):
        assert seconds(hostile) < 5


def test_good_json_is_read_as_it_is():
    text = '{"a": [1, -2.5e3, true, null, "\\ud83d\\ude00 \\u0000 é"], "b": {"c": {}}}'
    assert strict_json.read(text.encode()) == json.loads(text)
