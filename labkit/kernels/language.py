"""Triton, or its interpreter where there is no GPU: every kernel of this room imports `tl` and `triton` from here.

Triton reads TRITON_INTERPRET when a kernel is defined, so the choice is made once, before the first kernel. The
interpreter runs kernels in NumPy, one program after another: right in float32 and float16, silently wrong in bfloat16.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import torch

if not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"
    # Something else may have imported Triton before: its own functions are then compiled ones, which no interpreted
    # kernel can call. Python's part of it is imported anew; the compiled part cannot be, and need not.
    for name in [name for name in sys.modules if name.split(".")[0] == "triton" and not name.startswith("triton._C")]:
        del sys.modules[name]

import triton
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from triton.tools.tensor_descriptor import TensorDescriptor

__all__ = ["INTERPRETED", "TensorDescriptor", "refusal", "tl", "triton", "unsupported", "watched"]

INTERPRETED: bool = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")

if INTERPRETED:
    # Each sum and product of integers is computed again in 64 bits, for an assertion that is told to nobody unless
    # `debug` is on: a third of the time. The compiler leaves both out together, and so does the interpreter here.
    from triton.runtime.interpreter import interpreter_builder as _builder

    _builder.options = replace(_builder.options, sanitize_overflow=_builder.options.debug)

if INTERPRETED and triton.__version__.startswith("3.6."):
    # NumPy 2.4 no longer converts arrays of one element and one dimension to a number, which is what this version's
    # interpreter keeps a scalar in: `range(0, n)` over an argument n fails. From 3.7 on, Triton does as here.
    from triton.runtime import interpreter as _triton

    def _patch_lang_tensor(tensor, scope, original=_triton._patch_lang_tensor):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    _triton._patch_lang_tensor = _patch_lang_tensor


def unsupported(dtype: torch.dtype, device: str) -> str:
    """Why no kernel of this room can run on tensors of a dtype on a device of this type; empty if one can.

    >>> unsupported(torch.float64, "cuda")
    'it computes in float32, float16 and bfloat16, not float64'
    """
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it computes in float32, float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if INTERPRETED and dtype == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly without a word; give float32"
    if not INTERPRETED and device != "cuda":
        return f"the tensor is on {device!r}; Triton needs a GPU (or TRITON_INTERPRET=1 before it is imported)"
    return ""


def refusal(tensor: Tensor) -> str:
    """Why no kernel of this room can run on a tensor; empty if one can."""
    return unsupported(tensor.dtype, tensor.device.type)


def watched() -> bool:
    """Whether something looks at each operator that is called: torch.compile, a counter of FLOPs, fake tensors.

    Then a kernel must be called through its operator. Otherwise it is called past it, which takes Python half as long.
    """
    return torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
