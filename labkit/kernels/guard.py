"""A kernel run between guards: poison around every tensor, and a word for every access beyond its end.

Neither the interpreter nor a GPU says when a kernel reads or writes beyond a tensor: the allocator mostly has
something there, and the result is often right. Here each tensor lies in a buffer of its own, with NaN before, after and
between its rows. Interpreted kernels are checked access by access, and stopped before one goes far; kernels on a GPU
can be checked for what they wrote. compute-sanitizer does more, and needs no guard.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.kernels.interpreter import Access, brisk, watch

ZONE = 1 << 16  # elements of poison on either side of a tensor, where nothing stops a kernel; a sixteenth where we do
POISON_INT = -7_777_777


class OutOfBounds(RuntimeError):
    """A kernel touched memory that is not its own; the message says which program, which tensor and where."""


class NotAKernel(TypeError):
    """What was to be launched is a plain function; the message says what is missing."""


@dataclass(frozen=True)
class Out:
    """A tensor that a kernel has to fill: its shape, and its dtype by name; its strides where rows shall be apart."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    stride: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        apart = "" if self.stride is None else f", strides {self.stride}"
        return f"an empty {self.dtype} tensor {list(self.shape)}{apart}"


@dataclass(frozen=True)
class Instead:
    """A plain function that answers where a kernel is asked for: it gets the same arguments and returns the outputs."""

    call: Callable[..., Any]


def launch(kernel: Any, *args: Any, grid: tuple[int, ...], constants: Mapping[str, Any] | None = None) -> Any:
    """Run a Triton kernel on guarded copies of its arguments; an `Out` among them is made, filled and returned.

    Args:
        kernel: made by `triton.jit`; an `Instead` is called with the arguments as they are.
        args: in the kernel's order; tensors, `Out`s and numbers.
        grid: how many programs in each direction.
        constants: the kernel's constexpr arguments by name.

    Returns the outputs, one tensor or a tuple of them. What a kernel does to its inputs is done to `args`, too.
    Raises OutOfBounds, NotAKernel, what the kernel raises, and NotImplementedError for one that is not written yet.
    """
    constants = dict(constants or {})
    if isinstance(kernel, Instead):
        return kernel.call(*args, **constants)
    function = _function(kernel)
    from labkit.kernels.language import INTERPRETED

    device, zone = ("cpu", ZONE // 16) if INTERPRETED else ("cuda", ZONE)
    names = function.__code__.co_varnames
    made = [_guarded(arg, device, zone) if isinstance(arg, (Tensor, Out)) else None for arg in args]
    buffers = {names[i]: buffer for i, buffer in enumerate(made) if buffer is not None}
    given = [arg if buffer is None else buffer.tensor for arg, buffer in zip(args, made, strict=True)]
    touched = _Touched(buffers, zone)
    try:
        if INTERPRETED:
            _interpret(kernel, grid, given, constants, touched)
        else:
            kernel[grid](*given, **constants)
            touched.look()
    except Exception as error:  # the interpreter wraps what a kernel raises
        while type(error).__name__ == "InterpreterError" and error.__cause__:  # once for every kernel that it calls
            error = error.__cause__
        raise error from None
    if said := touched.words():
        raise OutOfBounds(said)
    for arg, buffer in zip(args, made, strict=True):
        if isinstance(arg, Tensor):
            arg.copy_(buffer.tensor)
    outputs = tuple(b.tensor.cpu() for arg, b in zip(args, made, strict=True) if isinstance(arg, Out))
    return outputs[0] if len(outputs) == 1 else outputs


def _interpret(kernel: Any, grid: Any, given: Sequence[Any], constants: Mapping[str, Any], touched: _Touched) -> None:
    """Run it access by access. What NumPy says of infinities and NaN is left out: a GPU says nothing."""
    tensors = {name: guarded.tensor for name, guarded in touched.buffers.items()}
    with watch(tensors, touched, near=touched.zone), brisk(), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        kernel[grid](*given, **constants)


def _function(kernel: Any) -> Callable[..., Any]:
    """The Python function of a kernel; NotImplementedError for a stub."""
    function = getattr(kernel, "fn", kernel)
    if "NotImplementedError" in getattr(getattr(function, "__code__", None), "co_names", ()):
        raise NotImplementedError
    if function is kernel or not hasattr(kernel, "__getitem__"):
        name = getattr(kernel, "__name__", type(kernel).__name__)
        raise NotAKernel(f"{name} is no Triton kernel; keep the line @triton.jit above its def")
    return function


@dataclass(frozen=True, eq=False)
class Guarded:
    """A tensor inside a larger buffer of poison; `own` is true where the buffer is the tensor's."""

    tensor: Tensor
    buffer: Tensor
    own: Tensor


def _guarded(like: Tensor | Out, device: str, zone: int) -> Guarded:
    dtype = like.dtype if isinstance(like, Tensor) else getattr(torch, like.dtype)
    shape = tuple(like.shape)
    stride = like.stride() if isinstance(like, Tensor) else like.stride or torch.empty(shape, device="meta").stride()
    span = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if 0 not in shape else 0
    poison = float("nan") if dtype.is_floating_point else (POISON_INT if dtype != torch.bool else True)
    buffer = torch.full((span + 2 * zone,), poison, dtype=dtype, device=device)
    own = torch.zeros(span + 2 * zone, dtype=torch.bool)
    own.as_strided(shape, stride, zone).fill_(True)
    tensor = buffer.as_strided(shape, stride, zone)
    if isinstance(like, Tensor):
        tensor.copy_(like)
    return Guarded(tensor, buffer, own)


@dataclass
class _Touched:
    """Collects what lies outside a tensor and was touched all the same; raises at once for what is far away."""

    buffers: Mapping[str, Guarded]
    zone: int
    found: dict[tuple[str, str], tuple[str, set[int]]] = field(default_factory=dict)

    def __call__(self, access: Access) -> None:
        verb, who = "reads" if access.kind == "load" else "writes", f"program {access.program[0]}"
        if access.buffer not in self.buffers:
            raise OutOfBounds(f"{who} {verb} far away from every tensor it was given")
        guarded = self.buffers[access.buffer]
        at = access.offsets + self.zone
        if at.min() < 0 or at.max() >= len(guarded.own):
            raise OutOfBounds(f"{who} {verb} {access.buffer} far beyond its end")
        strange = access.offsets[~guarded.own.numpy()[at]]
        if strange.size:
            self._add(verb, access.buffer, strange.tolist(), who)

    def look(self) -> None:
        """Look at the poison itself: all that can be said of a kernel that ran on a GPU."""
        for name, guarded in self.buffers.items():
            poisoned = guarded.buffer.isnan() if guarded.buffer.is_floating_point() else guarded.buffer == POISON_INT
            changed = ~poisoned.cpu() & ~guarded.own
            if guarded.buffer.dtype != torch.bool and changed.any():
                self._add("writes", name, (changed.nonzero().flatten() - self.zone).tolist(), "a program")

    def words(self) -> str:
        """What was found, one part for each tensor and direction; empty if nothing was."""
        parts = []
        for (verb, name), (who, places) in self.found.items():
            count, first, last = len(places), min(places), max(places)
            many = "1 element" if count == 1 else f"{count} elements"
            where = f"at {first}" if count == 1 else f"from {first} to {last}"
            shape = list(self.buffers[name].tensor.shape)
            parts.append(f"{who} {verb} {many} outside {name}, {where}, counted from the start of its {shape}")
        return "; ".join(parts)

    def _add(self, verb: str, name: str, offsets: Sequence[int], who: str) -> None:
        self.found.setdefault((verb, name), (who, set()))[1].update(offsets)
