"""Packed experts: one expert's matrices are made whole (or multiplied in whole numbers) while its tokens pass.

Ours and those of transformers; where a Triton kernel can do it, it does.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from labkit.core.config import MoEConfig
from labkit.core.routing import Routing
from labkit.kernels import reference
from labkit.kernels.variant import Variant, activate
from labkit.nn.quant import fused
from labkit.nn.quant.modules import Held
from labkit.nn.quant.schemes import Scheme


class OurActivation(nn.Module):
    """What stands between the matrices of `nn.Experts`: [..., 2F], gate first, to [..., F]."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.variant = Variant(None, None, config.activation, config.swiglu_alpha, config.swiglu_limit)
        self.swiglu = config.activation == "swiglu"

    def forward(self, up: Tensor) -> Tensor:
        return activate(up, self.variant)


class TheirActivation(nn.Module):
    """The same for experts of transformers: their own method, on their module without its weights.

    Interleaved gates (GPT-OSS), clamps and experts without a gate come with it: rows keep their order.
    """

    def __init__(self, module: nn.Module, swiglu: bool) -> None:
        super().__init__()
        self.stripped, self.swiglu = module, swiglu

    def forward(self, up: Tensor) -> Tensor:
        return self.stripped._apply_gate(up) if self.stripped.has_gate else self.stripped.act_fn(up)


class QuantExperts(nn.Module):
    """Routed experts with packed matrices.

    Args:
        up: [E, U, D], U what the activation reads (2F with a gate); down: [E, D, F].
        activation: [..., U] to [..., F]; its `swiglu` says whether it is plain SwiGLU, gate first.
        up_bias: [E, U] or None; down_bias: [E, D] or None, as they were.
    """

    def __init__(
        self, up: Held, down: Held, activation: nn.Module, scheme: Scheme,
        up_bias: nn.Parameter | None = None, down_bias: nn.Parameter | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.up, self.down, self.activation, self.scheme = up, down, activation, scheme
        self.register_parameter("up_bias", up_bias)
        self.register_parameter("down_bias", down_bias)
        self.num_experts = len(up.packed)

    def forward(self, x_TD: Tensor, *decision: Any, **named: Any) -> Tensor:
        """Each token through its experts: [T, D] in x's dtype.

        After x either what ours are given, a `Routing` or `(ids_TK, scores_TK)`, or what transformers gives, ids and
        scores one by one. Ids of E or more are nobody's.
        """
        ids_TK, scores_TK = decided((*decision, *named.values()), self.num_experts)
        if fused.can(self, x_TD):
            return fused.experts(self, x_TD, ids_TK, scores_TK)
        order_N, token_N, offsets_E = reference.sort_by_expert(ids_TK.long(), self.num_experts)
        ends = [0, *offsets_E.tolist()]
        out_TD, scores_N = torch.zeros_like(reference.widen(x_TD)), scores_TK.reshape(-1)[order_N]
        for expert, (start, end) in enumerate(itertools.pairwise(ends)):
            if start == end:
                continue
            token = token_N[start:end]
            y = self.expert(x_TD[token], expert) * scores_N[start:end, None]
            out_TD = out_TD.index_add(0, token, y.to(out_TD.dtype))
        return out_TD.to(x_TD.dtype)

    def expert(self, x_ND: Tensor, expert: int) -> Tensor:
        """One expert on tokens of its own: [N, D] to [N, D]."""
        biases = (None if b is None else b[expert].to(x_ND.dtype) for b in (self.up_bias, self.down_bias))
        up_bias, down_bias = biases
        hidden = self.activation(self.scheme.multiply(x_ND, self.up.packed[expert], up_bias))
        return self.scheme.multiply(hidden, self.down.packed[expert], down_bias)

    def extra_repr(self) -> str:
        E, U, D = self.up.packed.shape
        return f"{E} experts, d_model={D}, rows before the activation={U}, scheme={self.scheme.name!r}"


def decided(given: tuple[Any, ...], num_experts: int) -> tuple[Tensor, Tensor]:
    """Ids and scores, [T, K] each, of what experts are given beside x. Raises ValueError for anything else."""
    if len(given) == 1 and isinstance(given[0], Routing):
        if given[0].num_experts != num_experts:
            raise ValueError(f"the routing has {given[0].num_experts} experts, the weights {num_experts}")
        return given[0].topk_ids_TK, given[0].topk_scores_TK
    pair = given[0] if len(given) == 1 else given
    if len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        raise ValueError(f"experts were given {len(given)} values beside x; give a Routing, or ids and scores")
    return pair
