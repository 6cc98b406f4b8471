"""Answers that must be JSON are JSON, whatever the model would rather say."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from labkit.core.runtime import data_path
from labkit.serve.engine import grammar
from labkit.serve.engine.params import SamplingParams
from labkit.serve.engine.vocabulary import Vocabulary

VOCABULARY = Vocabulary(Tokenizer.from_file(str(data_path("checkpoints/four-domains") / "tokenizer.json")))
WIDTH, END = 4100, 0
GRAMMARS = grammar.Grammars(VOCABULARY, WIDTH, [END])
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def matcher(**options) -> grammar.Matcher:
    return GRAMMARS.matcher(SamplingParams(**options))


def allowed(one: grammar.Matcher) -> torch.Tensor:
    mask, wrong = GRAMMARS.allowed([None, one])
    assert wrong == {}
    assert mask.shape == (2, WIDTH)
    assert mask[0].all()
    return mask[1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30))
def test_whatever_is_drawn_from_what_is_allowed_is_a_person(seed):
    draw, one, ids = torch.Generator().manual_seed(seed), matcher(json_schema=PERSON), []
    while not one.ended and len(ids) < 300:
        (choices,) = allowed(one).nonzero(as_tuple=True)
        id = choices[torch.randint(len(choices), (), generator=draw)].item()
        assert id < VOCABULARY.size, "a token that only the model has"
        if id == END:
            break
        ids.append(id)
        one.push([id])
    person = json.loads(VOCABULARY.decode(ids))
    assert person.keys() == {"name", "age"}
    assert 0 <= person["age"] <= 120


def test_an_object_may_end_only_where_it_is_whole():
    one = matcher(json_object=True)
    one.push(VOCABULARY.encode('{"a": [1, 2'))
    assert not allowed(one)[END]
    assert not one.ended
    one.push(VOCABULARY.encode("]}"))
    assert one.ended


def test_no_spaces_beyond_those_of_json_dumps():
    one = matcher(json_object=True)
    one.push(VOCABULARY.encode('{"a": 1'))
    (space,) = VOCABULARY.encode(" ")
    assert not allowed(one)[space]


def test_a_twin_goes_its_own_way():
    first = matcher(json_schema={"enum": ["aa", "bb"]})
    first.push(VOCABULARY.encode('"'))
    second = first.twin()
    first.push(VOCABULARY.encode("a"))
    second.push(VOCABULARY.encode("b"))
    (a,), (b,) = VOCABULARY.encode("a"), VOCABULARY.encode("b")
    assert (allowed(first)[a], allowed(first)[b]) == (True, False)
    assert (allowed(second)[a], allowed(second)[b]) == (False, True)


def test_a_token_that_is_not_allowed_is_an_error():
    with pytest.raises(ValueError, match="does not allow"):
        matcher(json_object=True).push(VOCABULARY.encode("x"))


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "person"}, "person"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "http://example.org/schema"}, "example.org"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum"),
        ({"enum": []}, "empty"),
        ({"not": {}}, "not"),
        ({"a": {1, 2}}, "set"),
        ({"minimum": float("nan")}, "compliant"),
        ({"description": "x" * (1 << 17)}, "characters"),
    ],
)
def test_a_schema_that_cannot_be_used_is_a_value_error(schema, named):
    with pytest.raises(ValueError, match=f"json_schema cannot be used: .*{named}"):
        matcher(json_schema=schema)


def test_schemas_nested_without_end_are_refused_and_nothing_breaks():
    deep: dict = {}
    for _ in range(20_000):
        deep = {"items": deep}
    with pytest.raises(ValueError, match="cannot be used"):
        matcher(json_schema=deep)
    loop = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    assert not matcher(json_schema=loop).ended


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"labkit\[serve\]"):
        grammar.Grammars(VOCABULARY, WIDTH, [END])
