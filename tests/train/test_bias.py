"""The selection bias: the paper's rule, what it does to a skewed router beside the loss, padding, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core import metrics
from labkit.core.config import MoEConfig
from labkit.nn import Router
from labkit.nn.fixed import StaticRouter
from labkit.train.balance import bias_step, switch_loss, update_bias


def skewed():
    """A router whose inputs share a direction, so that some experts are far ahead."""
    g = torch.Generator().manual_seed(3)
    router = Router(MoEConfig(d_model=6, d_expert=2, num_experts=8, top_k=2, score_fn="sigmoid", selection_bias=True))
    router.reset_parameters(g)
    return router, torch.randn(400, 6, generator=g) + torch.tensor([2.0, 0, 0, 0, 0, 0])


def test_update_bias_by_hand():
    bias_E = torch.tensor([0.5, -0.25, 0.0, 1.0])
    new_E = update_bias(bias_E, torch.tensor([8, 2, 5, 5]), rate=0.125)  # the mean is 5
    assert new_E.tolist() == [0.375, -0.125, 0.0, 1.0]
    assert bias_E.tolist() == [0.5, -0.25, 0.0, 1.0]
    assert update_bias(torch.zeros(3), torch.tensor([1, 1, 0]), rate=1.0).tolist() == [-1.0, -1.0, 1.0]


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9), st.sampled_from([torch.float32, torch.float64]))
def test_update_bias_is_the_papers_rule(counts, dtype):
    bias_E = torch.randn(len(counts), generator=torch.Generator().manual_seed(0)).to(dtype)
    mean = sum(counts) / len(counts)
    want = [b + 0.01 * ((mean > c) - (mean < c)) for b, c in zip(bias_E.tolist(), counts, strict=True)]
    got = update_bias(bias_E, torch.tensor(counts), rate=0.01)
    assert got.dtype == dtype
    assert got.tolist() == pytest.approx(want, rel=1e-6)


def test_bias_steps_balance_a_skewed_router():
    router, x_TD = skewed()
    before = router(x_TD)
    for _ in range(300):
        bias_step(router, router(x_TD), rate=0.003)
    after = router(x_TD)
    assert metrics.max_violation(before) > 1.5
    assert metrics.max_violation(after) < 0.2
    assert torch.equal(before.logits_TE, after.logits_TE)  # no weight moved
    assert not router.expert_bias_E.requires_grad


def test_the_loss_balances_a_skewed_router():
    torch.manual_seed(0)
    router, x_TD = skewed()
    before = metrics.max_violation(router(x_TD))
    optimiser = torch.optim.SGD(router.parameters(), lr=0.5)
    for _ in range(60):
        optimiser.zero_grad()
        switch_loss(router(x_TD)).backward()
        optimiser.step()
    assert before > 1.5
    assert metrics.max_violation(router(x_TD)) < before / 2


def test_bias_step_is_one_update_in_place_and_ignores_padding():
    router, x_TD = skewed()
    buffer, r = router.expert_bias_E, router(x_TD)
    mask_T = torch.arange(400) < 13
    bias_step(router, r, 0.01, mask_T)
    assert router.expert_bias_E is buffer
    assert torch.equal(buffer, update_bias(torch.zeros(8), r.keep(mask_T).tokens_per_expert_E, rate=0.01))
    with pytest.raises(ValueError, match="all 400"):
        bias_step(router, r, 0.01, torch.zeros(400))


def test_a_router_without_bias_cannot_be_stepped():
    config = MoEConfig(d_model=6, d_expert=2, num_experts=8, top_k=2)
    for router in (Router(config), StaticRouter(config)):
        with pytest.raises(ValueError, match="selection_bias=True"):
            bias_step(router, router(torch.randn(3, 6)))


@pytest.mark.parametrize(
    ("bias_E", "counts_E", "rate", "says"),
    [
        (torch.zeros(3), torch.zeros(4), 0.1, "one number for each expert"),
        (torch.zeros(1, 3), torch.zeros(1, 3), 0.1, "one number for each expert"),
        (torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3), 0.1, "keep it in float32"),
        (torch.zeros(3), torch.zeros(3), -0.1, "rate is -0.1"),
        (torch.zeros(3), torch.zeros(3), math.nan, "rate is nan"),
    ],
)
def test_bad_bias_updates(bias_E, counts_E, rate, says):
    with pytest.raises(ValueError, match=says):
        update_bias(bias_E, counts_E, rate=rate)
