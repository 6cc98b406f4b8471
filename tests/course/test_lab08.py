"""Lab 08: references against reference routing, checks between guards, kernels in sandboxes and without Triton."""

from __future__ import annotations

import pickle

import pytest
import torch

from labkit.core import hardware
from labkit.course import labs
from labkit.course.attempt import attempt
from labkit.course.check import describe_case
from labkit.course.grade import grade
from labkit.course.labs import _08_cases as inputs
from labkit.course.release import answer_id, grade_id, render, solved_notebook
from labkit.kernels import guard, interpreter, reference
from labkit.kernels.language import INTERPRETED, tl, triton

EXERCISES = {exercise.name: exercise for exercise in labs.lab("08").exercises}
PART = {name: exercise.reference for name, exercise in EXERCISES.items()}
KERNELS = sorted(name for name in EXERCISES if name.endswith("_kernel"))


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def routed(logits_TE, K, NORM):
    T, E = logits_TE.shape
    outs = (guard.Out((T, K), "int64"), guard.Out((T, K)))
    constants = {"K": K, "NORM": NORM, "BLOCK": triton.next_power_of_2(E)}
    return guard.launch(PART["router_kernel"], logits_TE, *outs, logits_TE.stride(0), E, grid=(T,), constants=constants)


# ------------------------------------------------------------------------------------------------- what references do


@pytest.mark.parametrize(("T", "E", "K"), [(1, 1, 1), (3, 7, 7), (2, 33, 4), (4, 16, 1)])
@pytest.mark.parametrize("norm", [False, True])
def test_the_router_decides_as_labkits_reference_does(T, E, K, norm):
    logits_TE = normal(T + E, T, E)
    logits_TE[:, -1] = logits_TE[:, 0]  # a tie
    ids_TK, weights_TK = routed(logits_TE, K, norm)
    expected_ids, expected = reference.route(logits_TE, top_k=K, norm_topk=norm)
    assert torch.equal(ids_TK, expected_ids)
    torch.testing.assert_close(weights_TK, expected)


def test_a_bound_is_the_roofline_of_labkit():
    for M, K, N, itemsize in ((3, 5, 7, 2), (512, 512, 512, 4), (1, 4096, 64, 1)):
        seconds, intensity, binds = PART["matmul_bound"](M, K, N, itemsize, 3e12, 2e11)
        roof = hardware.roofline(2 * M * K * N, itemsize * (M * K + K * N + M * N), 3e12, 2e11)
        assert (seconds, binds) == (pytest.approx(roof.seconds), roof.bound)
        assert intensity == pytest.approx(roof.intensity)


@pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")
@pytest.mark.parametrize("name", KERNELS)
def test_no_two_programs_of_a_reference_touch_the_same_result(name):
    for case in EXERCISES[name].cases(3):
        outs = [arg for arg in case.args if isinstance(arg, guard.Out)]
        made = [torch.zeros(out.shape, dtype=getattr(torch, out.dtype)) for out in outs]
        left = iter(made)
        args = [next(left) if isinstance(arg, guard.Out) else arg for arg in case.args]
        if any(out.stride for out in outs):
            continue  # these lie apart, and the plain ones here do not
        with interpreter.watch({str(i): tensor for i, tensor in enumerate(made)}) as log:
            PART[name][case.kwargs["grid"]](*args, **case.kwargs["constants"])
        written = [access for access in log if access.buffer]
        assert written
        assert interpreter.races(written) == {}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("T", "E", "K"), [(4096, 64, 8), (1000, 129, 6), (1, 256, 8)])
def test_the_router_on_a_gpu_in_every_format(T, E, K, dtype):
    logits_TE = normal(1, T, E).to("cuda", dtype)
    ids_TK = torch.empty(T, K, dtype=torch.int64, device="cuda")
    weights_TK = torch.empty(T, K, device="cuda")
    how = {"K": K, "NORM": True, "BLOCK": triton.next_power_of_2(E), "num_warps": 1}
    PART["router_kernel"][(T,)](logits_TE, ids_TK, weights_TK, E, E, **how)
    expected_ids, expected = reference.route(logits_TE, top_k=K)
    torch.testing.assert_close(weights_TK, expected)
    same = (ids_TK == expected_ids).all(dim=1)
    ranked = logits_TE.float().softmax(-1).gather(1, ids_TK)
    assert torch.allclose(ranked, logits_TE.float().softmax(-1).gather(1, expected_ids))  # equal but for rounded ties
    assert same.float().mean() > 0.99


# ---------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_every_reference_agrees_with_its_oracle_on_seeds_that_no_check_draws(name):
    exercise = EXERCISES[name]
    assert exercise.against_oracle(exercise.reference, seeds=(11, 12)) >= 8


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("matmul_bound", "no_output"),
        ("add_kernel", "one_apart"),
        ("softmax_kernel", "maximum_of_padding"),
        ("top_k_kernel", "ties_to_the_last"),
        ("router_kernel", "always_renormalised"),
    ],
)
def test_the_oracle_notices(name, mistake):
    exercise = EXERCISES[name]
    wrong = next(found.like for found in exercise.mistakes if found.name == mistake)
    with pytest.raises(AssertionError, match="differs from"):
        exercise.against_oracle(wrong)


@triton.jit
def leaves_half(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = 2 * tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = at < n
    tl.store(out_ptr + at, tl.load(x_ptr + at, mask=keep) + tl.load(y_ptr + at, mask=keep), mask=keep)


@triton.jit
def spoils_x(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(x_ptr + at, mask=at < n) + tl.load(y_ptr + at, mask=at < n)
    tl.store(x_ptr + at, total, mask=at < n)
    tl.store(out_ptr + at, total, mask=at < n)


@triton.jit
def stub(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Nothing yet."""
    raise NotImplementedError()


@triton.jit
def breaks(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    tl.store(out_ptr, tl.nothing_of_this_name(x_ptr))


def test_kernels_that_no_mistake_is_like():
    exercise = EXERCISES["add_kernel"]
    assert exercise.test(leaves_half).diagnosis == "not_all_written"
    assert exercise.test(spoils_x).diagnosis == "changes_input"
    assert exercise.test(stub).status == "blank"
    broken = exercise.test(breaks)
    assert broken.diagnosis == "raises"
    assert "nothing_of_this_name" in broken.says


def test_a_card_names_the_inputs_as_the_kernel_does():
    exercise = EXERCISES["top_k_kernel"]
    shown = describe_case(exercise.cases(0)[0], exercise.reference)
    for part in ("x_ptr=[[1.0, 4.0, 3.0, 2.0]]", "ids_ptr=an empty int64 tensor [1, 2]", "stride=4", "'K': 2"):
        assert part in shown


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_cases_cross_the_wall_of_the_sandbox(name):
    """Inside there is no `labkit.course.labs`, so nothing that travels may come from there."""
    cases = EXERCISES[name].inputs((0, 1))
    packed = pickle.dumps(cases)
    assert b"course.labs" not in packed
    for case in pickle.loads(packed):
        assert attempt(EXERCISES[name].reference, case).status == "value"


def test_rows_that_lie_apart_still_do_when_copied():
    case = inputs.softmax_cases(0)[6]
    assert pickle.loads(pickle.dumps(case)).args[0].stride() == case.args[0].stride() == (7, 1)


# ------------------------------------------------------------------------------------------------------------- grading


@pytest.mark.sandbox
def test_kernels_are_graded_in_the_sandbox(tmp_path):
    """A cell's source must be readable in there, and one kernel that would end the process must not."""
    notebook = solved_notebook("08")
    far = """\
@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK).to(tl.int64) * 100_000_000_000
    tl.store(out_ptr + at, tl.load(x_ptr + at))
"""
    for cell in notebook.cells:
        if grade_id(cell) == answer_id("08.add_kernel"):
            cell.source = far
    path = tmp_path / "mine.ipynb"
    path.write_text(render(notebook), "utf-8")
    report = grade(path)
    wrong = {graded.exercise: graded.diagnosis for graded in report.exercises if graded.status != "passed"}
    assert wrong == {"08.add_kernel": "far_away"}
