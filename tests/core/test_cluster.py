"""The cluster's cost model: what must always hold, hand counts, and published figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.cluster import KINDS, RATES, Cluster, Plan, cluster
from labkit.core.cluster_failures import FAILURES_PER_GPU_HOUR, checkpoint_bytes, daly, reliability
from labkit.core.cluster_links import all_to_all, gather_seconds, nodes_visited
from labkit.core.cluster_memory import kept_values, local_params, training_memory_per_gpu
from labkit.core.cluster_published import DENSE, chunk_table, plans, serving, table, training
from labkit.core.cluster_serve import ServePlan, decode, prefill
from labkit.core.cluster_train import train, training_flops
from labkit.core.cost import model_params
from labkit.core.presets import preset

DOC = Path(__file__).parents[2] / "docs" / "scale_out.md"
V3, MIXTRAL, OLMOE = preset("deepseek-v3"), preset("mixtral-8x7b"), preset("olmoe-1b-7b")
IDEAL = replace(RATES, matmul=1.0, grouped=1.0, attention=1e9, memory=1e9, nvlink=1e9, network=1e9, busy=0.0)


def test_the_table_in_the_docs_is_made_by_this_code():
    assert table() in DOC.read_text("utf-8")
    assert chunk_table() in DOC.read_text("utf-8")


def test_published_figures_are_met_within_a_fifth_or_the_row_says_why():
    rows = (*training(), *serving())
    assert all(r.note for r in rows if not r.hit)
    assert sum(r.hit for r in rows) >= 15
    hits = {r.what.split(",")[0] for r in rows if r.hit}
    assert {"DeepSeek-V3", "Mixtral 8x7B", "Llama 3.1 405B"} <= hits


@pytest.mark.parametrize("name", [n for n in plans() if n != "gpt-oss-120b"])
def test_published_plans_fit_the_memory(name):
    assert plans()[name].fit


def test_dense_controls_have_their_published_sizes():
    sizes = [model_params(m).total / 1e9 for m in DENSE.values()]
    assert sizes == pytest.approx([8.03, 70.6, 405.9], rel=0.005)


def test_an_ideal_machine_does_model_flops_at_its_peak():
    e = train(DENSE["llama-3.1-8b"], cluster("h100", 1), Plan(dp=8, batch=8, context=2), IDEAL)
    assert e.mfu == pytest.approx(1.0, rel=0.01)
    assert e.seconds.total == pytest.approx(e.plan.tokens * e.flops / 8 / 989.4e12, rel=0.01)


def test_six_flops_a_parameter_when_attention_is_short():
    m = DENSE["llama-3.1-70b"]
    used = model_params(m).total - m.vocab_size * m.d_model  # the embedding is a lookup
    assert training_flops(m, 2) == pytest.approx(6 * used, rel=0.001)


def test_a_multi_token_module_costs_a_layer_and_a_head():
    more = training_flops(V3.replace(num_mtp_layers=1), 4096) / training_flops(V3, 4096)
    assert 1 + 1 / 61 < more < 1 + 4 / 61


@st.composite
def runs(draw):
    model = draw(st.sampled_from([V3, MIXTRAL, OLMOE]))
    pp, tp, dp = (draw(st.sampled_from([1, 2, 4, 8])) for _ in range(3))
    ep = draw(st.sampled_from([e for e in (1, 2, 4, 8) if (dp * tp) % e == 0]))
    plan = Plan(
        dp=dp, tp=tp, pp=pp, ep=ep, batch=dp * draw(st.integers(1, 16)), context=draw(st.sampled_from([512, 4096])),
        precision=draw(st.sampled_from(["bf16", "fp8"])), schedule=draw(st.sampled_from(["1f1b", "zero_bubble"])),
        recompute=draw(st.sampled_from(["none", "selective", "full"])), zero=draw(st.sampled_from([1, 2, 3])),
        overlap=tuple(draw(st.sets(st.sampled_from(["tp", "ep", "dp"])))),
    )  # fmt: skip
    return model, plan


@settings(max_examples=60)
@given(runs())
def test_training_always(run):
    model, plan = run
    machine = cluster("h100", 64)
    e = train(model, machine, plan)
    assert 0 < e.mfu < 1
    assert all(value >= 0 for value in e.seconds.parts().values())
    assert e.seconds.compute <= e.seconds.total
    assert e.gpu_hours_per_trillion * 3600 * e.tokens_per_gpu == pytest.approx(1e12)
    slow = replace(machine, network=machine.network / 4)
    assert train(model, slow, plan).seconds.total >= e.seconds.total * (1 - 1e-9)
    hidden = train(model, machine, plan.replace(overlap=("tp", "dp")))
    assert train(model, machine, plan.replace(overlap=())).seconds.total >= hidden.seconds.total * (1 - 1e-9)
    light = training_memory_per_gpu(model, plan.replace(recompute="full"))
    assert light.total <= training_memory_per_gpu(model, plan.replace(recompute="none")).total


def test_shards_of_a_model_are_the_whole_model():
    plan = Plan(dp=8, tp=2, pp=4, ep=8, batch=8)
    local = local_params(MIXTRAL, plan)
    assert local.experts * 8 * 4 + local.rest * 2 * 4 == pytest.approx(model_params(MIXTRAL).total)
    memory = training_memory_per_gpu(MIXTRAL, Plan(batch=1))
    assert memory.weights + memory.gradients + memory.optimizer == pytest.approx(18 * model_params(MIXTRAL).total)


def test_more_recomputation_keeps_less():
    kept = [kept_values(V3, r, copies=True) for r in ("none", "selective", "full")]
    assert kept == sorted(kept, reverse=True)
    assert kept[2] == 61 * 7168


@pytest.mark.parametrize(
    ("plan", "bubble"),
    [
        (Plan(pp=4, batch=12), 3 / 12), (Plan(pp=4, batch=12, chunks=3), 1 / 12),
        (Plan(pp=4, batch=12, schedule="zero_bubble"), 1 / 12), (Plan(pp=8, batch=12, schedule="dualpipe"), 2 / 12),
        (Plan(dp=4, batch=4), 0),
    ],
)  # fmt: skip
def test_bubbles(plan, bubble):
    assert plan.bubble == pytest.approx(bubble)


def test_a_ring_moves_all_but_its_own_share():
    machine = Cluster(cluster("h100", 1).gpu, nodes=4, nvlink=100e9, network=10e9)
    plain = replace(RATES, nvlink=1.0, network=1.0)
    assert gather_seconds(machine, 8e9, 8, rates=plain) == pytest.approx(7 / 8 * 8e9 / 100e9)
    assert gather_seconds(machine, 8e9, 32, rates=plain) == pytest.approx(31 / 32 * 8e9 / 80e9)
    assert gather_seconds(machine, 8e9, 4, stride=8, rates=plain) == pytest.approx(3 / 4 * 8e9 / 10e9)
    assert gather_seconds(machine, 8e9, 1) == 0


def test_a_limit_on_nodes_saves_network():
    moe, machine = V3.moe, cluster("h800", 8)
    free = all_to_all(machine, moe, 64, fp8=True)
    limited = all_to_all(machine, moe, 64, fp8=True, limit=4)
    apart = all_to_all(machine, moe, 64, fp8=True, once=False)
    assert limited.network < free.network < apart.network
    assert all_to_all(machine, moe, 8, fp8=True).network == 0
    assert all_to_all(machine, moe, 1, fp8=True).seconds == 0
    assert nodes_visited(moe, 1) == 1
    assert nodes_visited(moe, 8, 4) == 4
    assert limited.network == pytest.approx(3.5 * 7168 * (1 + 4 / 128 + 2) / 45e9)


def test_dispatch_in_fp8_sends_three_bytes_of_four():
    machine = cluster("h800", 8)
    small, large = (all_to_all(machine, V3.moe, 64, fp8=fp8).network for fp8 in (True, False))
    assert small / large == pytest.approx(3 / 4, rel=0.02)


@settings(max_examples=40)
@given(st.sampled_from([8, 16, 32, 64]), st.integers(1, 512), st.sampled_from([512, 4096]), st.booleans())
def test_serving_always(ep, batch, context, overlap):
    machine = cluster("h200", 8)
    plan = ServePlan(ep=ep, batch=batch, context=context, overlap=overlap, precision="fp8")
    e = decode(V3, machine, plan)
    assert all(value >= 0 for value in e.seconds.parts().values())
    assert e.tokens_per_gpu == pytest.approx(batch * e.tokens_per_request)
    longer = decode(V3, machine, plan.replace(context=2 * context)).seconds
    assert longer.attention > e.seconds.attention
    assert longer.total >= e.seconds.total * (1 - 1e-9)
    assert decode(V3, machine, plan.replace(batch=batch + 1)).memory.total > e.memory.total
    assert prefill(V3, machine, plan.replace(batch=4096)).tokens_per_gpu > e.tokens_per_gpu


def test_decode_of_one_request_reads_every_weight_it_visits():
    e = decode(OLMOE, cluster("h200", 1), ServePlan(batch=1, context=1))
    read = 2 * (model_params(OLMOE).active - OLMOE.vocab_size * OLMOE.d_model)
    assert e.seconds.products + e.seconds.experts == pytest.approx(read / (4.8e12 * RATES.memory), rel=0.1)


def test_memory_binds_where_it_does_not_fit():
    assert decode(MIXTRAL, cluster("h100", 1), ServePlan(batch=1)).binds == "memory"
    assert train(MIXTRAL, cluster("h100", 1), Plan(dp=8, batch=8)).binds == "memory"


def test_failures_of_llamas_cluster():
    r = reliability(16_384, 405e9 * 14)
    assert r.between == pytest.approx(54 * 86_400 / 419)
    assert 0.9 < r.effective < 0.95  # "higher than 90% effective training time"
    assert r.effective == pytest.approx(1 - r.checkpointing - r.lost - r.restarting)
    assert pytest.approx(1.97e-5, rel=0.01) == FAILURES_PER_GPU_HOUR
    assert reliability(100_000, 405e9 * 14).effective < r.effective


def test_no_other_interval_loses_less():
    r = reliability(4096, 1e13, restart=0)
    for factor in (0.7, 0.9, 1.1, 1.4):
        assert replace(r, interval=factor * r.interval).effective <= r.effective + 1e-5
    assert daly(10.0, 4.0) == 4.0


def test_a_checkpoint_holds_weights_and_optimizer():
    assert checkpoint_bytes(OLMOE) == 14 * model_params(OLMOE).total


@pytest.mark.parametrize(
    "call",
    [
        lambda: cluster("h900", 1), lambda: cluster("h100", 0), lambda: Cluster(KINDS["h100"][0], 1, nvlink=0),
        lambda: Cluster(KINDS["h100"][0], 1, price=-1), lambda: Plan(dp=0), lambda: Plan(dp=2, batch=3),
        lambda: Plan(ep=2), lambda: Plan(precision="fp4"), lambda: Plan(schedule="gpipe"), lambda: Plan(zero=4),
        lambda: Plan(recompute="some"), lambda: Plan(overlap=("pp",)), lambda: Plan.from_dict({"dpp": 2}),
        lambda: train(OLMOE, cluster("h100", 1), Plan(dp=16, batch=16)),
        lambda: train(OLMOE, cluster("h100", 8), Plan(pp=32, batch=32)),
        lambda: train(OLMOE, cluster("h100", 8), Plan(dp=3, ep=3, batch=3)),
        lambda: train(OLMOE, cluster("h100", 8), Plan(tp=32, batch=1)),
        lambda: train("olmoe", cluster("h100", 8), Plan()), lambda: ServePlan(batch=0), lambda: ServePlan(slots=-1),
        lambda: ServePlan(precision="int4"), lambda: decode(OLMOE, cluster("h100", 1), ServePlan(ep=16)),
        lambda: reliability(0, 1e12), lambda: reliability(8, 0), lambda: reliability(8, 1e12, restart=-1),
    ],
)  # fmt: skip
def test_bad_input(call):
    with pytest.raises(ValueError):
        call()
