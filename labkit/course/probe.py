"""What crosses the wall of the sandbox: cases go in pickled, outcomes come out as plain JSON, never unpickled.

`answer_cases` runs inside, next to the learner's code, which may have changed anything there; so `read_outcomes`,
outside, trusts nothing it reads. An object that is no plain data comes out as the name of its type, and is wrong.
"""

from __future__ import annotations

import base64
import json
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from labkit.course.attempt import Case, Outcome, attempt_all

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
    )
}  # fmt: skip
MAX_DIMENSIONS = 16


class Unreadable(ValueError):
    """What came out of the sandbox is no list of outcomes."""


def probe_code(name: str, cases: Sequence[Case], nonce: str) -> str:
    """The code that runs the function `name` of a kernel on `cases` and prints the outcomes between two nonces."""
    packed = base64.b64encode(pickle.dumps(tuple(cases))).decode()
    return f"__import__('labkit.course.probe').course.probe.answer_cases({name!r}, globals(), {packed!r}, {nonce!r})"


def answer_cases(name: str, names: Mapping[str, Any], packed: str, nonce: str) -> None:
    """Run `names[name]` on the packed cases and print the outcomes. This half runs inside the sandbox."""
    cases = pickle.loads(base64.b64decode(packed))
    answer = names.get(name)
    if not callable(answer):
        print(f"{nonce}{json.dumps({'missing': True})}{nonce}")
        return
    outcomes = [
        {
            "status": outcome.status,
            "value": encode(outcome.value),
            "error_type": outcome.error_type,
            "error": outcome.error[:2000],
            "changed_input": outcome.changed_input,
            "reached": list(outcome.reached),
        }
        for outcome in attempt_all(answer, cases)
    ]
    print(f"{nonce}{json.dumps({'outcomes': outcomes})}{nonce}")


def read_outcomes(text: str, nonce: str, num_cases: int) -> tuple[Outcome, ...] | None:
    """The outcomes printed between two nonces; None if the function was not there.

    Raises Unreadable for anything but outcomes of plain data, one for each case (or one, blank).
    """
    parts = text.split(nonce)
    if len(parts) != 3:
        raise Unreadable("no outcomes came back")
    try:
        found = json.loads(parts[1])
        if found == {"missing": True}:
            return None
        outcomes = tuple(_outcome(item) for item in found["outcomes"])
    except (ValueError, TypeError, KeyError, RuntimeError, RecursionError, OverflowError) as error:
        raise Unreadable(f"what came back is no list of outcomes: {type(error).__name__}") from error
    if len(outcomes) != num_cases and not (outcomes and outcomes[0].status == "blank"):
        raise Unreadable(f"{len(outcomes)} outcomes came back for {num_cases} inputs")
    return outcomes


def encode(value: Any) -> Any:
    """Plain data as JSON; anything else as the name of its type.

    >>> encode((1, True))
    {'tuple': [{'int': '1'}, {'bool': True}]}
    >>> encode(object())
    {'object': 'object'}
    """
    kind = type(value)
    if value is None or kind in (bool, str):
        return {"none" if value is None else kind.__name__: value}
    if kind is int:
        return {"int": str(value)}
    if kind is float:
        return {"float": value.hex()}
    if kind in (list, tuple):
        return {kind.__name__: [encode(item) for item in value]}
    if kind is dict:
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if kind is torch.Tensor and value.layout == torch.strided and value.dtype in DTYPES.values():
        name = str(value.dtype).removeprefix("torch.")
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        return {"tensor": [name, list(value.shape), base64.b64encode(data).decode()]}
    return {"object": kind.__name__}


def decode(item: Any) -> Any:
    """The value of an encoded item. Raises ValueError, TypeError or KeyError for one that `encode` does not make."""
    ((kind, body),) = item.items()
    if kind == "none":
        return None
    if kind in ("bool", "str"):
        return _exactly({"bool": bool, "str": str}[kind], body)
    if kind == "int":
        return int(_exactly(str, body))
    if kind == "float":
        return float.fromhex(_exactly(str, body))
    if kind in ("list", "tuple"):
        values = [decode(part) for part in _exactly(list, body)]
        return values if kind == "list" else tuple(values)
    if kind == "dict":
        return {decode(key): decode(part) for key, part in _exactly(list, body)}
    if kind == "tensor":
        return _tensor(*body)
    if kind == "object":
        return type(re.sub(r"\W", "", _exactly(str, body))[:60] or "unknown", (), {})()
    raise ValueError(f"{kind!r} is no kind of value")


def _tensor(name: str, shape: list[int], data: str) -> torch.Tensor:
    dtype, raw = DTYPES[name], base64.b64decode(_exactly(str, data), validate=True)
    sizes = [_exactly(int, size) for size in _exactly(list, shape)]
    if len(sizes) > MAX_DIMENSIONS or any(not 0 <= size < 2**40 for size in sizes):
        raise ValueError("a shape that no tensor has")
    if math.prod(sizes) * dtype.itemsize != len(raw):
        raise ValueError("a shape that does not fit its data")
    if not raw:
        return torch.empty(sizes, dtype=dtype)
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    return (flat != 0 if dtype is torch.bool else flat.view(dtype)).reshape(sizes)


def _outcome(item: Any) -> Outcome:
    if item["status"] not in ("value", "error", "blank"):
        raise ValueError("an unknown status")
    said = [_exactly(str, item[key])[:2000] for key in ("error_type", "error")]
    changed = _exactly(bool, item["changed_input"])
    reached = tuple(_exactly(bool, each) for each in _exactly(list, item["reached"]))
    return Outcome(item["status"], decode(item["value"]), *said, changed_input=changed, reached=reached)


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value
