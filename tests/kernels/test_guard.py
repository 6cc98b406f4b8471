"""A kernel between guards: right ones come through, and whatever touches memory that is not its own is told."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from labkit.kernels.guard import Instead, NotAKernel, Out, OutOfBounds, launch
from labkit.kernels.language import INTERPRETED, tl, triton

interpreted = pytest.mark.skipif(not INTERPRETED, reason="a kernel on a GPU shows what it wrote, not what it read")


@triton.jit
def shift(x_ptr, out_ptr, n, BEFORE: tl.constexpr, AFTER: tl.constexpr, BLOCK: tl.constexpr):
    """Copies x, and reads `BEFORE` and writes `AFTER` elements too many."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK) - BEFORE
    x = tl.load(x_ptr + at, mask=at < n)
    tl.store(out_ptr + at, x, mask=(at >= 0) & (at < n + AFTER))


@triton.jit
def spoil(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(x_ptr + at, tl.load(x_ptr + at, mask=at < n) + 1, mask=at < n)


@triton.jit
def bump(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.atomic_add(out_ptr + at, 1.0, mask=at <= n)


@triton.jit
def stub(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Nothing yet."""
    raise NotImplementedError()


@triton.jit
def inner(x):
    return x.nothing


@triton.jit
def middle(x):
    return inner(x)


@triton.jit
def outer(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    tl.store(out_ptr, middle(tl.load(x_ptr)))


@triton.jit
def rows(x_ptr, out_ptr, stride, width, MORE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * stride + at, mask=at < width + MORE)
    tl.store(out_ptr + tl.program_id(0) * width + at, x, mask=at < width)


def run(before=0, after=0, n=5):
    constants = {"BEFORE": before, "AFTER": after, "BLOCK": 4}
    return launch(shift, torch.arange(1.0, n + 1), Out((n,)), n, grid=(2,), constants=constants)


def test_a_right_kernel_returns_what_it_filled():
    assert run().tolist() == [1, 2, 3, 4, 5]


def test_what_was_not_written_is_poison():
    out = launch(spoil, torch.zeros(3), Out((3,)), 3, grid=(1,), constants={"BLOCK": 4})
    ids = launch(spoil, torch.zeros(3), Out((3,), "int64"), 3, grid=(1,), constants={"BLOCK": 4})
    assert out.isnan().all()
    assert (ids == ids[0]).all()
    assert ids[0] < 0


@interpreted
def test_reads_before_the_start_are_told():
    with pytest.raises(OutOfBounds, match=r"program 0 reads 2 elements outside x_ptr, from -2 to -1, .* of its \[5\]$"):
        run(before=2)


def test_writes_beyond_the_end_are_told():
    with pytest.raises(OutOfBounds, match=r"writes 3 elements outside out_ptr, from 5 to 7"):
        run(after=3)


@interpreted
def test_atomics_beyond_the_end_are_told():
    with pytest.raises(OutOfBounds, match="writes 1 element outside out_ptr, at 3"):
        launch(bump, torch.zeros(3), Out((3,)), 3, grid=(1,), constants={"BLOCK": 4})


@interpreted
def test_a_kernel_that_goes_far_is_stopped_before():
    with pytest.raises(OutOfBounds, match="program 1 reads far away"):
        launch(rows, torch.zeros(2, 3), Out((2, 3)), 2**40, 3, grid=(2,), constants={"MORE": 0, "BLOCK": 4})


@interpreted
def test_what_lies_between_rows_is_nobodys():
    wide = torch.arange(10.0).view(2, 5)
    x = wide[:, :3]
    ok = launch(rows, x, Out((2, 3)), 5, 3, grid=(2,), constants={"MORE": 0, "BLOCK": 4})
    assert torch.equal(ok, x)
    with pytest.raises(OutOfBounds, match="reads 2 elements outside x_ptr, from 3 to 8"):
        launch(rows, x, Out((2, 3)), 5, 3, grid=(2,), constants={"MORE": 1, "BLOCK": 4})


def test_outputs_can_have_strides_and_formats():
    x = torch.ones(2, 3, dtype=torch.float16)
    out = launch(rows, x, Out((2, 3), "float16"), 3, 3, grid=(2,), constants={"MORE": 0, "BLOCK": 4})
    assert out.dtype == torch.float16
    assert torch.equal(out, x)


def test_a_changed_input_comes_back_changed():
    x = torch.zeros(3)
    launch(spoil, x, Out((3,)), 3, grid=(1,), constants={"BLOCK": 4})
    assert x.tolist() == [1, 1, 1]


def test_stubs_and_plain_functions():
    with pytest.raises(NotImplementedError):
        launch(stub, torch.zeros(3), Out((3,)), 3, grid=(1,), constants={"BLOCK": 4})
    with pytest.raises(NotAKernel, match=r"<lambda> is no Triton kernel; keep the line @triton.jit"):
        launch(lambda *args: args[0], torch.zeros(3), Out((3,)), 3, grid=(1,))
    assert launch(Instead(lambda x, out, n: (out.shape, n)), torch.zeros(3), Out((3,)), 3, grid=(1,)) == ((3,), 3)


def test_an_error_inside_comes_out_as_itself():
    with pytest.raises(Exception, match="BLOCK") as caught:
        launch(spoil, torch.zeros(3), Out((3,)), 3, grid=(1,), constants={})
    assert type(caught.value).__name__ != "InterpreterError"


@interpreted
def test_an_error_comes_out_of_kernels_that_call_kernels():
    with pytest.raises(AttributeError, match="nothing"):
        launch(outer, torch.zeros(3), Out((3,)), 3, grid=(1,), constants={"BLOCK": 4})


def test_cases_of_outputs_can_be_copied_and_sent():
    out = Out((2, 3), "int64", (4, 1))
    assert copy.deepcopy(out) == pickle.loads(pickle.dumps(out)) == out
    assert "int64" in repr(out)
