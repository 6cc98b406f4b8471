"""Causal attention, forward and backward: ours beside the backends of torch's scaled_dot_product_attention."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from labkit.core.runtime import Unavailable
from labkit.kernels.bench.error import output_and_gradients, wide
from labkit.kernels.bench.peers import OURS, Call, Make
from labkit.kernels.bench.shapes import AttentionShape


@dataclass(frozen=True, eq=False)
class AttentionCase:
    """Inputs of one shape, laid out [B, S, heads, d] in memory as a projection leaves them; leaves with gradients."""

    shape: AttentionShape
    dtype: torch.dtype
    device: torch.device
    q_BHSd: Tensor
    k_BGSd: Tensor
    v_BGSd: Tensor
    grad_BHSd: Tensor

    load = visited = None

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What gradients are taken of."""
        return {"q": self.q_BHSd, "k": self.k_BGSd, "v": self.v_BGSd}

    @property
    def grad(self) -> Tensor:
        """The gradient of the output."""
        return self.grad_BHSd

    @staticmethod
    def value(output: Tensor) -> Tensor:
        """Of what a contestant gives, the part that gradients come from."""
        return output

    def wanted(self, backward: bool) -> dict[str, Tensor]:
        """The output, and with `backward` each leaf's gradient: the definition, one head of one sequence at a time."""
        as_wide, shape = wide(self.dtype), self.shape
        made = {"output": torch.zeros_like(self.q_BHSd, dtype=as_wide)}
        if backward:
            made |= {name: torch.zeros_like(leaf, dtype=as_wide) for name, leaf in self.leaves.items()}
        hidden_SS = torch.ones(shape.S, shape.S, dtype=torch.bool, device=self.device).triu(1)
        for b in range(shape.B):
            for h in range(shape.H):
                g = h * shape.G // shape.H
                own = self.q_BHSd[b, h], self.k_BGSd[b, g], self.v_BGSd[b, g]
                q, k, v = (tensor.detach().to(as_wide).requires_grad_(backward) for tensor in own)
                scores_SS = (q @ k.mT * shape.d**-0.5).masked_fill(hidden_SS, float("-inf"))
                y = scores_SS.softmax(-1) @ v
                made["output"][b, h] = y.detach()
                if backward:
                    grads = torch.autograd.grad(y, (q, k, v), self.grad_BHSd[b, h].to(as_wide))
                    for name, at, gradient in zip("qkv", (h, g, g), grads, strict=True):
                        made[name][b, at] += gradient
        return made

    def errors(self, wanted: Mapping[str, Tensor], output: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """How far output and gradients are from what was wanted; ValueError for another shape."""
        return output_and_gradients(wanted, output, gradients)


def draw(shape: AttentionShape, dtype: torch.dtype, device: torch.device, seed: int) -> AttentionCase:
    """Inputs of unit size."""
    values = torch.Generator(device).manual_seed(seed)

    def normal(heads: int) -> Tensor:
        size = (shape.B, shape.S, heads, shape.d)
        return torch.randn(size, generator=values, device=device, dtype=dtype).transpose(1, 2)

    q, k, v = (normal(heads).requires_grad_() for heads in (shape.H, shape.G, shape.G))
    return AttentionCase(shape, dtype, device, q, k, v, normal(shape.H))


def _ours(case: AttentionCase) -> Call:
    from labkit.kernels.attention import attention  # Triton is loaded by the first call that needs it

    return Call(lambda: attention(case.q_BHSd, case.k_BGSd, case.v_BGSd, causal=True), case.leaves)


def _sdpa(backend: SDPBackend, case: AttentionCase) -> Call:
    """One backend of torch; it is tried once here, so that what it says against the case is the reason given."""
    grouped = case.shape.G != case.shape.H

    def forward() -> Tensor:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(
                case.q_BHSd, case.k_BGSd, case.v_BGSd, is_causal=True, enable_gqa=grouped
            )

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            forward()
        except RuntimeError as error:
            why = " ".join(str(each.message).partition("(Triggered")[0].strip() for each in told)
            raise Unavailable(f"torch refuses: {why or error}") from error
    return Call(forward, case.leaves)


CONTESTANTS: dict[str, Make] = {
    OURS: _ours,
    "SDPA flash": partial(_sdpa, SDPBackend.FLASH_ATTENTION),
    "SDPA cuDNN": partial(_sdpa, SDPBackend.CUDNN_ATTENTION),
    "SDPA efficient": partial(_sdpa, SDPBackend.EFFICIENT_ATTENTION),
}
"""Who is measured without being asked, ours first."""
