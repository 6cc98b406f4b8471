"""JSON read strictly: what a lenient reader lets pass in silence is refused with a sentence.

RFC 8259 leaves open what doubled keys, lone surrogates and numbers beyond a float mean; here they are errors.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MOST_DIGITS = 400  # a float holds no longer whole number
_MOST_SHOWN = 40


def read(data: bytes, max_depth: int = 64) -> Any:
    """The value that a text of JSON stands for.

    Args:
        data: UTF-8.
        max_depth: of brackets inside brackets.

    Raises ValueError, with the place where that helps.

    >>> read(b'{"n": 1, "n": 2}')
    Traceback (most recent call last):
    ValueError: the key 'n' stands twice in one object; give it once
    """
    if not data.strip():
        raise ValueError("the body is empty; give a JSON object")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the body is not UTF-8: byte {error.start} is {data[error.start]:#04x}") from None
    _check_depth(text, max_depth)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    if _SURROGATE.search(text):
        _check_letters(value)
    return value


def _check_depth(text: str, most: int) -> None:
    depth = 0
    for found in _BRACKETS.finditer(text):
        sign = found[0][0]
        if sign in "[{":
            depth += 1
            if depth > most:
                raise ValueError(f"brackets stand more than {most} deep in each other; give a flatter body")
        elif sign in "]}":
            depth -= 1


def _check_letters(value: Any) -> None:
    """Refuse halves of surrogate pairs, in keys too; the depth is known to be small."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(value[error.start]):04x}"
            raise ValueError(f"{half} is half of a surrogate pair and no character; give both halves") from None
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_letters(key)
            _check_letters(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_letters(inner)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:_MOST_SHOWN]!r} stands twice in one object; give it once")
    return found


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits; give {_MOST_DIGITS} at most")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:_MOST_SHOWN]} is larger than any float; give a smaller number")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON; give a finite number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_whole, parse_float=_float, parse_constant=_constant, strict=True
)
