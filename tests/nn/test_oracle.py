"""Our routers and layers against transformers' own, on tiny seeded configurations."""

import pytest
import torch

from labkit.core.config import MoEConfig
from labkit.nn import oracle
from labkit.nn.router import Router

BASE = MoEConfig(d_model=16, d_expert=8, num_experts=8, top_k=3)
V3 = BASE.replace(
    score_fn="sigmoid", selection_bias=True, num_groups=4, top_groups=2, group_score="top2_sum", route_scale=2.5
)
V2 = BASE.replace(norm_topk=False, route_scale=1.7)
ROUTERS = {
    "mixtral": ("mixtral", BASE),
    "olmoe": ("olmoe", BASE.replace(norm_topk=False)),
    "olmoe, normed": ("olmoe", BASE),
    "qwen3": ("qwen3_moe", BASE),
    "qwen3, not normed": ("qwen3_moe", BASE.replace(norm_topk=False)),
    "qwen3, K=1": ("qwen3_moe", BASE.replace(norm_topk=False, top_k=1)),
    "v2": ("deepseek_v2", V2),
    "v2, groups": ("deepseek_v2", V2.replace(num_groups=4, top_groups=2, num_shared_experts=1)),
    "v3": ("deepseek_v3", V3),
    "v3, no groups": ("deepseek_v3", V3.replace(num_groups=1, top_groups=1)),
    "v3, no bias, not normed": ("deepseek_v3", V3.replace(selection_bias=False, norm_topk=False)),
    "gpt-oss": ("gpt_oss", BASE.replace(score_fn="topk_softmax", router_bias=True)),
}


def load(router, theirs):
    with torch.no_grad():
        router.weight_ED.copy_(theirs.weight)
        if router.bias_E is not None:
            router.bias_E.copy_(theirs.bias)
        if router.expert_bias_E is not None:
            router.expert_bias_E.copy_(theirs.e_score_correction_bias)
    return router


def tokens(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("T", [1, 257])
def test_router_equals_transformers(name, T):
    family, config = ROUTERS[name]
    theirs, call = oracle.hf_router(family, config, seed=3)
    ours, x = load(Router(config), theirs)(tokens(T, 16)), tokens(T, 16)
    ids, scores, full = call(x)
    order = ids.argsort(dim=1)
    mine = ours.topk_ids_TK.argsort(dim=1)
    assert torch.equal(ours.topk_ids_TK.gather(1, mine), ids.gather(1, order))
    torch.testing.assert_close(
        ours.topk_scores_TK.gather(1, mine), scores.gather(1, order), rtol=1e-6, atol=0, check_dtype=False
    )
    dense = torch.zeros(T, 8).scatter(1, ours.topk_ids_TK, ours.topk_scores_TK.detach())
    torch.testing.assert_close(dense, full.detach(), rtol=1e-6, atol=0)
    if family in ("mixtral", "olmoe", "qwen3_moe", "gpt_oss"):  # the DeepSeek routers do not sort
        assert torch.equal(ours.topk_ids_TK, ids)


@pytest.mark.parametrize("name", ["mixtral", "v2, groups", "v3", "gpt-oss"])
def test_router_gradient_equals_transformers(name):
    family, config = ROUTERS[name]
    theirs, call = oracle.hf_router(family, config, seed=3)
    ours, x, pull = load(Router(config), theirs), tokens(33, 16), tokens(33, 8)
    r = ours(x)
    (torch.zeros(33, 8).scatter(1, r.topk_ids_TK, r.topk_scores_TK) * pull).sum().backward()
    (call(x)[2] * pull).sum().backward()
    torch.testing.assert_close(ours.weight_ED.grad, theirs.weight.grad, rtol=1e-5, atol=1e-6)


def test_the_bias_of_the_oracle_matters():
    theirs, call = oracle.hf_router("deepseek_v3", V3.replace(num_groups=1, top_groups=1), seed=3)
    ours = load(Router(V3.replace(num_groups=1, top_groups=1)), theirs)
    ours.expert_bias_E.zero_()
    assert not torch.equal(ours(tokens(257, 16)).topk_ids_TK.sort(1).values, call(tokens(257, 16))[0].sort(1).values)


def test_bfloat16_scores_come_back_rounded_from_some_families():
    """The one-precision trap: OLMoE's softmax runs in float32 and its result is cast back, ours stays in float32."""
    x, w = tokens(64, 16).bfloat16(), tokens(8, 16, seed=1).bfloat16()
    _, theirs, _ = oracle.hf_route("olmoe", BASE, x, w)
    router = Router(BASE).bfloat16()
    with torch.no_grad():
        router.weight_ED.copy_(w)
    assert theirs.dtype == torch.bfloat16
    assert router(x).topk_scores_TK.dtype == torch.float32


def test_hf_route_takes_weights_and_bias():
    x, w, b = tokens(20, 16), tokens(8, 16, seed=1), tokens(8, seed=2)
    router = Router(V3)
    with torch.no_grad():
        router.weight_ED.copy_(w)
        router.expert_bias_E.copy_(b)
    _, _, full = oracle.hf_route("deepseek_v3", V3, x, w, b)
    r = router(x)
    dense = torch.zeros(20, 8).scatter(1, r.topk_ids_TK, r.topk_scores_TK.detach())
    torch.testing.assert_close(dense, full, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: oracle.hf_router("switch", BASE), "choose one of"),
        (lambda: oracle.hf_router("mixtral", BASE.replace(norm_topk=False)), "norm_topk"),
        (lambda: oracle.hf_block("deepseek_v3", BASE), "score_fn"),
        (lambda: oracle.hf_route("olmoe", BASE, tokens(2, 16), tokens(8, 16), tokens(8)), "no bias"),
        (lambda: oracle.hf_experts("gpt_oss", BASE, *[None] * 5), "another layout"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
