"""How one value is not another, in words: what a judge compares, and what a card says.

Only plain data is compared (tensors, numbers, strings, booleans, None, and lists, tuples and dicts of them), with our
own code. An object of another type is wrong whatever its `__eq__` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """How one value is not another: the kind, which names the diagnosis, and the words."""

    kind: str
    says: str

    def __str__(self) -> str:
        return self.says


def difference(got: Any, expected: Any, rtol: float, atol: float) -> Difference | None:
    """Where `got` is not `expected`, or None if they agree.

    Shapes, dtypes, lengths, keys and types must be equal, and a whole number must be one. Floating-point values agree
    within `atol + rtol * |expected|`, NaN agrees with NaN; everything else must be equal.

    >>> print(difference(torch.ones(2), torch.ones(2, 1), 1e-5, 1e-6))
    the shape is (2,) where (2, 1) was expected
    """
    if isinstance(expected, Tensor):
        return _tensor_difference(got, expected, rtol, atol)
    if isinstance(expected, bool) or expected is None or isinstance(expected, str):
        if type(got) is not type(expected):
            return Difference("wrong_type", f"{_show(got)} where {expected!r} was expected")
        return None if got == expected else Difference("wrong_values", f"{got!r} where {expected!r} was expected")
    if isinstance(expected, (int, float)):
        return _number_difference(got, expected, rtol, atol)
    if isinstance(expected, dict):
        if type(got) is not dict:
            return Difference("wrong_type", f"{_show(got)} where a dict was expected, with keys {_keys(expected)}")
        if missing := expected.keys() - got.keys():
            return Difference("missing_keys", f"the dict lacks {_keys(missing)}")
        if extra := got.keys() - expected.keys():
            return Difference("unknown_keys", f"the dict has {_keys(extra)}, which nobody asked for")
        pairs = [(f"[{key!r}]", got[key], expected[key]) for key in expected]
    elif isinstance(expected, (list, tuple)):
        if type(got) not in (list, tuple):
            return Difference("wrong_type", f"{_show(got)} where {len(expected)} values were expected")
        if len(got) != len(expected):
            return Difference("wrong_length", f"{len(got)} values where {len(expected)} were expected")
        pairs = [(f"[{i}]", g, e) for i, (g, e) in enumerate(zip(got, expected, strict=True))]
    else:
        raise TypeError(f"a reference returned {type(expected).__name__}, which cannot be judged; return plain data")
    for where, one, other in pairs:
        if found := difference(one, other, rtol, atol):
            return Difference(found.kind, f"value {where}: {found}")
    return None


def _number_difference(got: Any, expected: float, rtol: float, atol: float) -> Difference | None:
    if type(got) is Tensor and got.numel() == 1:
        got = got.item()
    if type(got) not in (int, float):
        return Difference("wrong_type", f"{_show(got)} where a number was expected")
    said = f"{_show(got)} where {expected} was expected"
    if isinstance(expected, int):
        if got != expected:
            return Difference("wrong_values", said)
        return None if type(got) is int else Difference("float_for_integer", said)
    near = got == expected or (got != got and expected != expected)
    if not near and math.isfinite(expected) and (type(got) is int or math.isfinite(got)):
        near = abs(Fraction(got) - Fraction(expected)) <= atol + rtol * abs(expected)  # exact: no int is too large
    return None if near else Difference("wrong_values", said)


def _tensor_difference(got: Any, expected: Tensor, rtol: float, atol: float) -> Difference | None:
    if type(got) not in (Tensor, torch.nn.Parameter):
        return Difference("wrong_type", f"{_show(got)} where a tensor of shape {tuple(expected.shape)} was expected")
    if got.shape != expected.shape:
        return Difference("wrong_shape", f"the shape is {tuple(got.shape)} where {tuple(expected.shape)} was expected")
    if got.dtype != expected.dtype:
        return Difference("wrong_dtype", f"the dtype is {got.dtype} where {expected.dtype} was expected")
    if not expected.is_floating_point():
        wrong = got != expected
    else:
        wrong = ~torch.isclose(got.double(), expected.double(), rtol=rtol, atol=atol, equal_nan=True)
    if not wrong.any():
        return None
    at = tuple(wrong.nonzero()[0].tolist())
    first = f"first at {list(at)}: {_number(got[at])} where {_number(expected[at])} was expected"
    return Difference("wrong_values", f"{int(wrong.sum())} of {wrong.numel()} values differ, {first}")


def _keys(keys: Any) -> str:
    return ", ".join(sorted(map(repr, keys)))


def _number(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.is_floating_point() else str(value.item())


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if value is None:
        return "None"
    if type(value) is int and abs(value) > 10**100:
        return "a whole number of more than a hundred digits"
    if type(value) in (bool, int, float):
        return repr(value)
    if type(value) is str:
        return f"the text {value[:60]!r}"
    name = type(value).__name__
    return "a numpy array" if name == "ndarray" else f"an object of type {name}"
