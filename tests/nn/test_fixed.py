"""Routers that do not learn: called like one that does, honest records, nothing moves them."""

import copy
import inspect
import math

import pytest
import torch

from labkit.core import metrics
from labkit.core.config import MoEConfig
from labkit.nn import MoE, Router
from labkit.nn.fixed import UNCHOSEN_GAP, FrozenRouter, HashRouter, RandomRouter, StaticRouter
from labkit.nn.window import WindowModel

CONFIG = MoEConfig(d_model=6, d_expert=4, num_experts=5, top_k=2)
V = 11
MAKE = {
    "hash": lambda config=CONFIG, seed=0: HashRouter(config, V, seed),
    "random": lambda config=CONFIG, seed=0: RandomRouter(config, seed),
    "frozen": lambda config=CONFIG, seed=0: FrozenRouter(config, seed),
    "static": lambda config=CONFIG, seed=0: StaticRouter(config),
}
all_kinds = pytest.mark.parametrize("kind", MAKE)
without_logits = pytest.mark.parametrize("kind", ["hash", "random", "static"])


def x(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def token_ids(*shape):
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(2))


@all_kinds
def test_called_like_a_router(kind):
    assert inspect.signature(type(MAKE[kind]()).forward) == inspect.signature(Router.forward)
    r = MAKE[kind]()(x(2, 3, 6), layer=4, tokens=("t",) * 6, domains=("d",) * 6, generator=None, ids=token_ids(2, 3))
    assert (r.layer, r.tokens, r.domains) == (4, ("t",) * 6, ("d",) * 6)


@all_kinds
@pytest.mark.parametrize("lead", [(), (0,), (7,), (2, 3), (2, 0, 4)])
@pytest.mark.parametrize(("E", "K"), [(5, 1), (5, 2), (4, 4), (1, 1)])
def test_any_shape_and_size(kind, lead, E, K):
    config = CONFIG.replace(num_experts=E, top_k=K, route_scale=1.5)
    r = MAKE[kind](config)(x(*lead, 6), ids=token_ids(*lead))
    assert (r.num_tokens, r.num_experts, r.top_k) == (torch.Size(lead).numel(), E, K)
    assert (r.topk_scores_TK == 1.5 / K).all()
    assert r.logits_TE.isfinite().all()


@all_kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_records_are_float32_or_wider(kind, dtype):
    r = MAKE[kind]().to(dtype)(x(7, 6, dtype=dtype), ids=token_ids(7))
    want = torch.float64 if dtype == torch.float64 else torch.float32
    assert r.logits_TE.dtype == r.topk_scores_TK.dtype == want


@all_kinds
def test_nothing_moves_a_decision(kind):
    layer = MoE(CONFIG, router=MAKE[kind]())
    assert list(layer.router.parameters()) == []
    h = x(7, 6).requires_grad_()
    y, r = layer(h, return_routing=True, ids=token_ids(7))
    assert not r.logits_TE.requires_grad
    assert not r.topk_scores_TK.requires_grad
    y.square().sum().backward()  # the experts and the input learn all the same
    assert h.grad.abs().sum() > 0
    used = r.tokens_per_expert_E > 0
    assert torch.equal(layer.experts.down_EDF.grad.abs().sum((1, 2)) > 0, used)


@all_kinds
def test_the_record_explains_the_choice(kind):
    r = MAKE[kind]()(x(50, 6), ids=token_ids(50))
    likeliest_TK = r.logits_TE.topk(2).indices
    assert torch.equal(likeliest_TK.sort(1).values, r.topk_ids_TK.sort(1).values)
    assert (metrics.decision_margin(r) > 0).all()


@without_logits
def test_logits_without_a_router_are_even_over_the_chosen(kind):
    r = MAKE[kind]()(x(50, 6), ids=token_ids(50))
    probability_TE = r.logits_TE.softmax(-1)
    torch.testing.assert_close(probability_TE.gather(1, r.topk_ids_TK), torch.full((50, 2), 0.5))
    assert probability_TE.scatter(1, r.topk_ids_TK, 0.0).max() < 1e-12
    torch.testing.assert_close(metrics.decision_margin(r), torch.full((50,), UNCHOSEN_GAP))
    assert r.logits_TE.max().item() == pytest.approx(math.log(1 / 2))


@pytest.mark.parametrize("kind", ["hash", "random", "frozen"])
def test_the_seed_decides(kind):
    route = lambda seed: MAKE[kind](seed=seed)(x(50, 6), ids=token_ids(50)).topk_ids_TK  # noqa: E731
    before = torch.random.get_rng_state()
    assert torch.equal(route(3), route(3))
    assert not torch.equal(route(3), route(4))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", ["hash", "frozen", "static"])
def test_a_decision_stays(kind):
    router = MAKE[kind]()
    assert torch.equal(router(x(9, 6), ids=token_ids(9)).topk_ids_TK, router(x(9, 6), ids=token_ids(9)).topk_ids_TK)


def test_hash_decides_by_id_alone():
    router, ids = MAKE["hash"](), token_ids(2, 30)
    r = router(x(2, 30, 6), ids=ids)
    assert torch.equal(r.topk_ids_TK, router(-x(2, 30, 6), ids=ids).topk_ids_TK)
    assert torch.equal(r.topk_ids_TK, router.table_VK[ids.flatten()])
    assert torch.equal(r.topk_ids_TK, router(x(60, 6), ids=ids.flatten().int()).topk_ids_TK)


def test_hash_table_is_saved_and_spreads_the_vocabulary():
    router = HashRouter(CONFIG.replace(num_experts=8), 4000)
    other = HashRouter(CONFIG.replace(num_experts=8), 4000, seed=1)
    other.load_state_dict(router.state_dict())
    assert torch.equal(other.table_VK, router.table_VK)
    counts_E = torch.bincount(router.table_VK.flatten(), minlength=8)
    assert (counts_E - 1000).abs().max() < 5 * math.sqrt(1000 * 3 / 4)  # 4000 draws of probability 1/4 an expert


def test_hash_equals_transformers():
    v4 = pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")
    config = v4.DeepseekV4Config(
        hidden_size=6, num_local_experts=5, n_routed_experts=5, num_experts_per_tok=2, vocab_size=V
    )
    router = HashRouter(CONFIG, V)
    theirs = v4.DeepseekV4HashRouter(config)
    assert theirs.tid2eid.shape == router.table_VK.shape
    torch.nn.init.zeros_(theirs.weight)  # then its learned scores are even too
    theirs.tid2eid.copy_(router.table_VK)
    ids = token_ids(2, 9)
    _, scores_TK, ids_TK = theirs(x(2, 9, 6), ids)
    r = router(x(2, 9, 6), ids=ids)
    assert torch.equal(ids_TK, r.topk_ids_TK)
    torch.testing.assert_close(scores_TK / config.routed_scaling_factor, r.topk_scores_TK)


def test_random_draws_every_set_as_often_and_anew():
    router = MAKE["random"]()
    first, second = (router(x(6, 6)).topk_ids_TK for _ in range(2))
    assert not torch.equal(first, second)
    pairs_TK = router(torch.zeros(20_000, 6)).topk_ids_TK.sort(1).values
    counts = torch.bincount(pairs_TK[:, 0] * 5 + pairs_TK[:, 1], minlength=25)
    counts = counts[counts > 0]
    assert len(counts) == 10  # 5 over 2
    assert (counts - 2000).abs().max() < 5 * math.sqrt(20_000 * 0.1 * 0.9)


def test_random_takes_a_generator_and_copies_go_their_own_way():
    router = MAKE["random"]()
    draw = lambda seed: router(x(9, 6), generator=torch.Generator().manual_seed(seed)).topk_ids_TK  # noqa: E731
    assert torch.equal(draw(5), draw(5))
    assert not torch.equal(draw(5), draw(6))
    twin = copy.deepcopy(router)
    assert torch.equal(router(x(9, 6)).topk_ids_TK, twin(x(9, 6)).topk_ids_TK)


def test_static_is_the_most_uneven():
    r = MAKE["static"]()(x(9, 6))
    assert r.tokens_per_expert_E.tolist() == [9, 9, 0, 0, 0]
    assert metrics.max_violation(r) == pytest.approx(5 / 2 - 1)


def test_frozen_chooses_as_a_router_with_its_weights():
    config = CONFIG.replace(score_fn="sigmoid", selection_bias=True, router_bias=True, noise_std=0.5)
    frozen, router = FrozenRouter(config), Router(config)
    frozen.expert_bias_E[3] = 0.4
    assert set(frozen.state_dict()) == {"weight_ED", "bias_E", "expert_bias_E"}
    router.load_state_dict(frozen.state_dict())
    noise = lambda: torch.Generator().manual_seed(7)  # noqa: E731
    got, want = frozen(x(40, 6), generator=noise()), router(x(40, 6), generator=noise())
    assert torch.equal(got.logits_TE, want.logits_TE)
    assert torch.equal(got.topk_ids_TK, want.topk_ids_TK)
    weight_ED = frozen.weight_ED.clone()
    frozen.reset_parameters()
    assert torch.equal(weight_ED, frozen.weight_ED)


@all_kinds
def test_a_model_with_it_learns(kind):
    torch.manual_seed(0)
    model = WindowModel(CONFIG, 2, window=2, d_embed=4, vocab_size=V, layer=lambda c: MoE(c, router=MAKE[kind](c)))
    ids_BS = token_ids(3, 5)
    logits_BSV, records = model(ids_BS, return_routing=True)
    assert [r.layer for r in records] == [0, 1]
    logits_BSV.logsumexp(-1).sum().backward()
    assert model.layers[0].experts.down_EDF.grad.abs().sum() > 0


@all_kinds
@pytest.mark.parametrize(
    ("bad", "says"), [(torch.zeros(3, 5), "must be d_model = 6"), (torch.zeros(3, 6).long(), "give floating point")]
)
def test_bad_input(kind, bad, says):
    with pytest.raises(ValueError, match=says):
        MAKE[kind]()(bad, ids=token_ids(3))


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (None, "call it with ids"),
        (token_ids(4), "4 elements for 3 tokens"),
        (torch.zeros(3), "whole numbers"),
        (torch.ones(3, dtype=torch.bool), "whole numbers"),
        (torch.tensor([0, 1, V]), rf"\[0, {V}\); got 0 to {V}"),
        (torch.tensor([0, -1, 1]), "got -1"),
    ],
)
def test_bad_token_ids(ids, says):
    with pytest.raises(ValueError, match=says):
        MAKE["hash"]()(x(3, 6), ids=ids)


@without_logits
@pytest.mark.parametrize(
    "setting", [{"selection_bias": True}, {"router_bias": True}, {"noise_std": 0.1}, {"num_groups": 2}]
)
def test_settings_without_effect_are_refused(kind, setting):
    config = CONFIG.replace(num_experts=4, **setting)
    with pytest.raises(ValueError, match=f"{next(iter(setting))}=.* would do nothing"):
        MAKE[kind](config)


def test_a_vocabulary_has_a_size():
    with pytest.raises(ValueError, match="vocab_size is 0"):
        HashRouter(CONFIG, 0)
