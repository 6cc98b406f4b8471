"""Experts with biases and a clamped activation: transformers' GPT-OSS is the oracle; the two implementations agree."""

import pytest
import torch

from labkit.core.config import MoEConfig
from labkit.kernels import dispatch
from labkit.kernels.dispatch import Variant
from labkit.kernels.variant import activate
from labkit.nn import Experts

CONFIG = MoEConfig(
    d_model=16, d_expert=8, num_experts=5, top_k=2, score_fn="topk_softmax", router_bias=True, expert_bias=True,
    activation="clamped_swiglu", swiglu_limit=1.5,
)  # fmt: skip


def decision(T: int, generator: torch.Generator, E: int = 5, K: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    ids_TK = torch.rand(T, E, generator=generator).topk(K).indices
    return ids_TK, torch.rand(T, K, generator=generator)


def gpt_oss_experts(ours: Experts) -> torch.nn.Module:
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    c = ours.config
    config = GptOssConfig(
        hidden_size=c.d_model, intermediate_size=c.d_expert, num_local_experts=c.num_experts,
        num_experts_per_tok=c.top_k, swiglu_limit=c.swiglu_limit,
    )  # fmt: skip
    config._experts_implementation = "eager"
    theirs = GptOssExperts(config)
    theirs.limit = c.swiglu_limit  # a constant of the class in transformers up to 5.17
    E, F2, D = ours.gate_up_E2FD.shape
    with torch.no_grad():
        theirs.gate_up_proj.copy_(ours.gate_up_E2FD.view(E, 2, F2 // 2, D).transpose(1, 2).reshape(E, F2, D).mT)
        theirs.gate_up_proj_bias.copy_(ours.gate_up_bias_E2F.view(E, 2, -1).mT.reshape(E, F2))
        theirs.down_proj.copy_(ours.down_EDF.mT)
        theirs.down_proj_bias.copy_(ours.down_bias_ED)
    return theirs


@pytest.mark.parametrize("implementation", ["grouped_mm", "loop"])
@pytest.mark.parametrize("T", [1, 9])
def test_equals_gpt_oss(implementation: str, T: int) -> None:
    generator = torch.Generator().manual_seed(T)
    ours = Experts(CONFIG, implementation)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x_TD = torch.randn(T, 16, generator=generator)
    ids_TK, scores_TK = decision(T, generator)
    mine, theirs = x_TD.clone().requires_grad_(), x_TD.clone().requires_grad_()
    y = ours(mine, (ids_TK, scores_TK))
    wanted = gpt_oss_experts(ours)(theirs, ids_TK, scores_TK)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_the_implementations_have_the_same_gradients() -> None:
    grads = {}
    for name in ("grouped_mm", "loop"):
        generator = torch.Generator().manual_seed(3)
        layer = Experts(CONFIG, name)
        layer.reset_parameters(generator)
        with torch.no_grad():
            layer.gate_up_bias_E2F.normal_(generator=generator)
        x_TD = torch.randn(12, 16, generator=generator)
        layer(x_TD, decision(12, generator)).square().sum().backward()
        grads[name] = [parameter.grad for parameter in layer.parameters()]
    for one, other in zip(grads["grouped_mm"], grads["loop"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_plain_variant_is_swiglu() -> None:
    gate_up = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    gate, up = gate_up.chunk(2, dim=-1)
    torch.testing.assert_close(activate(gate_up, Variant()), torch.nn.functional.silu(gate) * up)
    assert Variant().plain
    assert not Variant(activation="clamped_swiglu").plain


def test_the_clamp_bites() -> None:
    big = torch.tensor([100.0, -100.0])
    assert activate(big, Variant(activation="clamped_swiglu", limit=2.0)).item() == pytest.approx(
        (1 - 2.0) * 2.0 * torch.sigmoid(torch.tensor(1.702 * 2.0)).item()
    )


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        (Variant(gate_up_bias_E2F=torch.zeros(5, 16)), "give both or neither"),
        (Variant(torch.zeros(5, 8), torch.zeros(5, 16)), "gate_up_bias_E2F is"),
        (Variant(torch.zeros(5, 16), torch.zeros(5, 16).double()), "down_bias_ED is"),
    ],
)
def test_biases_that_do_not_fit(variant: Variant, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dispatch.experts(
            torch.zeros(2, 16), (torch.tensor([[0], [1]]), torch.ones(2, 1)), torch.zeros(5, 16, 16),
            torch.zeros(5, 16, 8), variant=variant,
        )  # fmt: skip


def test_who_cannot_says_so() -> None:
    problem = dispatch.Problem(4, 16, 8, 5, 2, torch.float64, "cpu", plain=False)
    choice = dispatch.choose(problem)
    assert choice.name == "loop"
    assert "neither biases" in choice.reason
    with pytest.raises(ValueError, match="sorted cannot compute this: it has neither biases"):
        dispatch.choose(problem, "sorted")
