"""On a GPU, a trace is the same record, on the CPU, and metrics of records there are those of records here."""

from __future__ import annotations

import copy
from dataclasses import fields, replace

import pytest
import torch
from tiny_models import batch, build, dense

from labkit.core import metrics
from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.nn import WindowModel, trace

pytestmark = pytest.mark.gpu
MASK = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 2 + [0] * 7])


def window() -> WindowModel:
    torch.manual_seed(0)
    return WindowModel(MoEConfig(d_model=24, d_expert=12, num_experts=6, top_k=2), num_layers=2, d_embed=8).eval()


def on_cpu(r: Routing) -> bool:
    values = (getattr(r, f.name) for f in fields(r))
    return all(v.device.type == "cpu" for v in values if isinstance(v, torch.Tensor))


def agree(here: Routing, there: Routing) -> None:
    assert on_cpu(there)
    torch.testing.assert_close(there.logits_TE, here.logits_TE, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(there.loss_T, here.loss_T, equal_nan=True, atol=1e-4, rtol=1e-4)
    E = here.num_experts
    ours_TE, theirs_TE = (dense(r.topk_ids_TK, r.topk_scores_TK, E) for r in (here, there))
    torch.testing.assert_close(theirs_TE, ours_TE, atol=1e-4, rtol=1e-4)
    assert (here.layer, here.tokens, here.domains) == (there.layer, there.tokens, there.domains)
    assert torch.equal(here.sequence_T, there.sequence_T)


@pytest.mark.parametrize("ablate", [(), (1, 2)], ids=["whole", "ablated"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss"])
def test_float32_as_on_the_cpu(family, ablate):
    model, text = build(family), batch(mask_BS=MASK)
    here = trace(model, text, ablate=ablate)
    there = trace(copy.deepcopy(model).cuda(), text, ablate=ablate)
    for a, b in zip(here, there, strict=True):
        agree(a, b)


@pytest.mark.parametrize("ablate", [(), (1, 2)], ids=["whole", "ablated"])
def test_our_own_model(ablate):
    model, text = window(), batch(mask_BS=MASK)
    here = trace(model, text, ablate=ablate)
    for a, b in zip(here, trace(model.cuda(), text, ablate=ablate), strict=True):
        agree(a, b)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_bfloat16(family):
    model = build(family).bfloat16().cuda()
    random_state = torch.cuda.get_rng_state()
    for r in trace(model, batch(mask_BS=MASK)):
        assert on_cpu(r)
        assert {r.logits_TE.dtype, r.topk_scores_TK.dtype, r.loss_T.dtype} == {torch.float32}
        assert r.logits_TE.isfinite().all()
        assert r.num_tokens == int(MASK.sum())
    for r in trace(model, batch(mask_BS=MASK), ablate=(1, 2)):
        assert r.layer != 1 or int(r.tokens_per_expert_E[2]) == 0
    assert torch.equal(torch.cuda.get_rng_state(), random_state)
    assert all(p.device.type == "cuda" and p.dtype == torch.bfloat16 for p in model.parameters())


def test_ids_that_are_on_the_gpu_already():
    model, text = build("qwen3_moe").cuda(), batch(mask_BS=MASK)
    moved = replace(text, ids_BS=text.ids_BS.cuda(), mask_BS=text.mask_BS.cuda())
    for a, b in zip(trace(model, text), trace(model, moved), strict=True):
        agree(a, b)


def moved(r: Routing) -> Routing:
    values = {f.name: getattr(r, f.name) for f in fields(r)}
    return Routing(**{k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in values.items()})


def test_metrics_of_records_there():
    model, text = build("qwen3_moe"), batch(B=5, S=12)
    here = trace(model, text)[1]
    ablated = trace(model, text, ablate=(1, int(here.tokens_per_expert_E.argmax())))[1]
    there, ablated_there = moved(here), moved(ablated)
    for metric in (
        metrics.choices, metrics.load, metrics.coactivation, metrics.coactivation_lift, metrics.router_confidence,
        metrics.decision_margin, lambda r: metrics.lift_by_domain(r).lift_GE,
    ):  # fmt: skip
        value = metric(there)
        assert value.device.type == "cuda"
        torch.testing.assert_close(value.cpu(), metric(here))
    for metric in (metrics.entropy, metrics.max_violation, lambda r: metrics.global_max_violation([r, r])):
        assert metric(there) == pytest.approx(metric(here))
    assert metrics.saturation(there, ablated_there) == pytest.approx(metrics.saturation(here, ablated))
    assert metrics.saturation(here, ablated_there) == pytest.approx(metrics.saturation(here, ablated))
    for unit in ("sequence", "token"):
        a, b = (metrics.permuted_lift(r, rounds=40, unit=unit) for r in (here, there))
        for name in ("low_GE", "high_GE", "mean_GE", "deviation_GE", "largest_R"):
            torch.testing.assert_close(getattr(b, name).cpu(), getattr(a, name), atol=1e-4, rtol=1e-4)
        found_here, found_there = (
            chance.exceeded_anywhere_by(metrics.lift_by_domain(r)) for chance, r in ((a, here), (b, there))
        )
        assert torch.equal(found_there.cpu(), found_here)
    a, b = metrics.ablation_effect(here, ablated), metrics.ablation_effect(there, ablated_there)
    assert (b.change, b.low, b.high) == pytest.approx((a.change, a.low, a.high))
    torch.testing.assert_close(b.change_G.cpu(), a.change_G)
