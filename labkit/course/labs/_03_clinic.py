"""Lab 03's clinic: six sparse layers that train without an error and are wrong, each with its mended twin.

A patient is a layer for `WindowModel(layer=…)` and what its training step adds to the loss. Everything else, the
text, the sizes, the seed and the optimizer, is the same for the sick and for the mended one. Who is to diagnose them
should not read on: the classes below say what is wrong with them.

Batches are padded with byte 0, which no text of the corpus holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.core import capacity
from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.nn import MoE, Router
from labkit.train import balance

PAD = 0
ALPHA, RATE = 0.1, 0.01
SIZES = {"d_model": 32, "d_expert": 32, "num_experts": 8}

Balance = Callable[[Routing, Tensor], Tensor]


class DoubleSoftmax(Router):
    """Softmax over all experts, and another over the K chosen scores."""

    def decide(self, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Ids, and weights that are too equal."""
        scores_TK, ids_TK = logits_TE.softmax(dim=-1).topk(self.config.top_k)
        return ids_TK, scores_TK.softmax(dim=-1)


class LeakyBias(Router):
    """The values of `topk(scores + bias)` are taken for weights."""

    def decide(self, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Ids, and weights that hold the bias."""
        biased_TK, ids_TK = (logits_TE.softmax(dim=-1) + self.expert_bias_E).topk(self.config.top_k)
        return ids_TK, biased_TK / biased_TK.sum(dim=-1, keepdim=True)


class Crowded(MoE):
    """Experts with places for an even load and not one more, given away by `policy` (see `core.capacity`)."""

    def __init__(self, config: MoEConfig, policy: capacity.Policy) -> None:
        super().__init__(config)
        self.policy = policy

    def forward(self, x: Tensor, return_routing: bool = False, *, ids: Tensor, **labels) -> Tensor | tuple:
        """[..., D] to the same shape; dropped pairs count zero."""
        asked, real = self.router(x, **labels), ids != PAD
        places = capacity.expert_capacity(int(real.sum()), self.config.num_experts, self.config.top_k)
        routing = capacity.drop(asked, places, self.policy, real)
        y = self.experts(x.flatten(0, -2), routing).view_as(x)
        return (y, routing) if return_routing else y


def balanced(routing: Routing, mask: Tensor) -> Tensor:
    """The auxiliary loss over real tokens."""
    return balance.switch_loss(routing, mask, alpha=ALPHA)


def balanced_with_padding(routing: Routing, mask: Tensor) -> Tensor:
    """The auxiliary loss over all tokens."""
    return balance.switch_loss(routing, alpha=ALPHA)


def dropped(routing: Routing, mask: Tensor) -> Tensor:
    """The auxiliary loss as a number for the log."""
    return balance.switch_loss(routing, mask, alpha=ALPHA).detach()


@dataclass(frozen=True)
class Treatment:
    """One way to build and train a layer: the layer, what is added to the loss, and whether a bias is nudged."""

    layer: Callable[[MoEConfig], nn.Module] = MoE
    balance: Balance | None = balanced
    nudge: bool = False
    norm_topk: bool = True


@dataclass(frozen=True)
class Patient:
    """A sick layer and its mended twin, which differ in one thing."""

    letter: str
    fault: str
    sick: Treatment
    mended: Treatment
    top_k: int = 2

    def config(self, treatment: Treatment, **sizes: int) -> MoEConfig:
        """The configuration of one of the two."""
        fields = {"top_k": self.top_k, "norm_topk": treatment.norm_topk, "selection_bias": treatment.nudge}
        return MoEConfig(**{**SIZES, **sizes}, **fields)


def _with(router: type[Router]) -> Callable[[MoEConfig], nn.Module]:
    return lambda config: MoE(config, router=router(config))


def _crowded(policy: capacity.Policy) -> Callable[[MoEConfig], nn.Module]:
    return lambda config: Crowded(config, policy)


PATIENTS = (
    Patient("A", "balance loss over padding", Treatment(balance=balanced_with_padding), Treatment()),
    Patient("B", "double softmax", Treatment(_with(DoubleSoftmax)), Treatment()),
    Patient("C", "capacity by position", Treatment(_crowded("position")), Treatment(_crowded("score"))),
    Patient("D", "balance loss dropped", Treatment(balance=dropped), Treatment()),
    Patient("E", "renormalised K = 1", Treatment(), Treatment(norm_topk=False), top_k=1),
    Patient(
        "F", "bias in the weights", Treatment(_with(LeakyBias), None, nudge=True), Treatment(balance=None, nudge=True)
    ),
)


@torch.no_grad()
def weight_moved_by_a_lift(router: nn.Module, routing: Routing, lift: float = 0.1) -> Tensor:
    """How much of the weight moves, 0 to 1, when every expert's selection bias is lifted by the same amount.

    Such a lift changes no choice, so nothing should move.
    """
    if router.expert_bias_E is None:
        return torch.zeros((), device=routing.logits_TE.device)
    bias_E, before_TK = router.expert_bias_E.clone(), router.decide(routing.logits_TE)[1]
    router.expert_bias_E += lift
    after_TK = router.decide(routing.logits_TE)[1]
    router.expert_bias_E.copy_(bias_E)
    return (after_TK - before_TK).abs().sum() / before_TK.abs().sum() / 2
