"""Lab 10: references against labkit's own kernels and torch's checkpointing, and what its kernel needs elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from labkit.course import labs
from labkit.course.grade import grade
from labkit.course.labs import _10_cases as inputs
from labkit.course.release import answer_id, grade_id, render, solved_notebook
from labkit.kernels import guard, interpreter, reference
from labkit.kernels.attention import attention
from labkit.kernels.language import INTERPRETED

EXERCISES = {exercise.name: exercise for exercise in labs.lab("10").exercises}
PART = {name: exercise.reference for name, exercise in EXERCISES.items()}


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flash(q, k, v, causal, scale=0.25):
    """The reference kernel on one head."""
    (S, d), K = q.shape, len(k)
    constants = {"CAUSAL": causal, "D": d, "BLOCK_S": 16, "BLOCK_K": 16}
    args = (q, k, v, guard.Out((S, d)), S, K, scale)
    return guard.launch(PART["flash_kernel"], *args, grid=(-(-S // 16),), constants=constants)


# ------------------------------------------------------------------------------------------------- what references do


@pytest.mark.parametrize(("S", "causal"), [(1, True), (19, True), (33, False)])
def test_the_flash_kernel_is_labkits_attention(S, causal):
    q, k, v = (normal(S + i, S, 16).to("cpu" if INTERPRETED else "cuda") for i in range(3))
    expected = attention(q[None, None], k[None, None], v[None, None], causal=causal, scale=0.25)[0, 0]
    torch.testing.assert_close(flash(q.cpu(), k.cpu(), v.cpu(), causal), expected.cpu(), rtol=1e-3, atol=1e-4)


def test_the_kernel_is_online_softmax_step_by_step():
    q, k, v = normal(1, 5, 16), normal(2, 40, 16), normal(3, 40, 16)
    state = (torch.full((5,), -torch.inf), torch.zeros(5), torch.zeros(5, 16))
    for first in range(0, 40, 16):
        scores = q @ k[first : first + 16].T * 0.25
        state = PART["absorb"](*state, scores, v[first : first + 16])
    torch.testing.assert_close(flash(q, k, v, False), state[2] / state[1][:, None], rtol=1e-4, atol=1e-5)


def test_swiglu_backward_is_that_of_the_reference_layer():
    x, gate_up, down = normal(1, 6, 4), normal(2, 10, 4), normal(3, 4, 5)
    pre = (x @ gate_up.T).requires_grad_()
    gate, up = pre.chunk(2, dim=-1)
    hidden = torch.nn.functional.silu(gate) * up
    (expected,) = torch.autograd.grad((hidden @ down.T).sum(), pre)
    found, *halves = PART["swiglu_backward"](torch.ones(6, 4) @ down, gate.detach(), up.detach())
    torch.testing.assert_close(torch.cat(halves, dim=-1), expected)
    torch.testing.assert_close(found @ down.T, reference.swiglu(x, gate_up, down))


@pytest.mark.parametrize("segment", [1, 3, 4, 12])
def test_the_peak_counts_what_torchs_checkpointing_keeps(segment):
    """The inputs that wait for the last segment, counted by what a whole forward pass saves."""
    x = normal(1, 8, 4).requires_grad_()

    def layers(y, count):
        for _ in range(count):
            y = y + torch.tanh(y)
        return y

    def chain(x):
        y = x + 0
        for _ in range(12 // segment):
            y = checkpoint(layers, y, segment, use_reentrant=False)
        return y

    waiting = PART["saved_bytes"](chain, x) // x.nbytes
    assert PART["checkpoint_peak"](12, 1, 2, segment) == waiting - 1 + 2 * segment


def test_stochastic_rounding_is_right_on_average():
    x = normal(1, 50) * 3
    noise = torch.arange(65_536, dtype=torch.int32)[:, None].expand(-1, 50)
    mean = PART["stochastic_round"](x.expand(65_536, -1).contiguous(), noise).double().mean(0)
    torch.testing.assert_close(mean, x.double(), rtol=1e-6, atol=0)


@pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")
def test_no_two_programs_touch_the_same_result():
    q, out = normal(1, 37, 16), torch.zeros(37, 16)
    with interpreter.watch({"q": q, "out": out}) as log:
        PART["flash_kernel"][(3,)](q, q, q, out, 37, 37, 0.25, CAUSAL=True, D=16, BLOCK_S=16, BLOCK_K=16)
    written = [access for access in log if access.kind == "store"]
    assert written
    assert interpreter.races(written) == {}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("S", "d", "causal"), [(1000, 64, True), (513, 128, True), (77, 16, False)])
def test_the_flash_kernel_on_a_gpu_in_every_format(S, d, causal, dtype):
    q, k, v = (normal(i, S, d).to("cuda", dtype) for i in range(3))
    out = torch.empty(S, d, device="cuda")
    how = {"CAUSAL": causal, "D": d, "BLOCK_S": 64, "BLOCK_K": 64, "num_stages": 2}
    PART["flash_kernel"][(-(-S // 64),)](q, k, v, out, S, S, d**-0.5, **how)
    wide = (tensor.double()[None, None] for tensor in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(*wide, is_causal=causal)[0, 0].float()
    close = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out, expected, rtol=close, atol=close)


# ---------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize("name", sorted(name for name, exercise in EXERCISES.items() if exercise.oracle))
def test_every_reference_agrees_with_its_oracle_on_seeds_that_no_check_draws(name):
    exercise = EXERCISES[name]
    assert exercise.against_oracle(exercise.reference, seeds=(11, 12)) >= 2


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("saved_bytes", "inputs_counted"),
        ("swiglu_backward", "first_term_missing"),
        ("absorb", "total_not_shrunk"),
        ("flash_kernel", "padding_counts"),
        ("stochastic_round", "rounded_twice"),
    ],
)
def test_the_oracle_notices(name, mistake):
    exercise = EXERCISES[name]
    wrong = next(found.like for found in exercise.mistakes if found.name == mistake)
    with pytest.raises(AssertionError, match="differs from"):
        exercise.against_oracle(wrong)


def test_half_precision_is_among_the_kernels_cases():
    dtypes = {case.args[0].dtype for case in inputs.flash_cases(0)}
    assert dtypes == {torch.float32, torch.float16}


# ------------------------------------------------------------------------------------------------------------- grading


@pytest.mark.sandbox
def test_lab_10_is_graded_in_the_sandbox(tmp_path):
    """A kernel's source must be readable in there; one wrong answer is found among right ones."""
    notebook = solved_notebook("10")
    for cell in notebook.cells:
        if grade_id(cell) == answer_id("10.flash_kernel"):
            cell.source = cell.source.replace("out = out * shrink[:, None] +", "out = out +")
    path = tmp_path / "mine.ipynb"
    path.write_text(render(notebook), "utf-8")
    wrong = {graded.exercise: graded.diagnosis for graded in grade(path).exercises if graded.status != "passed"}
    assert wrong == {"10.flash_kernel": "out_not_shrunk"}
