"""Text, stops and JSON through a trained model; and going on in the middle of an answer."""

from __future__ import annotations

import json

import pytest
import torch
from stub_runner import run_out
from tokenizers import Tokenizer

from labkit.core.runtime import data_path
from labkit.nn import Transformer
from labkit.serve.engine import Engine, SamplingParams
from labkit.serve.engine.loading import eos_of, plain_tokenizer, tokenizer_of
from labkit.serve.scheduler import Limits

FOLDER = data_path("checkpoints/four-domains")
LIMITS = Limits(num_blocks=200, max_context=300, max_tokens_per_step=128, max_sequences=32)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def parts():
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    return Transformer.from_pretrained(FOLDER, dtype=torch.float64), tokenizer, eos_of(FOLDER)


@pytest.fixture
def engine(parts):
    model, tokenizer, eos = parts
    return Engine(model, tokenizer, LIMITS, eos_token_ids=eos)


def test_a_stop_is_left_out_wherever_it_falls(engine):
    (whole,) = engine.generate(["def main("], SamplingParams(max_tokens=24))
    text = whole.text
    cuts = [(at, at + length) for at in range(3, len(text) - 4, 9) for length in (1, 3)]
    stops = [text[start:end] for start, end in cuts]
    results = engine.generate(["def main("] * len(stops), [SamplingParams(max_tokens=24, stop=stop) for stop in stops])
    for stop, result in zip(stops, results, strict=True):
        (answer,) = result.completions
        assert (answer.text, answer.finish_reason) == (text.split(stop)[0], "stop")
        assert len(answer.token_ids) < len(whole.completions[0].token_ids) or text.rstrip().endswith(stop)


def test_what_may_begin_a_stop_comes_late_and_nothing_is_lost(engine):
    (whole,) = engine.generate(["The quick"], SamplingParams(max_tokens=12))
    (result,) = engine.generate(["The quick"], SamplingParams(max_tokens=12, stop=(whole.text[5:] + "!", "zzz")))
    assert (result.text, result.completions[0].finish_reason) == (whole.text, "length")


def test_what_was_held_back_comes_when_a_token_ends_the_answer(engine):
    (whole,) = engine.generate(["The quick"], SamplingParams(max_tokens=8))
    ids = whole.completions[0].token_ids
    before = engine.vocabulary.decode(ids[: ids.index(ids[5])])
    params = SamplingParams(max_tokens=8, stop_token_ids=(ids[5],), stop=(before[-3:] + "!!",))
    (result,) = engine.generate(["The quick"], params)
    assert (result.text, result.completions[0].finish_reason) == (before, "stop")


def test_json_is_json_whatever_is_drawn(engine):
    params = [
        SamplingParams(max_tokens=60, temperature=t, seed=at, json_schema=PERSON) for at, t in enumerate([0, 1, 2, 5])
    ]
    results = engine.generate(["The answer is "] * 4, params)
    ended = [result.completions[0] for result in results if result.completions[0].finish_reason == "stop"]
    assert len(ended) >= 3
    for answer in ended:
        person = json.loads(answer.text)
        assert 0 <= person["age"] <= 99
        assert len(person["name"]) <= 6
    (result,) = engine.generate(["x"], SamplingParams(max_tokens=9, json_object=True, ignore_eos=True, n=2))
    assert all(answer.text.startswith("{") for answer in result.completions)


def test_a_schema_that_cannot_be_used_is_refused_and_nobody_waits(engine):
    with pytest.raises(ValueError, match="json_schema cannot be used"):
        engine.add("x", "x", SamplingParams(json_schema={"type": "nothing"}))
    assert not engine.busy


def test_characters_of_several_tokens_are_never_cut(engine):
    rare = engine.vocabulary.encode("😀你好")
    params = SamplingParams(max_tokens=len(rare))
    engine.add("x", "x", params)
    wanted, news = iter(rare), []
    continuation = engine.running["x.0"]
    for token in wanted:
        news.append(continuation.push(token)[0])
    assert "".join(news) == "😀你好"
    assert set("".join(news)) == set("😀你好") == {character for one in news for character in one}


CASES = {
    "greedy": SamplingParams(max_tokens=10),
    "drawn": SamplingParams(max_tokens=10, temperature=1.0, seed=8, top_p=0.9),
    "several": SamplingParams(max_tokens=6, temperature=1.2, seed=8, n=3, logprobs=1),
    "stop": SamplingParams(max_tokens=20, temperature=0.7, seed=3, stop=("tion", "th")),
    "grammar": SamplingParams(max_tokens=25, temperature=0.7, seed=3, json_schema=PERSON, n=2),
    "prompt": SamplingParams(max_tokens=6, prompt_logprobs=1),
}


@pytest.mark.parametrize("name", CASES)
def test_an_answer_goes_on_in_another_engine_as_it_would_have_in_this(engine, name):
    params, prompt = CASES[name], "The name of the function"
    engine.add("a", prompt, params)
    whole = run_out(engine)
    for cut in {1, len(whole) // 2}:
        told, rest = whole[:cut], []
        produced = {index: [] for index in range(params.n)}
        for delta in told:
            produced[delta.index] += delta.token_ids
            if delta.finish_reason:
                del produced[delta.index]
        engine.add("neighbour", "def main(", SamplingParams(max_tokens=5))
        engine.resume("a", prompt, params, produced)
        rest = [delta for delta in run_out(engine) if delta.id == "a"]
        for index in range(params.n):
            first, second, all_of_it = ([d for d in deltas if d.index == index] for deltas in (told, rest, whole))
            assert sum((d.token_ids for d in first + second), ()) == sum((d.token_ids for d in all_of_it), ())
            assert "".join(d.text for d in first + second) == "".join(d.text for d in all_of_it)
            assert (first + second)[-1].finish_reason == all_of_it[-1].finish_reason
            for mine, theirs in zip(first + second, all_of_it, strict=True):
                assert [one.token_id for one in mine.logprobs] == [one.token_id for one in theirs.logprobs]
                assert (mine.prompt_logprobs is None) == (theirs.prompt_logprobs is None)


def test_resuming_wants_what_it_needs(engine):
    drawn = SamplingParams(max_tokens=4, temperature=1.0)
    for params, produced, named in [
        (drawn, {0: (3,)}, "has no seed"),
        (SamplingParams(max_tokens=4), {}, "produced names"),
        (SamplingParams(max_tokens=4), {1: ()}, "produced names"),
        (SamplingParams(max_tokens=4), {0: (99999,)}, "produced has 99999"),
        (SamplingParams(max_tokens=2), {0: (5, 6, 7)}, "ended before"),
        (SamplingParams(max_tokens=9, json_object=True), {0: engine.vocabulary.encode("x")}, "does not allow"),
    ]:
        with pytest.raises(ValueError, match=named):
            engine.resume("a", "x", params, produced)
        assert not engine.busy
        engine.check()


def test_an_answer_whose_last_news_was_lost_ends_at_once(engine):
    engine.resume("a", "x", SamplingParams(max_tokens=2, n=2), {0: (5, 6), 1: (5,)})
    first, second = run_out(engine)
    assert (first.index, first.token_ids, first.finish_reason) == (0, (), "length")
    assert (second.index, len(second.token_ids), second.finish_reason) == (1, 1, "length")


def test_a_plain_tokenizer_needs_no_transformers_and_means_the_same(tmp_path):
    plain, whole = plain_tokenizer(FOLDER), tokenizer_of(FOLDER)
    for text in ("def f(x):\n    return x", "", "naïve café 🙂 数", "<|endoftext|>a<|pad|>"):
        ids = plain.encode(text).ids
        assert ids == whole(text)["input_ids"]
        assert plain.decode(ids, skip_special_tokens=True) == whole.decode(ids, skip_special_tokens=True)
    said = json.loads((FOLDER / "tokenizer_config.json").read_text("utf-8"))
    (tmp_path / "tokenizer.json").write_bytes((FOLDER / "tokenizer.json").read_bytes())
    for more in ({"tokenizer_class": "LlamaTokenizer"}, {"add_bos_token": True}, {"add_eos_token": True}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**said, **more}), "utf-8")
        assert plain_tokenizer(tmp_path) is None
