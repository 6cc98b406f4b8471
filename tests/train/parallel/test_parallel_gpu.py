"""The same on GPUs over NCCL, with as many ranks as there are GPUs, at most two."""

from __future__ import annotations

import parallel_cases
import parallel_jobs
import parallel_runs
import pytest
import torch
from parallel_jobs import alone, together

from labkit.train.parallel import launch

pytestmark = pytest.mark.gpu
RANKS = (1, 2)


@pytest.fixture(params=RANKS)
def ranks(request):
    if torch.cuda.device_count() < request.param:
        pytest.skip(f"{request.param} GPUs are wanted, {torch.cuda.device_count()} are there")
    return request.param


def test_outputs_and_gradients_are_those_of_one_process(ranks):
    cases = [*parallel_cases.ugly(ranks), *parallel_cases.drawn(ranks, 6)]
    by_rank = launch(parallel_jobs.run_cases, ranks, cases, "cuda", backend="nccl", timeout=300)
    for case, *results in zip(cases, *by_rank, strict=True):
        ours, theirs = together(results), alone(case)
        torch.testing.assert_close(ours.y, theirs.y, rtol=1e-4, atol=1e-4, msg=lambda text, c=case: f"{c.name}: {text}")
        for name, grad in theirs.grads.items():
            torch.testing.assert_close(
                ours.grads[name], grad, rtol=1e-3, atol=1e-3, msg=lambda text, c=case, n=name: f"{c.name} {n}: {text}"
            )


@pytest.mark.parametrize("wire", ["bfloat16", "fp8"])
def test_a_narrow_wire_errs_by_its_rounding(ranks, wire):
    case = parallel_cases.make("wire", (8,) * ranks, d_model=256, num_shared_experts=1, options={"wire": wire})
    by_rank = launch(parallel_jobs.run_cases, ranks, [case], "cuda", backend="nccl", timeout=300)
    ours, exact = together([results[0] for results in by_rank]), alone(case)
    step = {"bfloat16": 2**-8, "fp8": 2**-4}[wire]
    assert step / 16 < float((ours.y - exact.y).norm() / exact.y.norm()) < 1.5 * step


def test_training_in_shards_is_the_training_of_one_process(ranks, tmp_path):
    settings = parallel_runs.config(device="cuda")
    grids = [(ranks, True), (1, True), (ranks, False)]
    by_rank = launch(parallel_runs.run_all, ranks, settings, grids, str(tmp_path), "cuda", backend="nccl", timeout=300)
    rows, _ = parallel_runs.run_alone(settings, "cuda")
    for ours, _ in by_rank[0]:
        for mine, theirs in zip(ours, rows, strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)
