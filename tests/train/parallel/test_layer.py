"""Experts on 1, 2 and 4 ranks give the outputs and gradients of one process, however the tokens fall."""

from __future__ import annotations

import subprocess
import sys

import parallel_cases
import parallel_jobs
import pytest
import torch
from parallel_jobs import alone, together

from labkit.core.config import MoEConfig
from labkit.nn.oracle import hf_block
from labkit.train.parallel import launch, traffic

RANKS = (1, 2, 4)
TIGHT = {"rtol": 1e-5, "atol": 1e-5}
WIDTH = 256  # two blocks of fp8


def wires(ranks: int) -> list[parallel_jobs.Case]:
    tokens = tuple(range(4, 4 + ranks))
    return [
        parallel_cases.make(f"wire {wire}", tokens, d_model=WIDTH, num_shared_experts=1, options={"wire": wire})
        for wire in ("same", "bfloat16", "fp8")
    ]


def hops(ranks: int) -> list[parallel_jobs.Case]:
    """Two hops over nodes of 1, 2 or all ranks, among them a router that keeps to its groups."""
    grouped = {"num_groups": 4, "top_groups": 1, "top_k": 2, "num_shared_experts": 1}
    return [
        parallel_cases.make(f"hops {near} {number}", tuple(range(ranks, 0, -1)), options={"near": near}, **more)
        for near in sorted({1, min(2, ranks), ranks})
        for number, more in enumerate(({"top_k": 4}, {}, grouped))
    ]


def against_transformers(ranks: int) -> list[parallel_jobs.Case]:
    return [
        parallel_cases.make("olmoe", tuple(range(1, 1 + ranks)), selection_bias=False, norm_topk=False),
        parallel_cases.make(
            "deepseek_v3", (5,) * ranks, score_fn="sigmoid", num_groups=4, top_groups=2, group_score="top2_sum",
            num_shared_experts=1, route_scale=2.5,
        ),
    ]  # fmt: skip


@pytest.fixture(scope="module", params=RANKS)
def found(request):
    """All cases of one number of ranks, in one start: name → (case, the ranks' findings)."""
    ranks = request.param
    cases = [
        *parallel_cases.ugly(ranks),
        *parallel_cases.drawn(ranks, 8),
        *wires(ranks),
        *hops(ranks),
        *against_transformers(ranks),
    ]
    by_rank = launch(parallel_jobs.run_cases, ranks, cases, timeout=120)
    assert len({case.name for case in cases}) == len(cases)
    return {case.name: (case, list(results)) for case, *results in zip(cases, *by_rank, strict=True)}


def close(ours: parallel_jobs.Found, theirs: parallel_jobs.Found, **bounds) -> None:
    torch.testing.assert_close(ours.y, theirs.y, **bounds)
    torch.testing.assert_close(ours.x_grad, theirs.x_grad, **bounds)
    assert ours.grads.keys() == theirs.grads.keys()
    for name, grad in theirs.grads.items():
        torch.testing.assert_close(ours.grads[name], grad, **bounds, msg=lambda text, name=name: f"{name}: {text}")


def test_outputs_and_gradients_are_those_of_one_process(found):
    for name, (case, results) in found.items():
        if case.options.get("wire", "same") == "same":
            try:
                close(together(results), alone(case), **TIGHT)
            except AssertionError as error:
                raise AssertionError(f"case {name!r}: {error}") from None


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_outputs_and_gradients_are_those_of_transformers_own_block(found, family):
    case, results = found[family]
    block, ours = hf_block(family, case.config), case.state
    with torch.no_grad():
        block.gate.weight.copy_(ours["router.weight_ED"])
        block.experts.gate_up_proj.copy_(ours["experts.gate_up_E2FD"])
        block.experts.down_proj.copy_(ours["experts.down_EDF"])
        if family == "deepseek_v3":
            block.gate.e_score_correction_bias.copy_(ours["router.expert_bias_E"])
            gate, up = ours["shared.gate_up_2FD"].chunk(2)
            for linear, weight in (("gate_proj", gate), ("up_proj", up), ("down_proj", ours["shared.down_DF"])):
                getattr(block.shared_experts, linear).weight.copy_(weight)
    x_BSD = torch.cat(case.x_by_rank)[None].requires_grad_()
    y = block(x_BSD)
    y = y[0] if isinstance(y, tuple) else y
    y.backward(torch.cat(case.grad_by_rank).view_as(y))
    grads = {
        "router.weight_ED": block.gate.weight.grad,
        "experts.gate_up_E2FD": block.experts.gate_up_proj.grad, "experts.down_EDF": block.experts.down_proj.grad,
    }  # fmt: skip
    if family == "deepseek_v3":
        shared = block.shared_experts
        grads["shared.gate_up_2FD"] = torch.cat([shared.gate_proj.weight.grad, shared.up_proj.weight.grad])
        grads["shared.down_DF"] = shared.down_proj.weight.grad
    theirs = parallel_jobs.Found(y.detach()[0], x_BSD.grad[0], grads, None)
    close(together(results), theirs, **TIGHT)


@pytest.mark.parametrize(("wire", "step"), [("bfloat16", 2**-8), ("fp8", 2**-4)])
def test_a_narrow_wire_errs_by_its_rounding_and_no_more(found, wire, step):
    """Half a unit in the last place of a value is `step` of it; what a rank keeps goes through the format too."""
    case, results = found[f"wire {wire}"]
    ours, exact = together(results), alone(case)
    pairs = [(ours.y, exact.y), (ours.x_grad, exact.x_grad), *((ours.grads[n], g) for n, g in exact.grads.items())]
    errors = [float((a - b).norm() / b.norm()) for a, b in pairs]
    assert max(errors) < 1.5 * step, errors
    assert max(errors) > step / 16, "the wire was not used"


def test_the_counted_traffic_is_that_of_the_choices(found):
    for case, results in found.values():
        layer = case.whole()
        ids = [layer.router(x).topk_ids_TK for x in case.x_by_rank]
        near = case.options.get("near", 1)
        options = {"wire": case.options.get("wire", "same"), "dtype": case.dtype, "ranks_per_node": near}
        options["by_node"] = "near" in case.options
        expected = traffic(ids, case.config.num_experts, case.config.d_model, **options)
        for one in results:
            assert (one.traffic.rows_RR == expected.rows_RR).all()
            assert (one.traffic.bytes_RR == expected.bytes_RR).all()
            assert (one.traffic.received_R == expected.received_R).all()
        assert expected.tokens_R.tolist() == [len(x) for x in case.x_by_rank]


def test_two_hops_send_a_token_to_each_node_once_however_many_ranks_it_needs_there(found):
    for case, results in found.values():
        near, ranks = case.options.get("near"), len(results)
        if near is None or near == ranks:
            continue
        layer = case.whole()
        network = results[0].traffic.between(results[0].traffic.rows_RR)["network"]
        needed = 0
        for rank, x in enumerate(case.x_by_rank):
            visits = layer.router(x).topk_ids_TK // (case.config.num_experts // (ranks // near))
            needed += sum(len(set(row) - {rank // near}) for row in visits.tolist())
        assert network == needed
        if case.config.num_groups == ranks // near:
            assert network <= case.config.top_groups * sum(len(x) for x in case.x_by_rank)


def test_experts_that_the_ranks_do_not_divide_are_refused():
    from labkit.train.parallel import local_experts

    with pytest.raises(ValueError, match=r"6 experts cannot be split over 4 ranks; take one of \[1, 2, 3, 6\]"):
        local_experts(MoEConfig(d_model=4, d_expert=4, num_experts=6, top_k=1).num_experts, 4)


SPREADS = """
import sys
from labkit.core.config import MoEConfig
from labkit.nn import MoE
from labkit.train.parallel import ParallelMoE
whole = MoE(MoEConfig(d_model=8, d_expert=4, num_experts=4, top_k=2, expert_bias=True))
share = ParallelMoE(whole)
assert all((share.state_dict()[name] == value).all() for name, value in whole.state_dict().items())
assert "torch._dynamo" not in sys.modules, "a share of the experts imports torch's compiler"
"""


def test_a_share_of_the_experts_is_copied_without_torch_s_compiler():
    subprocess.run([sys.executable, "-c", SPREADS], check=True)
