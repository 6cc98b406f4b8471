"""Experts that are not plain SwiGLU: biases on their matrices, and GPT-OSS's clamped activation.

The loop here is the specification of such experts; `kernels.dispatch` computes them on grouped matrix products too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.core.config import Activation
from labkit.kernels import reference


@dataclass(frozen=True, eq=False)
class Variant:
    """What experts have beside their two matrices.

    Args:
        gate_up_bias_E2F: [E, 2F], gate first; down_bias_ED: [E, D]. Both or neither.
        activation: "swiglu", SiLU(gate)·up; or "clamped_swiglu", (up + 1)·gate·sigmoid(alpha·gate) with the gate at
            most `limit` and up between −limit and limit (GPT-OSS; OpenAI 2025, arXiv 2508.10925).
        alpha, limit: read by "clamped_swiglu".
    """

    gate_up_bias_E2F: Tensor | None = None
    down_bias_ED: Tensor | None = None
    activation: Activation = "swiglu"
    alpha: float = 1.702
    limit: float = 7.0

    @property
    def plain(self) -> bool:
        """Whether this is nothing but SwiGLU, which every implementation computes."""
        return self.gate_up_bias_E2F is None and self.activation == "swiglu"

    def check(self, gate_up_E2FD: Tensor, down_EDF: Tensor) -> None:
        """Raise ValueError unless the biases fit the matrices."""
        wanted = {"gate_up_bias_E2F": gate_up_E2FD.shape[:2], "down_bias_ED": down_EDF.shape[:2]}
        given = {name: getattr(self, name) for name in wanted}
        if sum(bias is None for bias in given.values()) == 1:
            raise ValueError("experts were given one of gate_up_bias_E2F and down_bias_ED; give both or neither")
        for name, bias in given.items():
            if bias is not None and (bias.shape != wanted[name] or bias.dtype != down_EDF.dtype):
                raise ValueError(
                    f"{name} is {tuple(bias.shape)} {bias.dtype}; expected {tuple(wanted[name])} {down_EDF.dtype}"
                )


PLAIN = Variant()
"""SwiGLU without biases."""


def activate(gate_up: Tensor, variant: Variant) -> Tensor:
    """What stands between an expert's matrices: [..., 2F] to [..., F].

    >>> activate(torch.tensor([9.0, 9.0]), Variant(activation="clamped_swiglu", alpha=1e9)).tolist()
    [56.0]
    """
    gate, up = gate_up.chunk(2, dim=-1)
    if variant.activation == "swiglu":
        return F.silu(gate) * up
    gate, up = gate.clamp(max=variant.limit), up.clamp(-variant.limit, variant.limit)
    return (up + 1) * gate * torch.sigmoid(variant.alpha * gate)


def experts_loop(
    x_TD: Tensor, topk_ids_TK: Tensor, topk_scores_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, variant: Variant
) -> Tensor:
    """Each expert in turn, as `reference.experts_loop`, with biases and activation."""
    out_TD = torch.zeros_like(reference.widen(x_TD))
    biased = variant.gate_up_bias_E2F is not None
    for expert in range(gate_up_E2FD.shape[0]):
        token, slot = torch.where(topk_ids_TK == expert)
        gate_up = F.linear(x_TD[token], gate_up_E2FD[expert], variant.gate_up_bias_E2F[expert] if biased else None)
        y = F.linear(activate(gate_up, variant), down_EDF[expert], variant.down_bias_ED[expert] if biased else None)
        out_TD = out_TD.index_add(0, token, (y * topk_scores_TK[token, slot, None]).to(out_TD.dtype))
    return out_TD.to(x_TD.dtype)
