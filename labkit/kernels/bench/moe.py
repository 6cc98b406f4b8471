"""Experts with their routing given: what is drawn, what must come out, and who computes it without being asked.

Routing is skewed as in trained models: to each token's random logits comes a preference of its own for each expert, the
same for all tokens. It is drawn on the CPU, so that a seed means the same routing on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from labkit.kernels import dispatch, reference
from labkit.kernels.bench.calls import compile_on_gpu
from labkit.kernels.bench.error import output_and_gradients, wide
from labkit.kernels.bench.peers import OURS, Call, Make
from labkit.kernels.bench.shapes import MoEShape

SKEW = 0.45


@dataclass(frozen=True, eq=False)
class MoECase:
    """Inputs of one shape. Tensors are leaves that require gradients; `grad_TD` is the gradient of the output."""

    shape: MoEShape
    dtype: torch.dtype
    device: torch.device
    x_TD: Tensor
    topk_ids_TK: Tensor
    topk_scores_TK: Tensor
    gate_up_E2FD: Tensor
    down_EDF: Tensor
    grad_TD: Tensor

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What gradients are taken of."""
        return {
            "x": self.x_TD, "scores": self.topk_scores_TK, "gate_up": self.gate_up_E2FD, "down": self.down_EDF
        }  # fmt: skip

    @property
    def grad(self) -> Tensor:
        """The gradient of the output."""
        return self.grad_TD

    @property
    def tokens_per_expert_E(self) -> Tensor:
        """How many pairs each expert has."""
        return torch.bincount(self.topk_ids_TK.flatten(), minlength=self.shape.E)

    @property
    def load(self) -> float:
        """The most loaded expert's pairs over the mean."""
        return busiest(self.tokens_per_expert_E)

    @property
    def visited(self) -> int:
        """Experts that at least one token chose."""
        return int((self.tokens_per_expert_E > 0).sum())

    @staticmethod
    def value(output: Tensor) -> Tensor:
        """Of what a contestant gives, the part that gradients come from."""
        return output

    def wanted(self, backward: bool) -> dict[str, Tensor]:
        """The output, and with `backward` each leaf's gradient, one expert after another in `reference.swiglu`."""
        as_wide = wide(self.dtype)
        made = {"output": torch.zeros_like(self.x_TD, dtype=as_wide)}
        if backward:
            made |= {name: torch.zeros_like(leaf, dtype=as_wide) for name, leaf in self.leaves.items()}
        for expert in range(self.shape.E):
            token, slot = torch.where(self.topk_ids_TK == expert)
            own = (self.x_TD[token], self.topk_scores_TK[token, slot], self.gate_up_E2FD[expert], self.down_EDF[expert])
            x, scores, gate_up, down = (tensor.detach().to(as_wide).requires_grad_(backward) for tensor in own)
            y = reference.swiglu(x, gate_up, down) * scores[:, None]
            made["output"].index_add_(0, token, y.detach())
            if backward:
                grads = torch.autograd.grad(y, (x, scores, gate_up, down), self.grad_TD[token].to(as_wide))
                made["x"].index_add_(0, token, grads[0])
                made["scores"][token, slot] = grads[1]
                made["gate_up"][expert], made["down"][expert] = grads[2:]
        return made

    def errors(self, wanted: Mapping[str, Tensor], output: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """How far output and gradients are from what was wanted; ValueError for another shape."""
        return output_and_gradients(wanted, output, gradients)


def skewed_logits(T: int, E: int, generator: torch.Generator) -> Tensor:
    """Logits [T, E] as trained routers have them: to a token's own comes each expert's, the same for all tokens."""
    return SKEW * torch.randn(E, generator=generator) + torch.randn(T, E, generator=generator)


def busiest(tokens_per_expert_E: Tensor) -> float:
    """The most loaded expert's pairs over the mean."""
    counts_E = tokens_per_expert_E.double()
    return (counts_E.max() / counts_E.mean()).item()


def draw(shape: MoEShape, dtype: torch.dtype, device: torch.device, seed: int) -> MoECase:
    """Inputs of about unit size, a skewed routing, softmax scores that sum to one over a token's experts."""
    T, D, F, E, K = (getattr(shape, letter) for letter in shape.LETTERS)
    routing, values = torch.Generator().manual_seed(seed), torch.Generator(device).manual_seed(seed)
    scores, ids = skewed_logits(T, E, routing).softmax(-1).topk(K)
    normal = partial(torch.randn, generator=values, device=device, dtype=dtype)
    return MoECase(
        shape, dtype, device,
        x_TD=normal(T, D).requires_grad_(),
        topk_ids_TK=ids.to(device),
        topk_scores_TK=(scores / scores.sum(-1, keepdim=True)).to(device).requires_grad_(),
        gate_up_E2FD=normal(E, 2 * F, D).mul_(D**-0.5).requires_grad_(),
        down_EDF=normal(E, D, F).mul_(F**-0.5).requires_grad_(),
        grad_TD=normal(T, D),
    )  # fmt: skip


def _dispatched(implementation: str, case: MoECase) -> Call:
    x, decision = case.x_TD, (case.topk_ids_TK, case.topk_scores_TK)
    weights = case.gate_up_E2FD, case.down_EDF
    return Call(lambda: dispatch.experts(x, decision, *weights, implementation=implementation), case.leaves)


def _compiled(case: MoECase) -> Call:
    compiled = compile_on_gpu(dispatch.experts_grouped_mm, case.device)
    given = case.x_TD, case.topk_ids_TK, case.topk_scores_TK, case.gate_up_E2FD, case.down_EDF
    return Call(lambda: compiled(*given), case.leaves)


def _transformers(implementation: str, case: MoECase) -> Call:
    """The experts of transformers' Mixtral; scores in the tokens' dtype, as its routers give them."""
    from transformers import MixtralConfig, __version__
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    shape = case.shape
    config = MixtralConfig(hidden_size=shape.D, intermediate_size=shape.F, num_local_experts=shape.E)
    config._experts_implementation = implementation
    with torch.device("meta"):
        module = MixtralExperts(config)
    module.gate_up_proj, module.down_proj = (
        torch.nn.Parameter(tensor.detach()) for tensor in (case.gate_up_E2FD, case.down_EDF)
    )
    scores_TK = case.topk_scores_TK.detach().to(case.dtype).requires_grad_()
    mine = {"x": case.x_TD, "scores": scores_TK, "gate_up": module.gate_up_proj, "down": module.down_proj}
    return Call(
        lambda: module(case.x_TD, case.topk_ids_TK, scores_TK), mine,
        note=f"transformers {__version__}, scores in the tokens' dtype", graphs=implementation != "eager",
    )  # fmt: skip


CONTESTANTS: dict[str, Make] = {
    OURS: partial(_dispatched, "triton"),
    "torch grouped_mm": partial(_dispatched, "grouped_mm"),
    "torch grouped_mm, compiled": _compiled,
    "transformers grouped_mm": partial(_transformers, "grouped_mm"),
    "transformers eager": partial(_transformers, "eager"),
}
"""Who is measured without being asked, ours first."""
