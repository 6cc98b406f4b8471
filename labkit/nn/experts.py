"""The experts compute: E SwiGLU feed-forward networks whose weights are fused into two tensors.

Layout as in transformers: `gate_up_E2FD` [E, 2F, D] (gate rows first), `down_EDF` [E, D, F]. Under autocast the
products run in its dtype, as those of a linear layer do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.kernels import dispatch
from labkit.kernels.reference import swiglu
from labkit.kernels.variant import Variant
from labkit.nn.precision import in_autocast_dtype


class SwiGLU(nn.Module):
    """One feed-forward network of width F: a dense layer, or all shared experts of a sparse one side by side.

    S shared experts of width F add up to one of width S·F, so they are kept as one.

    >>> SwiGLU(d_model=4, d_expert=6)(torch.ones(2, 3, 4)).shape
    torch.Size([2, 3, 4])
    """

    def __init__(self, d_model: int, d_expert: int) -> None:
        super().__init__()
        if d_model < 1 or d_expert < 1:
            raise ValueError(f"d_model is {d_model} and d_expert {d_expert}; give 1 or more")
        self.gate_up_2FD = nn.Parameter(torch.empty(2 * d_expert, d_model))
        self.down_DF = nn.Parameter(torch.empty(d_model, d_expert))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw both matrices again: normal, deviation one over the root of the width they read."""
        _reset(self.gate_up_2FD, self.down_DF, generator)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return swiglu(x, self.gate_up_2FD, self.down_DF)


class Experts(nn.Module):
    """The routed experts of one layer.

    Args:
        config: sizes; with `expert_bias` there are `gate_up_bias_E2F` [E, 2F] and `down_bias_ED` [E, D] too.
        implementation: "auto" or a name of `kernels.dispatch.names()`; ValueError for any other.

    >>> experts = Experts(MoEConfig(d_model=8, d_expert=4, num_experts=3, top_k=1))
    >>> experts(torch.ones(2, 8), (torch.tensor([[0], [2]]), torch.ones(2, 1))).shape
    torch.Size([2, 8])
    """

    def __init__(self, config: MoEConfig, implementation: str = "auto") -> None:
        super().__init__()
        if implementation not in ("auto", *dispatch.names()):
            known = ", ".join(dispatch.names())
            raise ValueError(f"implementation is {implementation!r}; choose 'auto' or one of {known}")
        self.config, self.implementation = config, implementation
        E, D, F = config.num_experts, config.d_model, config.d_expert
        self.gate_up_E2FD = nn.Parameter(torch.empty(E, 2 * F, D))
        self.down_EDF = nn.Parameter(torch.empty(E, D, F))
        self.gate_up_bias_E2F = nn.Parameter(torch.empty(E, 2 * F)) if config.expert_bias else None
        self.down_bias_ED = nn.Parameter(torch.empty(E, D)) if config.expert_bias else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights again: normal, deviation one over the root of the width they read; biases are zero."""
        _reset(self.gate_up_E2FD, self.down_EDF, generator)
        for bias in (self.gate_up_bias_E2F, self.down_bias_ED):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(self, x_TD: Tensor, decision: Routing | tuple[Tensor, Tensor]) -> Tensor:
        """Each token through its experts: [T, D] and a `Routing` (or ids and scores) to [T, D] in x's dtype."""
        dtype = x_TD.dtype
        given = (x_TD, self.gate_up_E2FD, self.down_EDF, self.gate_up_bias_E2F, self.down_bias_ED)
        cast = (None if tensor is None else in_autocast_dtype(tensor) for tensor in given)
        x_TD, gate_up_E2FD, down_EDF, gate_up_bias_E2F, down_bias_ED = cast
        c = self.config
        variant = Variant(gate_up_bias_E2F, down_bias_ED, c.activation, c.swiglu_alpha, c.swiglu_limit)
        y_TD = dispatch.experts(
            x_TD, decision, gate_up_E2FD, down_EDF, variant=variant, implementation=self.implementation
        )
        return y_TD.to(dtype)

    def extra_repr(self) -> str:
        c = self.config
        return f"{c.num_experts} of width {c.d_expert}, d_model={c.d_model}, implementation={self.implementation!r}"


def _reset(gate_up: Tensor, down: Tensor, generator: torch.Generator | None) -> None:
    for weights in (gate_up, down):
        nn.init.normal_(weights, std=weights.shape[-1] ** -0.5, generator=generator)
