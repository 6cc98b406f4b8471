"""On a GPU, balancing decides and weighs as on the CPU."""

from __future__ import annotations

import pytest
import torch

from labkit.core import capacity
from labkit.core.config import MoEConfig
from labkit.nn import Router
from labkit.train import balance

pytestmark = pytest.mark.gpu
CONFIG = MoEConfig(d_model=32, d_expert=8, num_experts=12, top_k=3, selection_bias=True, score_fn="sigmoid")


def records(num_tokens=300):
    torch.manual_seed(0)
    router = Router(CONFIG).double()
    x_TD = torch.randn(num_tokens, 32, dtype=torch.float64)
    here = router(x_TD)
    there = router.cuda()(x_TD.cuda())
    return here, there


def test_losses_and_their_gradients():
    here, there = records()
    mask_T, sequence_T = torch.arange(300) % 7 > 0, torch.arange(300) // 30
    for loss in (
        lambda r, put: balance.switch_loss(r, put(mask_T)),
        lambda r, put: balance.sequence_loss(r, put(sequence_T), put(mask_T)),
        lambda r, put: balance.z_loss(r, put(mask_T)),
    ):
        ours, theirs = loss(here, lambda t: t), loss(there, torch.Tensor.cuda)
        torch.testing.assert_close(theirs.cpu(), ours)
        torch.testing.assert_close(
            *(torch.autograd.grad(value, r.logits_TE, retain_graph=True)[0].cpu()
              for value, r in ((theirs, there), (ours, here)))
        )  # fmt: skip


@pytest.mark.parametrize("policy", capacity.POLICIES)
def test_the_same_tokens_lose_their_place(policy):
    here, there = records()
    places = capacity.expert_capacity(300, 12, 3, 0.75)
    kept_TK = capacity.kept(here, places, policy)
    assert 0 < kept_TK.sum() < kept_TK.numel()
    assert torch.equal(capacity.kept(there, places, policy).cpu(), kept_TK)
    assert torch.equal(capacity.drop(there, places, policy).topk_scores_TK.cpu() == 0, ~kept_TK)


def test_the_bias_moves_in_place():
    here, there = records()
    router = Router(CONFIG).cuda()
    balance.bias_step(router, there, rate=0.25)
    expected_E = balance.update_bias(torch.zeros(12), here.tokens_per_expert_E, rate=0.25)
    assert torch.equal(router.expert_bias_E.cpu(), expected_E)


def test_experts_choose_alike():
    scores_TE = torch.rand(300, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    here, there = (balance.expert_choice(s, 40) for s in (scores_TE, scores_TE.cuda()))
    for ours, theirs in zip(vars(here).values(), vars(there).values(), strict=True):
        if isinstance(ours, torch.Tensor):
            torch.testing.assert_close(theirs.cpu(), ours)
