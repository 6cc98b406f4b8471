"""A model with experts taken out while it runs is the model that never had them."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import FAMILIES, HASHED, K, batch, build, dense, experts, routers
from torch import nn

from labkit.core.config import MoEConfig
from labkit.nn import MoE, WindowModel, trace
from labkit.nn.fixed import HashRouter

MOE = MoEConfig(d_model=24, d_expert=12, num_experts=6, top_k=2)
# grouped families are held apart: deleting an expert would change the groups
PLAIN = [f for f in FAMILIES if f not in ("deepseek_v2", "deepseek_v3")]


def _shrink(module: nn.Module, gone: list[int], num_experts: int) -> None:
    """Delete these experts from every weight of a router, or of its experts, that has one row for each."""
    kept = [e for e in range(num_experts) if e not in gone]
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            axis = next((a for a, size in enumerate(parameter.shape) if size == num_experts), None)
            if axis is not None:
                setattr(part, name, nn.Parameter(parameter.detach().index_select(axis, torch.tensor(kept))))
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.shape[-1:] == (num_experts,):
                setattr(part, name, buffer[..., kept])
        for name in ("num_experts", "n_routed_experts"):
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, len(kept))
        if isinstance(part, nn.Linear) and part.out_features == num_experts:
            part.out_features = len(kept)


def without(model: nn.Module, layers: list[int], gone: dict[int, list[int]], num_experts: int) -> nn.Module:
    """A copy whose layers never had these experts."""
    model = copy.deepcopy(model)
    for layer, router, bank in zip(layers, routers(model), experts(model), strict=True):
        if layer in gone:
            _shrink(router, gone[layer], num_experts)
            _shrink(bank, gone[layer], num_experts)
            for owner in model.modules():  # a selection bias that the block keeps for its router
                bias_E = getattr(owner, "e_score_correction_bias", None)
                if router in owner.children() and isinstance(bias_E, torch.Tensor):
                    owner.e_score_correction_bias = bias_E[[e for e in range(num_experts) if e not in gone[layer]]]
    return model


def _agree(model, small, layers, gone, num_experts, text) -> None:
    """The ablated trace of one is the trace of the other, its experts numbered anew."""
    pairs = [(layer, expert) for layer, some in gone.items() for expert in some]
    whole, ablated, expected = trace(model, text), trace(model, text, ablate=pairs), trace(small, text)
    assert not torch.allclose(whole[0].loss_T[:-1].nan_to_num(), ablated[0].loss_T[:-1].nan_to_num(), atol=1e-6)
    torch.testing.assert_close(ablated[0].loss_T, expected[0].loss_T, equal_nan=True, atol=1e-4, rtol=1e-4)
    for layer, a, e in zip(layers, ablated, expected, strict=True):
        out = gone.get(layer, [])
        kept = [n for n in range(num_experts) if n not in out]
        assert a.tokens_per_expert_E[out].sum() == 0
        assert a.logits_TE[:, out].isneginf().all()
        torch.testing.assert_close(a.logits_TE[:, kept], e.logits_TE, atol=1e-4, rtol=1e-4)
        ours_TE, theirs_TE = (dense(r.topk_ids_TK, r.topk_scores_TK, r.num_experts) for r in (a, e))
        torch.testing.assert_close(ours_TE[:, kept], theirs_TE, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("how_many", [{1: 1}, {1: 2, 2: 1}], ids=["one", "several"])
@pytest.mark.parametrize("family", PLAIN)
def test_the_same_as_a_model_that_never_had_them(family, how_many):
    model, layers = build(family), FAMILIES[family][2]
    busiest = {r.layer: r.tokens_per_expert_E.argsort(descending=True).tolist() for r in trace(model, batch())}
    gone = {layer: busiest[layer][:n] for layer, n in how_many.items() if layer in layers}
    _agree(model, without(model, layers, gone, 8), layers, gone, 8, batch())


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "qwen3_moe", "dots1", "glm4_moe"])
def test_scores_are_renormalised_without_them_only_where_the_family_renormalises(family, norm):
    model, layers = build(family, norm_topk_prob=norm), FAMILIES[family][2]
    _agree(model, without(model, layers, {1: [3]}, 8), layers, {1: [3]}, 8, batch())


OURS = {
    "softmax": {},
    "softmax, not renormalised": {"norm_topk": False},
    "softmax of the chosen": {"score_fn": "topk_softmax"},
    "sigmoid": {"score_fn": "sigmoid"},
    "sigmoid and a selection bias": {"score_fn": "sigmoid", "selection_bias": True, "route_scale": 2.5},
    "sqrtsoftplus, selection and router bias": {
        "score_fn": "sqrtsoftplus",
        "selection_bias": True,
        "router_bias": True,
    },
}


@pytest.mark.parametrize("kind", OURS)
def test_our_model_is_the_one_that_never_had_them(kind):
    torch.manual_seed(0)
    config, gone = MOE.replace(**OURS[kind]), {0: [5], 1: [1, 3]}
    model = WindowModel(config, num_layers=2, window=4, d_embed=8).eval()
    small = WindowModel(config, num_layers=2, window=4, d_embed=8).eval()
    small.load_state_dict(model.state_dict())
    for layer, (one, few) in enumerate(zip(_layers(model), _layers(small), strict=True)):
        kept = [e for e in range(6) if e not in gone[layer]]
        for values in [*one.router.buffers(), *one.router.parameters()]:
            if values.ndim == 1:  # biases start at zero
                values.data.normal_(std=0.3)
        less = MoE(config.replace(num_experts=len(kept)))
        cut = {n: v[kept] if len(v) == 6 else v for n, v in one.state_dict().items()}
        less.load_state_dict(cut)
        few.router, few.experts, few.config = less.router, less.experts, less.config
    _agree(model, small, [0, 1], gone, 6, batch())


def _layers(model: WindowModel) -> list[MoE]:
    return [m for m in model.modules() if isinstance(m, MoE)]


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_before_it_do_not_change(family):
    layers, text = FAMILIES[family][2], batch()
    model, at = build(family), layers[-1]
    for r, a in zip(trace(model, text), trace(model, text, ablate=(at, 5)), strict=True):
        if r.layer < at:
            assert torch.equal(r.logits_TE, a.logits_TE)
            assert torch.equal(r.topk_scores_TK, a.topk_scores_TK)
        else:
            assert torch.equal(r.logits_TE[:, :5], a.logits_TE[:, :5])
            assert int(r.tokens_per_expert_E[5]) > 0 == int(a.tokens_per_expert_E[5])


def grouped(scores_E: list[float], bias_E: list[float], gone: list[int], best: int) -> set[int]:
    """Three experts out of the better of two groups of four, worth the sum of its best, in plain Python."""
    groups = [[e for e in group if e not in gone] for group in ([0, 1, 2, 3], [4, 5, 6, 7])]
    choice_E = [s + b for s, b in zip(scores_E, bias_E, strict=True)]
    worth = [sum(sorted((choice_E[e] for e in group), reverse=True)[:best]) for group in groups]
    group = groups[worth.index(max(worth))]
    return set(sorted(group, key=lambda e: -choice_E[e])[:3])


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
@pytest.mark.parametrize("gone", [0, 6])
def test_a_limit_on_groups_does_not_count_them(family, gone):
    model = build(family, n_group=2, topk_group=1)
    bias_E = [0.0] * 8
    if family == "deepseek_v3":  # so large that the place of a lost expert, with its bias, would decide
        routers(model)[0].e_score_correction_bias[gone] = 1.5
        bias_E = routers(model)[0].e_score_correction_bias.tolist()
    before, after = (trace(model, batch(), ablate=pairs)[0] for pairs in ([], (1, gone)))
    logits_TE = before.logits_TE.index_fill(1, torch.tensor([gone]), float("-inf"))
    scores_TE = logits_TE.softmax(-1) if family == "deepseek_v2" else logits_TE.sigmoid()
    best = 1 if family == "deepseek_v2" else 2
    expected = [grouped(row, bias_E, [gone], best) for row in scores_TE.tolist()]
    assert [set(row) for row in after.topk_ids_TK.tolist()] == expected
    assert any(gone in row for row in before.topk_ids_TK.tolist())


@pytest.mark.parametrize("best", ["max", "top2_sum"])
def test_a_limit_on_groups_does_not_count_them_in_ours(best):
    torch.manual_seed(0)
    config = MoEConfig(
        d_model=24, d_expert=12, num_experts=8, top_k=3, num_groups=2, top_groups=1, group_score=best,
        score_fn="sigmoid", selection_bias=True,
    )  # fmt: skip
    model = WindowModel(config, window=4, d_embed=8)
    bias_E = _layers(model)[0].router.expert_bias_E
    bias_E[5] = 1.5
    before, after = (trace(model, batch(), ablate=pairs)[0] for pairs in ([], (0, 5)))
    expected = [
        grouped(row, bias_E.tolist(), [5], 1 if best == "max" else 2) for row in before.logits_TE.sigmoid().tolist()
    ]
    assert [set(row) for row in after.topk_ids_TK.tolist()] == expected
    assert int(before.tokens_per_expert_E[5]) > 0


def test_a_group_may_lose_one_of_two_experts_or_all():
    model = build("deepseek_v3")  # four groups of two, of which two are in reach
    bias_E = routers(model)[0].e_score_correction_bias
    for gone, worth_of_lost in (([0], None), ([0, 1], float("-inf"))):
        r = trace(model, batch(), ablate=[(1, e) for e in gone])[0]
        choice_TGN = (r.logits_TE.sigmoid() + bias_E).view(-1, 4, 2)
        worth_TG = choice_TGN.sum(-1)
        worth_TG[:, 0] = 2 * choice_TGN[:, 0, 1] if worth_of_lost is None else worth_of_lost
        in_reach_TE = torch.zeros(27, 4).scatter_(1, worth_TG.topk(2).indices, 1).repeat_interleave(2, 1).bool()
        choice_TE = choice_TGN.flatten(1).masked_fill(~in_reach_TE, float("-inf"))
        choice_TE[:, gone] = float("-inf")
        assert torch.equal(r.topk_ids_TK.sort(1).values, choice_TE.topk(K).indices.sort(1).values)
    with pytest.raises(ValueError, match="no other expert in reach"):  # two in reach, three wanted
        trace(model, batch(), ablate=[(1, e) for e in (0, 3, 5, 7)])


@pytest.mark.parametrize(
    ("ablate", "says"),
    [
        ((7, 0), "names layer 7; the sparse layers are 0, 1, 2"),
        ((1, 8), r"names experts \[8\] of layer 1; give numbers from 0 to 7"),
        ((1, -1), r"names experts \[-1\]"),
        ([(1, 0), (2, 9)], r"names experts \[9\] of layer 2"),
        (3, r"ablate is 3; give \(layer, expert\)"),
        ("12", "ablate is '12'"),
        ((1, 2, 3), r"ablate is \(1, 2, 3\)"),
        ([(1, 2), (3,)], "ablate is"),
        ((1.0, 2), "ablate is"),
        ([(1, e) for e in range(8)], "chose expert|no other expert"),
        ([(1, e) for e in range(6)], "no other expert in reach"),
    ],
)
def test_bad_requests(ablate, says):
    with pytest.raises(ValueError, match=says):
        trace(build("qwen3_moe"), batch(), ablate=ablate)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_with_all_experts_chosen_there_is_no_other(family):
    model = build(family, num_experts_per_tok=8, **({"topk_group": 4} if family == "deepseek_v3" else {}))
    with pytest.raises(ValueError, match="no other expert in reach"):
        trace(model, batch(), ablate=(1, 2))


@pytest.mark.parametrize(("family", "layer"), sorted(HASHED))
def test_a_hash_router_does_not_decide_by_its_logits(family, layer):
    model, text = build(family), batch()
    busiest = int(trace(model, text)[layer].tokens_per_expert_E.argmax())
    with pytest.raises(ValueError, match="does not decide by its logits"):
        trace(model, text, ablate=(layer, busiest))


def test_our_hash_router_neither():
    model = WindowModel(MOE, layer=lambda c: MoE(c, router=HashRouter(c, 256)), d_embed=8)
    with pytest.raises(ValueError, match="does not decide by its logits"):
        trace(model, batch(), ablate=(0, 0))


def test_an_empty_request_takes_nothing_out():
    model, text = build("qwen3_moe"), batch()
    for r, a in zip(trace(model, text), trace(model, text, ablate=[]), strict=True):
        assert torch.equal(r.logits_TE, a.logits_TE)


class Stop(Exception):
    pass


@pytest.mark.parametrize("where", ["before", "inside", "after"])
def test_nothing_is_left_behind_when_the_model_breaks(where):
    model, text = build("qwen3_moe"), batch()
    expected, router = trace(model, text), routers(model)[1]

    calls, forward = [], router.forward

    def stop(*given):
        calls.append(where)
        if len(calls) > 1:  # the first call only looks for routers, with nothing taken out
            raise Stop
        return forward(*given) if where == "inside" else None

    if where == "inside":
        router.forward = stop
    else:
        hook = {"before": router.register_forward_pre_hook, "after": router.register_forward_hook}[where](stop)
    with pytest.raises(Stop):
        trace(model, text, ablate=(1, 2))
    if where == "inside":
        del router.forward
    else:
        hook.remove()
    assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(8, 2)).isfinite().all()
    assert torch.ones(1, 8).topk(8).values.isfinite().all()
    for r, e in zip(trace(model, text), expected, strict=True):
        assert torch.equal(r.logits_TE, e.logits_TE)
