"""The same on GPUs over NCCL, on one GPU and on two: a job for the layers and one for training on each.

Its processes have a minute to start and a minute to work (kernels are compiled on the way); one that hangs is named.
"""

from __future__ import annotations

import sys
import time

import parallel_cases
import parallel_jobs
import parallel_runs
import pytest
import torch
import torch.distributed as dist
from parallel_jobs import alone, together

from labkit.train.parallel import launch, make_mesh

pytestmark = pytest.mark.gpu
TIMEOUT = 60.0
STEPS = {"bfloat16": 2**-8, "fp8": 2**-4}  # half a unit in the last place of a value, over the value


@pytest.fixture(scope="module", autouse=True)
def _in_time():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["labkit.train.parallel.launch"], "START", TIMEOUT)
        patch.setenv("NCCL_DEBUG", "WARN")
        yield


@pytest.fixture(scope="module", params=(1, 2))
def ranks(request):
    if torch.cuda.device_count() < request.param:
        pytest.skip(f"{request.param} GPUs are wanted, {torch.cuda.device_count()} are there")
    return request.param


@pytest.fixture(scope="module")
def found(ranks):
    """All layers of one number of ranks, in one start: name → (case, what all ranks found together)."""
    wires = [
        parallel_cases.make(f"wire {wire}", (8,) * ranks, d_model=256, num_shared_experts=1, options={"wire": wire})
        for wire in STEPS
    ]
    cases = [*parallel_cases.ugly(ranks), *parallel_cases.drawn(ranks, 4), *wires]
    by_rank = launch(parallel_jobs.run_cases, ranks, cases, "cuda", backend="nccl", timeout=TIMEOUT)
    return {case.name: (case, together(results)) for case, *results in zip(cases, *by_rank, strict=True)}


def test_outputs_and_gradients_are_those_of_one_process(found):
    for name, (case, ours) in found.items():
        if "wire" in case.options:
            continue
        theirs = alone(case)
        pairs = {"outputs": (ours.y, theirs.y), "inputs' gradients": (ours.x_grad, theirs.x_grad)}
        assert ours.grads.keys() == theirs.grads.keys(), name
        pairs |= {key: (ours.grads[key], grad) for key, grad in theirs.grads.items()}
        for what, (mine, wanted) in pairs.items():
            torch.testing.assert_close(
                mine, wanted, rtol=1e-3, atol=1e-4, msg=lambda text, at=f"{name}, {what}": f"{at}: {text}"
            )


@pytest.mark.parametrize("wire", STEPS)
def test_a_narrow_wire_errs_by_its_rounding_and_no_more(found, wire):
    case, ours = found[f"wire {wire}"]
    exact = alone(case)
    assert STEPS[wire] / 16 < float((ours.y - exact.y).norm() / exact.y.norm()) < 1.5 * STEPS[wire]


def test_training_whole_and_in_shards_is_the_training_of_one_process(ranks, tmp_path):
    settings = parallel_runs.config(device="cuda")
    grids = list(dict.fromkeys([(ranks, True), (1, True), (ranks, False)]))
    given = (settings, grids, str(tmp_path), "cuda")
    by_rank = launch(parallel_runs.run_all, ranks, *given, backend="nccl", timeout=TIMEOUT)
    rows, _ = parallel_runs.run_alone(settings, "cuda")
    for grid, (ours, newest) in zip(grids, by_rank[0], strict=True):
        assert newest.name == f"step-{settings.steps:08d}"
        for mine, theirs in zip(ours, rows, strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3), grid
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2), grid


def test_a_rank_that_hangs_on_a_gpu_is_named_in_time():
    def job() -> None:
        mesh = make_mesh()
        if dist.get_rank() == 1:
            time.sleep(600)
        dist.all_reduce(torch.ones((), device=mesh.device_type))
        torch.cuda.synchronize()

    if torch.cuda.device_count() < 2:
        pytest.skip("2 GPUs are wanted")
    with pytest.raises(RuntimeError, match="rank 1 of 2 did not end within 20 s"):
        launch(job, 2, backend="nccl", timeout=20)
