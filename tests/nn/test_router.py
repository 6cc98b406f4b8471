"""The router as a module: any leading shape, precision, noise, what gets a gradient."""

import pytest
import torch

from labkit.core.config import MoEConfig
from labkit.nn import Router

CONFIG = MoEConfig(d_model=6, d_expert=4, num_experts=5, top_k=2)


def router(**changes):
    torch.manual_seed(0)
    return Router(CONFIG.replace(**changes))


def x(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("lead", [(), (0,), (1,), (7,), (2, 3), (2, 0, 4), (2, 3, 4)])
def test_any_leading_shape_is_flattened(lead):
    r = router()(x(*lead, 6))
    T = torch.Size(lead).numel()
    assert (r.num_tokens, r.num_experts, r.top_k) == (T, 5, 2)
    assert r.tokens_per_expert_E.sum() == 2 * T


def test_a_token_is_decided_alone():
    net, batch = router(), x(2, 3, 6)
    alone = [net(t).topk_ids_TK[0] for t in batch.reshape(6, 6)]
    assert torch.equal(net(batch).topk_ids_TK, torch.stack(alone))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_decisions_are_float32_or_wider(dtype):
    r = router().to(dtype)(x(7, 6).to(dtype))
    want = torch.float64 if dtype == torch.float64 else torch.float32
    assert r.logits_TE.dtype == r.topk_scores_TK.dtype == want


def test_autocast_does_not_round_the_logits():
    net = router()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = net(x(7, 6)).logits_TE
    assert torch.equal(inside, net(x(7, 6)).logits_TE)


def test_noise_only_while_training_and_from_the_generator():
    net = router(noise_std=1.0)
    draw = lambda seed: net(x(7, 6), generator=torch.Generator().manual_seed(seed)).logits_TE  # noqa: E731
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    net.eval()
    assert torch.equal(draw(0), draw(1))
    assert torch.equal(draw(0), net.logits(x(7, 6)))


def test_the_record_explains_itself_and_carries_labels():
    net = router(noise_std=1.0)
    r = net(x(2, 6), layer=3, tokens=("a", "b"), domains=("code", "english"))
    assert (r.layer, r.tokens, r.domains) == (3, ("a", "b"), ("code", "english"))
    assert torch.equal(net.decide(r.logits_TE)[0], r.topk_ids_TK)


def test_selection_bias_is_a_buffer_without_gradient():
    net = router(selection_bias=True, score_fn="sigmoid")
    net.expert_bias_E[4] = 10.0
    r = net(x(7, 6))
    r.topk_scores_TK[:, 0].sum().backward()
    assert r.tokens_per_expert_E[4] == 7
    assert net.weight_ED.grad is not None
    assert "expert_bias_E" in net.state_dict()
    assert [name for name, _ in net.named_parameters()] == ["weight_ED"]


def test_router_bias_is_learned_and_in_the_logits():
    net = router(router_bias=True)
    with torch.no_grad():
        net.bias_E[2] = 50.0
    r = net(x(7, 6))
    assert (r.topk_ids_TK[:, 0] == 2).all()
    r.logits_TE.sum().backward()
    assert net.bias_E.grad.tolist() == [7.0] * 5


def test_k_of_one_renormalised_stops_the_gradient():
    net = router(top_k=1)
    net(x(7, 6)).topk_scores_TK.sum().backward()
    assert net.weight_ED.grad.abs().max() < 1e-6
    free = router(top_k=1, norm_topk=False)
    free(x(7, 6)).topk_scores_TK.sum().backward()
    assert free.weight_ED.grad.abs().max() > 1e-3


@pytest.mark.parametrize(("bad", "words"), [(x(3, 5), "d_model = 6"), (torch.zeros(3, 6).long(), "embed")])
def test_bad_input(bad, words):
    with pytest.raises(ValueError, match=words):
        router()(bad)
