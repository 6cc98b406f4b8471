"""On a GPU: the CPU's divergences, in bfloat16 too, no second wide pair of logits, and nothing that waits."""

from __future__ import annotations

import dataclasses

import pytest
import small_runs
import torch

from labkit.nn import trace
from labkit.nn.merge import grouped, merge, merge_behind_routers
from labkit.train import loop
from labkit.train.distill import (
    CachedTeacher,
    Distillation,
    DistillConfig,
    OnPolicy,
    SparseLogits,
    distill,
    divergences,
    sparse_divergences,
    write_cache,
)  # fmt: skip

pytestmark = pytest.mark.gpu


def logits(T=300, V=1001, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    return (3 * torch.randn(2, T, V, generator=draw)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_values_and_gradients_are_those_of_the_cpu(beta, dtype):
    student, teacher = logits(dtype=dtype)
    kept = SparseLogits.of(teacher, 20, temperature=2.0)  # once: of equal logits any may be the twentieth
    found = []
    for device in ("cpu", "cuda"):
        z, t = student.detach().to(device).requires_grad_(), teacher.to(device)
        moved = dataclasses.replace(
            kept, **{name: getattr(kept, name).to(device) for name in ("ids_BSK", "logp_BSK", "tail_BS")}
        )
        dense = divergences(z, t, beta=beta, temperature=2.0)
        sparse = sparse_divergences(z, moved, beta=beta)
        (dense.sum() + sparse.sum()).backward()
        found.append((dense.cpu(), sparse.cpu(), z.grad.cpu()))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, atol=1e-2 if here.dtype == torch.bfloat16 else 1e-4, rtol=1e-2)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_beside_the_logits_only_the_gradient_and_a_slice_are_held(beta):
    T, V = 16_384, 8192
    student = torch.randn(T, V, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    teacher = torch.randn(T, V, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    divergences(student, teacher, beta=beta).sum().backward()
    gradient = T * V * 2
    assert torch.cuda.max_memory_allocated() - before < gradient + 12 * 4 * 2**23 + 2**24


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("kind", ["text", "cached"])
def test_nothing_waits_for_the_device_between_log_steps(kind, tmp_path):
    def watch(step):
        if step.step == 3:
            torch.cuda.set_sync_debug_mode("error")
        if step.step == 8:
            torch.cuda.set_sync_debug_mode("default")

    teacher, source = small_runs.model(9).cuda(), small_runs.Source()
    if kind == "cached":
        cache = write_cache(tmp_path / "c", teacher, source, sequences=64, sequence=24, k=8)
        teacher, source = None, CachedTeacher(cache)
    settings = small_runs.config(device="auto", steps=9, log_every=9)
    try:
        rows = loop.train(small_runs.model(), source, settings, on_step=watch,
                          objective=Distillation(DistillConfig(), teacher)).rows  # fmt: skip
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [row["step"] for row in rows] == [9]


@pytest.mark.parametrize("own", [False, True])
def test_a_distillation_runs_with_its_baseline(own):
    student = small_runs.model().cuda()
    text = small_runs.Source()
    source = OnPolicy(student, text, prompt=6) if own else text
    result = distill(student, small_runs.model(9), source, small_runs.config(device="auto", steps=4))
    assert result.student.stopped == result.baseline.stopped == "finished"
    assert result.baseline.step > 4


def test_merging_on_the_device_is_merging_on_the_cpu():
    model = small_runs.model(num_dense_layers=0)
    ids = small_runs.Source().next(8, 24).ids_BS
    groups = grouped(model, trace(model, ids), 2, alike="weights")
    there = small_runs.model(num_dense_layers=0).cuda()
    for way in (merge, merge_behind_routers):
        ours = way(there, grouped(there, trace(there, ids), 2, alike="weights"))(ids.cuda()).logits.cpu()
        torch.testing.assert_close(ours, way(model, groups)(ids).logits, atol=1e-3, rtol=1e-3)
