"""Lab 04's references, put together, are DeepSeek-V3's sparse block; cut experts compute what the whole ones did."""

from __future__ import annotations

import pytest
import torch

from labkit.core import metrics
from labkit.core.config import MoEConfig
from labkit.core.cost import moe_flops
from labkit.core.routing import Routing
from labkit.course import labs
from labkit.kernels import reference
from labkit.nn import MoE
from labkit.nn.oracle import hf_block, hf_experts

EXERCISES = {exercise.name: exercise for exercise in labs.lab("04").exercises}
PART = {name: exercise.reference for name, exercise in EXERCISES.items()}
V3 = MoEConfig(
    d_model=16, d_expert=6, num_experts=16, top_k=4, num_shared_experts=2, score_fn="sigmoid", selection_bias=True,
    route_scale=2.5, num_groups=4, top_groups=2, group_score="top2_sum",
)  # fmt: skip


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decide(x_TD, router_ED, bias_E, moe):
    scores_TE = (x_TD @ router_ED.T).sigmoid()
    groups = (moe.num_groups, moe.top_groups, moe.group_score)
    ids, weights = PART["group_limited_top_k"](scores_TE, bias_E, moe.top_k, *groups)
    if moe.norm_topk:
        weights = weights / (weights.sum(1, keepdim=True) + 1e-20)
    return ids, moe.route_scale * weights


# --------------------------------------------------------------------------------------------- the assembled block


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_shared_experts": 1},
        {"norm_topk": False},
        {"num_groups": 1, "top_groups": 1},
        {"num_groups": 8, "top_groups": 3, "top_k": 6},
        {"top_groups": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("T", [1, 65])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_assembled_block_is_transformers_deepseek_v3(fields, T, seed):
    moe, x_TD = V3.replace(**fields), normal(seed, T, 16)
    block = hf_block("deepseek_v3", moe, seed=seed)
    with torch.no_grad():
        block.gate.e_score_correction_bias.abs_().mul_(3)  # biases that move choices and leave scores positive
        ids, weights = decide(x_TD, block.gate.weight, block.gate.e_score_correction_bias, moe)
        wide = block.shared_experts
        shared = (torch.cat([wide.gate_proj.weight, wide.up_proj.weight])[None], wide.down_proj.weight[None])
        experts = (block.experts.gate_up_proj, block.experts.down_proj)
        ours_TD = PART["shared_expert"](x_TD, ids, weights, *experts, *shared)
        theirs_TD = block(x_TD[None])[0]
    torch.testing.assert_close(ours_TD, theirs_TD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [0.3, -3.0])
def test_the_assembled_block_is_our_layer_with_biases_of_any_sign(bias):
    torch.manual_seed(0)
    layer, x_TD = MoE(V3), normal(2, 33, 16)
    layer.router.expert_bias_E.copy_(bias + 0.2 * normal(3, 16))
    ids, weights = decide(x_TD, layer.router.weight_ED, layer.router.expert_bias_E, V3)
    gate, up = layer.shared.gate_up_2FD.chunk(2)
    shared_up = torch.cat([gate.view(2, 6, 16), up.view(2, 6, 16)], dim=1)
    shared_down = layer.shared.down_DF.view(16, 2, 6).transpose(0, 1)
    experts = (layer.experts.gate_up_E2FD, layer.experts.down_EDF)
    ours_TD = PART["shared_expert"](x_TD, ids, weights, *experts, shared_up, shared_down)
    torch.testing.assert_close(ours_TD, layer(x_TD), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------- the group limit


@pytest.mark.parametrize("group_score", ["max", "top2_sum"])
@pytest.mark.parametrize("shift", [0.5, -2.0])
def test_no_token_leaves_its_groups_and_the_choice_is_the_specifications(group_score, shift):
    scores_TE, bias_E = normal(4, 200, 24).sigmoid(), shift + 0.3 * normal(5, 24)
    ids, _ = PART["group_limited_top_k"](scores_TE, bias_E, 5, 6, 2, group_score)
    assert all(len(set(row)) <= 2 for row in (ids // 4).tolist())
    how = {"num_groups": 6, "top_groups": 2, "group_score": group_score}
    assert torch.equal(ids, reference.select(scores_TE, 5, bias_E=bias_E, **how))


def test_a_bias_that_is_the_same_for_all_moves_nothing():
    scores_TE = normal(6, 100, 16).sigmoid()
    free, _ = PART["group_limited_top_k"](scores_TE, torch.zeros(16), 4, 4, 2)
    shifted, _ = PART["group_limited_top_k"](scores_TE, torch.full((16,), -4.0), 4, 4, 2)
    assert torch.equal(free.sort(1).values, shifted.sort(1).values)


# --------------------------------------------------------------------------------------------------- split experts


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("how", [{}, {"norm_topk": False}, {"score_fn": "sigmoid"}], ids=str)
def test_cut_experts_compute_what_the_whole_ones_did(m, how):
    x_TD, layer = normal(0, 50, 12), (normal(1, 5, 12), normal(2, 5, 16, 12), normal(3, 5, 12, 8))
    finer = PART["split_experts"](*layer, m)
    outputs = []
    for (router, gate_up, down), k in ((layer, 2), (finer, 2 * m)):
        ids, weights = reference.route(x_TD @ router.T, top_k=k, **how)
        outputs.append(hf_experts("olmoe", config_of(down, k), x_TD, ids, weights, gate_up, down))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def config_of(down_EDF, k):
    E, D, F = down_EDF.shape
    return MoEConfig(d_model=D, d_expert=F, num_experts=E, top_k=k)


@pytest.mark.parametrize("m", [2, 4])
def test_cut_experts_cost_the_same_but_for_the_router(m):
    layer = (normal(1, 5, 12), normal(2, 5, 16, 12), normal(3, 5, 12, 8))
    finer = PART["split_experts"](*layer, m)
    assert [t.numel() for t in finer] == [m * layer[0].numel(), layer[1].numel(), layer[2].numel()]
    coarse, fine = moe_flops(config_of(layer[2], 2), 10), moe_flops(config_of(finer[2], 2 * m), 10)
    assert (fine.routed_experts, fine.router) == (coarse.routed_experts, m * coarse.router)


# ------------------------------------------------------------------------------------------------ lift and ablation


def test_lift_is_the_metric_of_the_widgets():
    ids = normal(8, 300, 10).topk(3).indices
    domain_T = torch.arange(300) % 7 % 3
    names = tuple("abc"[d] for d in domain_T.tolist())
    record = Routing.of(torch.zeros(300, 10), ids, torch.ones(300, 3), domains=names)
    torch.testing.assert_close(PART["lift"](ids, domain_T, 10, 3), metrics.lift_by_domain(record).lift_GE)


def test_nothing_removed_is_nothing_lost():
    loss_T = normal(9, 20).square()
    loss_T[::4] = float("nan")
    assert PART["ablation"](loss_T, loss_T, torch.arange(20) % 2, 2).tolist() == [0.0, 0.0]


# ------------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_every_reference_agrees_with_its_oracle_on_seeds_that_no_check_draws(name):
    exercise = EXERCISES[name]
    if exercise.oracle is not None:
        assert exercise.against_oracle(exercise.reference, seeds=(11, 12, 13)) >= 8


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("shared_expert", "weighted"),
        ("group_limited_top_k", "groups_without_bias"),
        ("group_limited_top_k", "always_max"),
        ("group_limited_top_k", "always_top2"),
        ("lift", "over_uniform"),
        ("ablation", "nan_is_zero"),
    ],
)
def test_the_oracle_notices(name, mistake):
    exercise = EXERCISES[name]
    wrong = next(found.like for found in exercise.mistakes if found.name == mistake)
    with pytest.raises(AssertionError, match="differs from"):
        exercise.against_oracle(wrong)


def naive_reshapes(router_ED, gate_up_E2FD, down_EDF, m):
    E, D, _ = down_EDF.shape
    router = router_ED.repeat_interleave(m, 0)
    return router, gate_up_E2FD.reshape(m * E, -1, D), down_EDF.reshape(m * E, D, -1)


def tiled_and_unscaled(router_ED, gate_up_E2FD, down_EDF, m):
    _, gate_up, down = PART["split_experts"](router_ED, gate_up_E2FD, down_EDF, m)
    return router_ED.repeat(m, 1), gate_up, down / m


def gate_alone_scaled(router_ED, gate_up_E2FD, down_EDF, m):
    router, gate_up, down = PART["split_experts"](router_ED, gate_up_E2FD, down_EDF, m)
    gate, up = gate_up.chunk(2, dim=1)
    return router, torch.cat([m * gate, up], dim=1), down / m


def factor_in_the_router(router_ED, gate_up_E2FD, down_EDF, m):
    router, gate_up, down = PART["split_experts"](router_ED, gate_up_E2FD, down_EDF, m)
    return m * router, gate_up, down / m


def gate_up_strided_alone(router_ED, gate_up_E2FD, down_EDF, m):
    router, gate_up, down = PART["split_experts"](router_ED, gate_up_E2FD, down_EDF, m)
    E, _, D = gate_up_E2FD.shape
    strided = gate_up_E2FD.reshape(E, 2, -1, m, D).permute(0, 3, 1, 2, 4).reshape(gate_up.shape)
    return router, strided, down / m


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (naive_reshapes, "all_reshaped"),
        (tiled_and_unscaled, "router_tiled"),
        (gate_alone_scaled, "scaled_before_the_gate"),
        (factor_in_the_router, "router_scaled"),
        (gate_up_strided_alone, "strided"),
    ],
)
def test_two_mistakes_at_once_are_named_by_one_that_is_there(answer, named):
    assert EXERCISES["split_experts"].test(answer).diagnosis == named


def test_values_that_are_right_are_never_said_to_be_multiplied():
    def cut(*args):
        return PART["shared_expert"](args[0], args[1], args[2].detach(), *args[3:])

    assert EXERCISES["shared_expert"].test(cut).diagnosis == "cuts_graph"


def test_a_lift_in_powers_of_two_is_a_logarithm():
    assert EXERCISES["lift"].test(lambda *args: PART["lift"](*args).log2()).diagnosis == "logarithm"


def test_no_case_of_this_lab_is_dropped_for_another_that_asks_for_gradients():
    for exercise in EXERCISES.values():
        for seed in (0, 1):
            cases = exercise.inputs((seed,))
            assert [c.label for c in cases] == [c.label for c in exercise.cases(seed)]
