"""The best plan fits and beats the others; larger clusters lose more, and the sweep says to what."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from labkit.core.cluster import Plan, cluster
from labkit.core.cluster_published import DENSE
from labkit.core.cluster_search import best_plan, breaks_first, sweep, sweep_table
from labkit.core.cluster_train import train
from labkit.core.presets import preset

DOC = Path(__file__).parents[2] / "docs" / "scale_out.md"
LLAMA, MIXTRAL = DENSE["llama-3.1-405b"], preset("mixtral-8x7b")


@pytest.fixture(scope="module")
def rows():
    return sweep(preset("deepseek-v3").replace(num_mtp_layers=1), "h800", (2048, 10_000, 100_000), batch=15_360,
                 precision="fp8")  # fmt: skip


def test_the_best_plan_fits_and_beats_plans_by_hand():
    machine = cluster("h100", 8)
    best = best_plan(MIXTRAL, machine, batch=256)
    assert best.fit
    assert best.plan.gpus <= 64
    for plan in (Plan(dp=16, pp=4, ep=8, batch=256, chunks=8), Plan(dp=8, tp=8, ep=8, batch=256, recompute="full")):
        assert best.tokens_per_second >= train(MIXTRAL, machine, plan).tokens_per_second


def test_llamas_published_plan_is_found():
    p = best_plan(LLAMA, cluster("h100", 2048), batch=2048, context=8192).plan
    assert (p.dp, p.tp, p.pp) == (128, 8, 16)  # arXiv 2407.21783, table 4


def test_memory_decides_what_is_tried():
    assert best_plan(MIXTRAL, cluster("h200", 2), batch=64).plan.gpus == 16
    with pytest.raises(ValueError, match="no plan of deepseek-v3 fits 8 × H100-80GB: the leanest one tried takes"):
        best_plan(preset("deepseek-v3"), cluster("h100", 1), batch=64)


def test_every_gpu_adds_less(rows):
    assert [r.gpus for r in rows] == [2048, 10_000, 100_000]
    each = [r.tokens_per_gpu for r in rows]
    assert each == sorted(each, reverse=True)
    assert all(a.tokens_per_second < b.tokens_per_second for a, b in pairwise(rows))
    assert all(r.estimate.fit and r.estimate.plan.gpus <= r.gpus for r in rows)
    assert rows[0].days(14.8e12) == pytest.approx(14.8e12 / rows[0].tokens_per_second / 86_400)


def test_losses_and_work_are_the_whole_time(rows):
    for r in rows:
        work = r.tokens_per_gpu / (r.estimate.plan.tokens / r.estimate.seconds.compute / r.estimate.plan.gpus)
        assert sum(r.losses.values()) + work == pytest.approx(1.0)
    assert rows[-1].binds == "failures" == breaks_first(rows)


def test_the_sweep_in_the_docs_is_made_by_this_code(rows):
    assert sweep_table(rows) in DOC.read_text("utf-8")


def test_small_batches_leave_large_clusters_idle():
    small = sweep(MIXTRAL, "h100", (64, 8192), batch=8)
    assert breaks_first(small) == "idle"
    assert small[1].estimate.plan.gpus < 8192


@pytest.mark.parametrize(
    "call",
    [
        lambda: sweep(MIXTRAL, "h100", (), batch=8), lambda: sweep(MIXTRAL, "h100", (12,), batch=8),
        lambda: sweep(MIXTRAL, "h100", (64, 32), batch=8), lambda: breaks_first([]),
        lambda: best_plan(MIXTRAL, cluster("h100", 8), batch=0),
        lambda: best_plan("mixtral", cluster("h100", 8), batch=8),
    ],
)  # fmt: skip
def test_bad_input(call):
    with pytest.raises(ValueError):
        call()
