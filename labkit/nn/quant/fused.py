"""Packed experts on Triton's kernels, where these compute the same: on a GPU, plain SwiGLU, nothing to differentiate.

Triton is loaded by the first call that can use it. Everything else takes the loop of `QuantExperts`.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from labkit.kernels import fp8, nf4
from labkit.kernels.quant import Int8, Packed

if TYPE_CHECKING:
    from labkit.nn.quant.experts import QuantExperts

# scheme: the kernels' name of the format, and whether tokens are quantised too
FORMS = {
    "int8": ("int8", False), "int8_tensor": ("int8", False), "w8a8": ("int8", True), "nf4": ("nf4", False),
    "nf4_double": ("nf4", False), "fp8": ("fp8", False), "fp8_block": ("fp8", True),
}  # fmt: skip
_BLOCKS = {"nf4": nf4.BLOCK, "fp8": fp8.BLOCK}
DEVICES = ("cuda",)  # on a CPU the kernels would be interpreted


def refuses(module: QuantExperts, x_TD: Tensor) -> str:
    """Why the kernels do not compute this module's experts for x; empty if they do."""
    if x_TD.device.type not in DEVICES:
        return "the tokens are on no GPU"
    if module.scheme.name not in FORMS:
        return f"there is no kernel for {module.scheme.name}"
    form, activations = FORMS[module.scheme.name]
    if not module.activation.swiglu or module.up_bias is not None:
        return "the experts are not plain SwiGLU"
    if torch.is_grad_enabled() and x_TD.requires_grad:
        return "the kernels have no gradients"
    if getattr(module.up.packed, "block", _BLOCKS.get(form)) != _BLOCKS.get(form):
        return f"the kernels know {form} in blocks of {_BLOCKS[form]}"
    if reason := absent():
        return reason
    from labkit.kernels import quant_experts

    D, F = module.down.packed.shape[1:]
    return quant_experts.refuses(form, x_TD.dtype, x_TD.device.type, D, F, activations=activations)


@cache
def absent() -> str:
    """Why there are no kernels here at all; empty if there are. Looked for once, not at every call."""
    if find_spec("triton") is None:
        return 'Triton is not installed; pip install "labkit[gpu]"'
    if find_spec("labkit.kernels.quant_experts") is None:
        return "this version of labkit has no kernels for packed experts"
    return ""


def can(module: QuantExperts, x_TD: Tensor) -> bool:
    """Whether `experts` computes this."""
    return not refuses(module, x_TD)


def experts(module: QuantExperts, x_TD: Tensor, ids_TK: Tensor, scores_TK: Tensor) -> Tensor:
    """[T, D] to [T, D] by the kernels; arguments as for `QuantExperts`."""
    from labkit.kernels import quant_experts

    form, activations = FORMS[module.scheme.name]
    weights = (*_raw(module.up.packed), *_raw(module.down.packed))
    return quant_experts.experts(x_TD, ids_TK, scores_TK.detach(), *weights, form=form, activations=activations)


def _raw(packed: Packed) -> tuple[Tensor, Tensor]:
    """Codes and scales in the kernels' layout; scales of scales are made whole first."""
    if isinstance(packed, Int8):
        E, R, _ = packed.shape
        return packed.codes, packed.scale.expand(E, R, 1)[..., 0]
    return packed.codes, packed.scale if isinstance(packed, fp8.Fp8) else packed.absmax
