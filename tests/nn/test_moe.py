"""Experts and the whole layer: shapes, gradients, what is added, and equality with transformers' blocks."""

import pytest
import torch

from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.kernels import dispatch
from labkit.nn import Experts, MoE, SwiGLU, oracle

CONFIG = MoEConfig(d_model=16, d_expert=8, num_experts=6, top_k=2)
V3 = CONFIG.replace(
    num_experts=8, top_k=3, num_shared_experts=2, score_fn="sigmoid", selection_bias=True, num_groups=4,
    top_groups=2, group_score="top2_sum", route_scale=2.5,
)  # fmt: skip
BLOCKS = {
    "mixtral": ("mixtral", CONFIG),
    "olmoe": ("olmoe", CONFIG.replace(norm_topk=False)),
    "qwen3": ("qwen3_moe", CONFIG),
    "qwen3, not normed": ("qwen3_moe", CONFIG.replace(norm_topk=False)),
    "v2": ("deepseek_v2", CONFIG.replace(norm_topk=False, num_shared_experts=1, num_groups=3, top_groups=2)),
    "v3": ("deepseek_v3", V3),
}


def tokens(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pairs(ours, theirs):
    """Our parameters beside transformers', the shared gate and up as one."""
    yield ours.router.weight_ED, [theirs.gate.weight]
    yield ours.experts.gate_up_E2FD, [theirs.experts.gate_up_proj]
    yield ours.experts.down_EDF, [theirs.experts.down_proj]
    if ours.shared is not None:
        yield ours.shared.gate_up_2FD, [theirs.shared_experts.gate_proj.weight, theirs.shared_experts.up_proj.weight]
        yield ours.shared.down_DF, [theirs.shared_experts.down_proj.weight]


@pytest.mark.parametrize("implementation", ["auto", "loop", "onehot", "sorted"])
@pytest.mark.parametrize("name", BLOCKS)
def test_layer_and_gradients_equal_transformers(name, implementation):
    family, config = BLOCKS[name]
    theirs, ours = oracle.hf_block(family, config, seed=5), MoE(config, implementation)
    with torch.no_grad():
        for mine, parts in pairs(ours, theirs):
            mine.copy_(torch.cat(parts))
        if config.selection_bias:
            ours.router.expert_bias_E.copy_(theirs.gate.e_score_correction_bias)
    x, pull = tokens(3, 11, 16).requires_grad_(), tokens(3, 11, 16, seed=8)
    z = x.detach().clone().requires_grad_()
    want, got = theirs(x), ours(z)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    (want * pull).sum().backward()
    (got * pull).sum().backward()
    torch.testing.assert_close(z.grad, x.grad, rtol=1e-4, atol=1e-5)
    for mine, parts in pairs(ours, theirs):
        torch.testing.assert_close(mine.grad, torch.cat([p.grad for p in parts]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe", "deepseek_v2"])
def test_hf_experts_equal_ours(family):
    config = CONFIG.replace(norm_topk=family != "deepseek_v2")
    layer, x = MoE(config), tokens(19, 16)
    _, r = layer(x, return_routing=True)
    e = layer.experts
    want = oracle.hf_experts(family, config, x, r.topk_ids_TK, r.topk_scores_TK, e.gate_up_E2FD, e.down_EDF)
    torch.testing.assert_close(e(x, r), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lead", [(), (0,), (1,), (7,), (2, 3), (2, 0, 4)])
def test_any_leading_shape_comes_back(lead):
    layer = MoE(CONFIG.replace(num_shared_experts=1))
    y, routing = layer(tokens(*lead, 16), return_routing=True, layer=4)
    assert y.shape == (*lead, 16)
    assert (routing.num_tokens, routing.layer) == (torch.Size(lead).numel(), 4)


def test_shared_experts_are_a_sum_of_separate_ones():
    wide, x = SwiGLU(16, 12), tokens(5, 16)
    parts = []
    for i in range(3):
        narrow, rows = SwiGLU(16, 4), slice(4 * i, 4 * i + 4)
        with torch.no_grad():
            gate, up = wide.gate_up_2FD.chunk(2)
            narrow.gate_up_2FD.copy_(torch.cat([gate[rows], up[rows]]))
            narrow.down_DF.copy_(wide.down_DF[:, rows])
        parts.append(narrow(x))
    torch.testing.assert_close(wide(x), sum(parts))


def test_the_shared_part_is_added_unweighted():
    layer, x = MoE(CONFIG.replace(num_shared_experts=2, route_scale=3.0)), tokens(5, 16)
    y, routing = layer(x, return_routing=True)
    torch.testing.assert_close(y, layer.experts(x, routing) + layer.shared(x))
    assert MoE(CONFIG).shared is None


def test_every_parameter_learns():
    layer = MoE(V3)
    layer(tokens(200, 16)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_the_named_and_the_forced_implementation_reach_the_layer():
    x = tokens(5, 16).double()
    with pytest.raises(ValueError, match="grouped_mm cannot"):
        MoE(CONFIG, "grouped_mm").double()(x)
    layer = MoE(CONFIG, "sorted").double()
    with dispatch.force("onehot"):
        forced = layer(x)
    torch.testing.assert_close(forced, layer(x))
    with pytest.raises(ValueError, match="grouped_mm cannot"), dispatch.force("grouped_mm"):
        layer(x)


PAIRS = (torch.tensor([[0], [2]]), torch.ones(2, 1))


@pytest.mark.parametrize("implementation", sorted(set(dispatch.names()) - {"triton"}))  # interpreted: no bfloat16
def test_autocast_keeps_the_experts_dtype(implementation):
    layer, x = MoE(CONFIG, implementation), tokens(5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, routing = layer(x, return_routing=True)
    assert (y.dtype, routing.logits_TE.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(y, layer(x), rtol=0.1, atol=0.1)


def test_bfloat16_layer_keeps_its_dtype_and_decides_in_float32():
    y, routing = MoE(CONFIG).bfloat16()(tokens(5, 16).bfloat16(), return_routing=True)
    assert y.dtype == torch.bfloat16
    assert routing.topk_scores_TK.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Experts(CONFIG.replace(expert_bias=True), "onehot")(tokens(2, 16), PAIRS), "neither biases"),
        (lambda: Experts(CONFIG, "magic"), "choose 'auto'"),
        (lambda: MoE(CONFIG, "magic"), "choose 'auto'"),
        (lambda: SwiGLU(0, 4), "1 or more"),
        (lambda: MoE(CONFIG)(tokens(2, 15)), "d_model = 16"),
        (lambda: Experts(CONFIG)(tokens(2, 15), (torch.zeros(2, 1).long(), torch.ones(2, 1))), "gate_up_E2FD"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_another_router_decides_and_is_handed_the_ids():
    seen = {}

    class Always(torch.nn.Module):
        def forward(self, x, *, layer=None, generator=None, ids=None):
            seen.update(layer=layer, ids=ids)
            T = x.shape[:-1].numel()
            chosen = torch.tensor([[3, 1]]).expand(T, 2)
            return Routing.of(torch.zeros(T, 6), chosen, torch.full((T, 2), 0.5), layer=layer)

    layer, ids = MoE(CONFIG, router=Always()), torch.arange(6).view(2, 3)
    _, routing = layer(tokens(2, 3, 16), return_routing=True, layer=4, ids=ids)
    assert routing.tokens_per_expert_E.tolist() == [0, 6, 0, 6, 0, 0]
    assert seen == {"layer": 4, "ids": ids}
    assert routing.layer == 4


def test_ids_do_not_move_a_learned_router():
    layer, x = MoE(CONFIG), tokens(2, 3, 16)
    assert torch.equal(layer(x), layer(x, ids=torch.arange(6).view(2, 3)))
