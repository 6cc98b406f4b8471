"""Running an answer: cases go in, outcomes come out, and nothing is judged here.

Kept apart from the judging so that a grader can run this half inside a sandbox, next to the learner's code,
and compare the outcomes outside it (see `judge`).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

Status = Literal["value", "error", "blank"]


@dataclass(frozen=True)
class Case:
    """One input of an exercise: positional and keyword arguments, and what is special about them.

    For an exercise that is a class, `init` holds the constructor's arguments; `args` go to the call. With `needs_grad`
    the floating-point tensors among `args` ask for gradients, which must reach those that the reference's reach.
    `through` is a function of labkit that calls the answer itself, `through(answer, *args)`, watches what it does, and
    returns what is to be judged: for what no return value shows, such as gradients and memory.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    init: tuple[Any, ...] | None = None
    needs_grad: bool = False
    through: Callable[..., Any] | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an answer did with one case: a value, an error, or nothing yet (NotImplementedError: still blank)."""

    status: Status
    value: Any = None
    error_type: str = ""
    error: str = ""
    changed_input: bool = False
    printed: str = ""
    reached: tuple[bool, ...] = ()


def same(a: Any, b: Any) -> bool:
    """Whether two plain values are equal to the last bit, tensors and containers included (NaN equals NaN)."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return (
            isinstance(a, torch.Tensor)
            and isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(a.isnan(), b.isnan())
            and torch.equal(*(value.nan_to_num(0.0, float("inf"), float("-inf")) for value in (a, b)))
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if dataclasses.is_dataclass(a) and not isinstance(a, type):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return bool(a == b)


def attempt(answer: Callable[..., Any], case: Case) -> Outcome:
    """Call `answer` on copies of the case's arguments and say what happened. Only an interrupt gets through."""
    args, kwargs = copy.deepcopy(case.args), copy.deepcopy(dict(case.kwargs))
    if case.needs_grad:
        args = tuple(arg.requires_grad_() if _differentiable(arg) else arg for arg in args)
    before = copy.deepcopy((args, kwargs))
    printed = io.StringIO()
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(printed):
            torch.manual_seed(0)
            call = answer if case.init is None else answer(*copy.deepcopy(case.init))
            value = call(*args, **kwargs) if case.through is None else case.through(call, *args, **kwargs)
    except NotImplementedError:
        return Outcome("blank")
    except (Exception, SystemExit) as error:
        return Outcome("error", error_type=type(error).__name__, error=str(error), printed=printed.getvalue())
    changed = not same(before, (args, kwargs))
    reached = _reached(value, args) if case.needs_grad else ()
    return Outcome("value", detached(value), changed_input=changed, printed=printed.getvalue(), reached=reached)


def _differentiable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _reached(value: Any, args: Sequence[Any]) -> tuple[bool, ...]:
    """For every floating-point argument, whether a gradient of the result flows back to it."""
    inputs = [arg for arg in args if _differentiable(arg)]
    parts = value if isinstance(value, (list, tuple)) else [value]
    ends = [part.sum().double() for part in parts if _differentiable(part) and part.requires_grad]
    if not ends:
        return (False,) * len(inputs)
    try:
        found = torch.autograd.grad(torch.stack(ends).sum(), inputs, allow_unused=True)
    except RuntimeError:  # a graph that was broken by a change in place
        return (False,) * len(inputs)
    return tuple(gradient is not None for gradient in found)


def attempt_all(answer: Callable[..., Any], cases: Sequence[Case]) -> tuple[Outcome, ...]:
    """The outcome of every case, in order. A blank answer is asked only once."""
    outcomes: list[Outcome] = []
    for case in cases:
        outcomes.append(attempt(answer, case))
        if outcomes[0].status == "blank":
            return tuple(outcomes)
    return tuple(outcomes)


def detached(value: Any) -> Any:
    """The same value with every tensor cut from its graph and on the CPU, and numpy's numbers as Python's."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if type(value).__module__ == "numpy" and isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple) or type(value).__module__ == "torch.return_types":  # such as torch.topk's result
        kind = list if type(value) is list else tuple
        return kind(detached(item) for item in value)
    if type(value) is dict:
        return {key: detached(item) for key, item in value.items()}
    return value
