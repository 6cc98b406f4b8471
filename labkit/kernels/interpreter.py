"""Triton's interpreter, watched: which program touches which memory, and what it would have done on a GPU.

The interpreter runs a kernel in NumPy on real addresses, one program after another, and checks none of them. `watch`
notes every address before it is touched, so a picture, a count of bytes, a race between programs or an access beyond
the end of a tensor can be had from the kernel that really ran. `run` starts the interpreter in a process of its own:
for machines whose GPU has made the choice otherwise, and for kernels that may not come back.
"""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

PRELUDE = """\
import torch

from labkit.kernels import guard, interpreter
from labkit.kernels.language import tl, triton

inf, nan = float("inf"), float("nan")
"""


@dataclass(frozen=True, eq=False)
class Access:
    """One load or store of one program.

    Args:
        program: its three program ids.
        kind: "load", "store" or "atomic".
        buffer: the name of the tensor that the first lane falls into or near to, "" if none is near.
        offsets: of the lanes whose mask is true, in elements from that tensor's first; addresses where none is near.
        itemsize: bytes of an element.
    """

    program: tuple[int, int, int]
    kind: Literal["load", "store", "atomic"]
    buffer: str
    offsets: np.ndarray
    itemsize: int


@contextmanager
def watch(
    buffers: Mapping[str, Tensor], before: Callable[[Access], None] | None = None, near: int = 0
) -> Iterator[list[Access]]:
    """Inside the block, every access of an interpreted kernel is noted in the list that it gives, in order.

    Args:
        buffers: the tensors that may be touched, by name.
        before: called with each access before it happens; what it raises stops the kernel.
        near: how many bytes before and after a tensor still count as its own.

    Kernels that run on a GPU leave nothing here.
    """
    from triton.runtime.interpreter import interpreter_builder as builder

    places = [(name, *_extent(tensor), tensor.element_size()) for name, tensor in buffers.items() if tensor.numel()]
    log: list[Access] = []

    def note(kind: Any, pointers: Any, mask: Any) -> None:
        lanes = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64).ravel()
        if lanes.size == 0:
            return
        itemsize = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        name, offsets = "", lanes
        for known, start, end, size in places:
            if start - near <= lanes[0] < end + near:
                name, offsets = known, (lanes - start) // size
                break
        log.append(Access(tuple(builder.grid_idx), kind, name, offsets, itemsize))
        if before is not None:
            before(log[-1])

    def load(pointers: Any, mask: Any, *rest: Any) -> Any:
        note("load", pointers, mask)
        return type(builder).create_masked_load(builder, pointers, mask, *rest)

    def store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note("store", pointers, mask)
        return type(builder).create_masked_store(builder, pointers, value, mask, *rest)

    def atomic(operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note("atomic", pointers, mask)
        return type(builder).create_atomic_rmw(builder, operation, pointers, value, mask, *rest)

    hooks = {"create_masked_load": load, "create_masked_store": store, "create_atomic_rmw": atomic}
    earlier = {name: vars(builder)[name] for name in hooks if name in vars(builder)}
    vars(builder).update(hooks)
    try:
        yield log
    finally:
        for name in hooks:
            del vars(builder)[name]
        vars(builder).update(earlier)


@contextmanager
def brisk() -> Iterator[None]:
    """Inside the block, kernels are interpreted faster: Triton's language is prepared once for each function.

    Otherwise every call of `tl.max`, `tl.sum` and others of Triton's own functions prepares it again.
    """
    from triton.runtime import interpreter as theirs

    prepare, ready = theirs._patch_lang, set()

    def once(function: Any) -> Any:
        module = function.__module__
        if module in ready:
            return theirs._LangPatchScope()  # nothing to restore
        if module.startswith("triton."):
            ready.add(module)
        return prepare(function)

    theirs._patch_lang = once
    try:
        yield
    finally:
        theirs._patch_lang = prepare


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First address and the one after the last, of the elements a tensor spans."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def moved(log: Sequence[Access]) -> tuple[int, int]:
    """Bytes that were read and bytes that were written, every access counted as often as it was made.

    >>> moved([Access((0, 0, 0), "load", "x", np.arange(4), 2), Access((0, 0, 0), "store", "y", np.arange(3), 4)])
    (8, 12)
    """
    bytes_of = {"load": 0, "store": 0, "atomic": 0}
    for access in log:
        bytes_of[access.kind] += access.offsets.size * access.itemsize
    return bytes_of["load"] + bytes_of["atomic"], bytes_of["store"] + bytes_of["atomic"]


def races(log: Sequence[Access]) -> dict[tuple[str, int], tuple[tuple[int, int, int], ...]]:
    """The elements that one program writes and another reads or writes: there the result depends on who comes first.

    Returns the programs, by buffer and offset. Atomics against atomics are no race.

    >>> races([Access((i, 0, 0), "store", "y", np.array([0, i + 1]), 4) for i in range(2)])
    {('y', 0): ((0, 0, 0), (1, 0, 0))}
    """
    touched: dict[tuple[str, int], dict[tuple[int, int, int], set[str]]] = {}
    for access in log:
        for offset in set(access.offsets.tolist()):
            programs = touched.setdefault((access.buffer, offset), {})
            programs.setdefault(access.program, set()).add(access.kind)
    found = {}
    for place, programs in touched.items():
        kinds = set().union(*programs.values())
        if len(programs) > 1 and ("store" in kinds or {"atomic", "load"} <= kinds):
            found[place] = tuple(sorted(programs))
    return found


@dataclass(frozen=True)
class Finished:
    """How a function ended in a process of its own: exit status (negative: the signal), what it printed and returned.

    Args:
        status: 0 if all went well.
        printed: standard output; errors: standard error.
        value: what the function returned, None if it did not get that far.
    """

    status: int
    printed: str
    errors: str
    value: Any = None

    def result(self) -> Any:
        """The value. Raises RuntimeError, with what the process said last, if it did not end well."""
        if self.status:
            last = (self.errors.strip().splitlines() or ["nothing"])[-1]
            raise RuntimeError(f"the process ended with status {self.status}; its last words: {last}")
        return self.value


def run(function: Callable[[], Any], *kernels: Any, seconds: float = 60) -> Finished:
    """Call a function without arguments in a fresh process, in which its kernels are interpreted.

    Their sources travel, not their values: `function` may use `torch`, `triton`, `tl`, `guard`, `interpreter`, the
    `kernels`, and what those call of their own module (jitted functions and plain numbers). The value it returns comes
    back pickled.

    Raises TimeoutError when it takes longer than so many seconds.
    """
    parts = [PRELUDE, *_sources(kernels), inspect.getsource(function)]
    with tempfile.TemporaryDirectory(prefix="labkit-") as folder:
        script, result = Path(folder, "script.py"), Path(folder, "result.pickle")
        last = f"import pickle\nvalue = {function.__name__}()\nopen({str(result)!r}, 'wb').write(pickle.dumps(value))\n"
        script.write_text("\n\n".join([*parts, last]), "utf-8")
        room = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([room, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
        try:
            done = subprocess.run(
                [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=seconds,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            raise TimeoutError(f"{function.__name__} was still running after {seconds:g} seconds") from late
        value = pickle.loads(result.read_bytes()) if result.is_file() else None
    return Finished(done.returncode, done.stdout, done.stderr, value)


def _sources(kernels: Sequence[Any]) -> list[str]:
    """The sources of kernels and of what they call, each once, callees first."""
    found: dict[str, str] = {}

    def add(kernel: Any) -> None:
        function = kernel.fn
        if function.__name__ in found:
            return
        for name in (*function.__code__.co_names, *function.__annotations__):
            value = function.__globals__.get(name)
            if hasattr(value, "fn") and not function.__globals__.get("__name__", "").startswith("triton"):
                add(value)
            elif type(value) in (bool, int, float, str):
                found[name] = f"{name} = {value!r}"
        found[function.__name__] = inspect.cleandoc("\n" + inspect.getsource(function))

    for kernel in kernels:
        add(kernel)
    return list(found.values())
