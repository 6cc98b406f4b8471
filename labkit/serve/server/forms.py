"""Fields that may come in several forms, each checked by hand, so that an error names the form that was expected."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

MOST_STOPS, LONGEST_STOP = 16, 1024
MOST_ID = 2**31 - 1
_SHOWN = 60

Prompts = list[str] | list[list[int]]


def shown(value: Any) -> str:
    """A value as an error shows it: short, whatever it is."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    words = repr(value) if not isinstance(value, str | list | dict) or len(value) < _SHOWN else None
    if words is None or len(words) > 4 * _SHOWN:
        return f"{_kind(value)} of {len(value)}" if isinstance(value, str | list | dict) else f"a {_kind(value)}"
    return words if len(words) <= _SHOWN else f"{words[: _SHOWN - 1]}…"


def _kind(value: Any) -> str:
    names = {str: "text", list: "list", dict: "object", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), "value")


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST_ID


def _prompts(value: Any) -> Prompts:
    """A text, texts, token ids, or lists of token ids: as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{shown(value)} was given; give a text, a list of texts, token ids, or a list of such lists")
    if isinstance(value[0], int):
        return [_ids(value)]
    if isinstance(value[0], str):
        if not all(isinstance(each, str) for each in value):
            raise ValueError("texts and other values stand in one list; give texts alone")
        return value
    return [_ids(each) for each in value]


def _ids(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise ValueError(f"{shown(value)} stands in a list of token lists; give lists of whole numbers alone")
    for at, each in enumerate(value):
        if not _is_id(each):
            raise ValueError(f"token {at} is {shown(each)}; give token ids, whole numbers of 0 or more")
    return value


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
        raise ValueError(f"{shown(value)} was given; give a text, or a list of texts")
    if len(stops) > MOST_STOPS or not all(0 < len(each) <= LONGEST_STOP for each in stops):
        raise ValueError(f"give up to {MOST_STOPS} texts of 1 to {LONGEST_STOP} letters")
    return stops


def _content(value: Any) -> str:
    """What a message says: a text, or parts of type text, which are put on lines of their own."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(f"{shown(value)} was given; give a text, or a list of parts of type text")
    return "\n".join(map(_part, value))


def _part(value: Any) -> str:
    if not isinstance(value, dict):
        raise ValueError(f'a part is {shown(value)}; give {{"type": "text", "text": …}}')
    kind = value.get("type")
    if kind != "text":
        raise ValueError(f"a part has the type {shown(kind)}; this model reads parts of type text only")
    if value.keys() - {"type", "text"} or not isinstance(value.get("text"), str):
        raise ValueError('a part of type text holds "type" and "text", which is a text, and nothing else')
    return value["text"]


_ID = {"type": "integer", "minimum": 0, "maximum": MOST_ID}
_STOP = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
PromptField = Annotated[
    Any,
    BeforeValidator(_prompts),
    WithJsonSchema({
        "anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
            {"type": "array", "minItems": 1, "items": _ID},
            {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1, "items": _ID}},
        ]
    }),
]  # fmt: skip
StopField = Annotated[
    Any,
    BeforeValidator(lambda value: None if value is None else _stops(value)),
    WithJsonSchema({"anyOf": [_STOP, {"type": "array", "maxItems": MOST_STOPS, "items": _STOP}, {"type": "null"}]}),
]
ContentField = Annotated[
    Any,
    BeforeValidator(_content),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": _PART}]}),
]
