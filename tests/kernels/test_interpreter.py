"""The interpreter, watched: accesses, bytes and races of kernels that really ran."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labkit.kernels import interpreter
from labkit.kernels.language import INTERPRETED, tl, triton

WIDTH = 4


@triton.jit
def double(x):
    return x * 2


@triton.jit
def scale_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, double(tl.load(x_ptr + at, mask=at < n)), mask=at < n)


@triton.jit
def sum_kernel(x_ptr, out_ptr, n, ATOMIC: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.sum(tl.load(x_ptr + at, mask=at < n, other=0.0), axis=0)
    if ATOMIC:
        tl.atomic_add(out_ptr, part)
    else:
        tl.store(out_ptr, tl.load(out_ptr) + part)


@triton.jit
def halves_kernel(x_ptr, n, BLOCK: tl.constexpr):
    """All the offsets of a constant of this module."""
    tl.store(x_ptr + tl.arange(0, BLOCK), tl.zeros([BLOCK], tl.float32) + WIDTH, mask=tl.arange(0, BLOCK) < n)


def scaled():
    x, out = torch.ones(5), torch.zeros(5)
    with interpreter.watch({"x": x, "out": out}) as log:
        scale_kernel[(2,)](x, out, 5, BLOCK=4)
    print("done")
    found = [(a.program, a.kind, a.buffer, a.offsets.tolist(), a.itemsize) for a in log]
    return out.tolist(), found, interpreter.moved(log)


def summed():
    found = []
    for atomic in (False, True):
        x, out = torch.ones(6), torch.zeros(1)
        with interpreter.watch({"x": x, "out": out}) as log:
            sum_kernel[(3,)](x, out, 6, ATOMIC=atomic, BLOCK=2)
        found.append((out.item(), interpreter.races(log)))
    return found


def gone():
    import os

    os.kill(os.getpid(), 9)


def slow():
    import time

    time.sleep(60)


EXPECTED = [
    ((0, 0, 0), "load", "x", [0, 1, 2, 3], 4),
    ((0, 0, 0), "store", "out", [0, 1, 2, 3], 4),
    ((1, 0, 0), "load", "x", [4], 4),
    ((1, 0, 0), "store", "out", [4], 4),
]


@pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")
def test_every_access_is_noted_and_what_watched_is_gone_afterwards():
    from triton.runtime.interpreter import interpreter_builder

    assert scaled() == ([2.0] * 5, EXPECTED, (20, 20))
    assert not [name for name in vars(interpreter_builder) if name.startswith("create_")]


@pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")
def test_brisk_changes_nothing_but_the_time():
    from triton.runtime import interpreter as theirs

    before = theirs._patch_lang
    with interpreter.brisk():
        assert summed() == summed()
    assert theirs._patch_lang is before
    assert scaled()[0] == [2.0] * 5


@triton.jit
def sums_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    tl.store(out_ptr + at, x + x)
    tl.store(out_ptr + BLOCK + at, x * x)


@pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")
def test_integers_wrap_as_they_do_on_a_gpu_and_nothing_is_computed_twice(monkeypatch):
    from triton.language.semantic import TritonSemantic

    def twice(*given):
        raise AssertionError("computed again in 64 bits")

    monkeypatch.setattr(TritonSemantic, "device_assert", twice)
    x, out = torch.tensor([3, 2**31 - 1], dtype=torch.int32), torch.empty(4, dtype=torch.int32)
    sums_kernel[(1,)](x, out, BLOCK=2)
    assert out.tolist() == [6, -2, 9, 1]


def test_a_function_and_its_kernels_run_elsewhere():
    done = interpreter.run(scaled, scale_kernel)
    assert (done.status, done.printed) == (0, "done\n")
    assert done.value == ([2.0] * 5, EXPECTED, (20, 20))


def test_a_race_is_seen_although_the_result_is_right():
    (plain, races), (atomic, none) = interpreter.run(summed, sum_kernel).value
    assert plain == atomic == 6.0
    assert races == {("out", 0): ((0, 0, 0), (1, 0, 0), (2, 0, 0))}
    assert none == {}


def raises():
    raise KeyError("lost")


def test_a_result_that_is_not_there_says_why():
    assert interpreter.run(constant, halves_kernel).result() == [WIDTH] * 3
    with pytest.raises(RuntimeError, match="status 1; its last words: KeyError: 'lost'"):
        interpreter.run(raises).result()


def constant():
    x = torch.zeros(3)
    halves_kernel[(1,)](x, 3, BLOCK=4)
    return x.tolist()


def test_numbers_of_the_module_travel_too():
    assert interpreter.run(constant, halves_kernel).value == [WIDTH] * 3


def test_a_process_that_dies_or_hangs_is_told():
    died = interpreter.run(gone)
    assert (died.status, died.value) == (-9, None)
    with pytest.raises(RuntimeError, match="ended with status -9; its last words: nothing"):
        died.result()
    with pytest.raises(TimeoutError, match="slow was still running after 1 seconds"):
        interpreter.run(slow, seconds=1)


def test_what_is_a_race_and_what_is_not():
    def touched(*kinds):
        log = [interpreter.Access((i, 0, 0), kind, "x", np.array([7]), 4) for i, kind in enumerate(kinds)]
        return bool(interpreter.races(log))

    assert touched("store", "store")
    assert touched("load", "store")
    assert touched("atomic", "load")
    assert not touched("load", "load")
    assert not touched("atomic", "atomic")
    assert not touched("store")
