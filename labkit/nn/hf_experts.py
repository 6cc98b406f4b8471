"""Our experts' kernels under any transformers MoE model: one call, for training and for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from labkit.kernels import dispatch

NAME = "labkit"
"""Our name in transformers: after `register`, `from_pretrained(…, experts_implementation="labkit")` works too."""


def register() -> None:
    """Make `"labkit"` an experts implementation of transformers, for every model of this process."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if NAME not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(NAME, _experts)


def use_kernels(model: Any) -> Any:
    """Put a transformers MoE model on our experts' kernels, and give the model back.

    Which implementation runs is decided at every call, as in `kernels.dispatch`: Triton on a GPU, torch elsewhere.

    Args:
        model: a transformers model whose experts are fused tensors (`gate_up_proj`, `down_proj`), as Mixtral, OLMoE,
            Qwen3-MoE and DeepSeek have them.

    Raises ValueError if it has none, or experts that are not SwiGLU without biases, naming them; it is then unchanged.
    """
    found = [module for module in model.modules() if hasattr(module, "gate_up_proj") and hasattr(module, "down_proj")]
    fused = [module for module in found if getattr(module.gate_up_proj, "ndim", 0) == 3]
    if not fused:
        raise ValueError(
            f"{type(model).__name__} has no fused experts (gate_up_proj [E, 2F, D] and down_proj [E, D, F])"
        )
    for kind in {type(module): module for module in fused}.values():
        _check(kind)
    register()
    model.set_experts_implementation(NAME)
    return model


def faults(module: nn.Module) -> list[str]:
    """What keeps a transformers experts module from being SwiGLU of gate_up_proj [E, 2F, D] and down_proj [E, D, F]."""
    found = {
        "has no gate": not getattr(module, "has_gate", True),
        "has biases": getattr(module, "has_bias", False),
        "stores its matrices transposed": getattr(module, "is_transposed", False),
        "interleaves gate and up": not getattr(module, "is_concatenated", True),
        "normalises its output": getattr(module, "has_post_expert_norm", False),
        "has an activation of its own": not _is_swiglu(module),
    }
    return [fault for fault, is_so in found.items() if is_so]


def _check(module: nn.Module) -> None:
    """Raise ValueError unless a transformers experts module computes what our kernels do; looked at once a module."""
    if getattr(module, "_labkit_checked", False):
        return
    if told := faults(module):
        raise ValueError(
            f"{type(module).__name__} {' and '.join(told)}; these kernels compute SwiGLU of gate_up_proj [E, 2F, D]. "
            "Keep transformers' own implementation for this model"
        )
    module._labkit_checked = True


def _is_swiglu(module: nn.Module) -> bool:
    from transformers.integrations import moe

    default = getattr(moe, "_default_apply_gate", None)
    own_gate = getattr(type(module), "_apply_gate", default) is not default
    act = getattr(module, "act_fn", None)
    probe = torch.tensor([-1.0, 0.5, 2.0])
    return not own_gate and act is not None and torch.equal(act(probe), nn.functional.silu(probe))


def _experts(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What transformers calls for every layer: [T, D], [T, K] and [T, K] to [T, D]."""
    _check(module)
    decision = (top_k_index.long(), top_k_weights)
    return dispatch.experts(hidden_states, decision, module.gate_up_proj, module.down_proj)
