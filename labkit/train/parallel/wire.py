"""What a row looks like on the wire: as it is, narrower, or in fp8 with its scales, as bytes.

A collective knows no float8, so an fp8 row travels as uint8: D codes, then the scale of every block of 128 values in
float32 (DeepSeek-V3, arXiv 2412.19437, section 3.3.2).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from labkit.kernels.fp8 import BLOCK, DTYPE, fp8_rows
from labkit.kernels.quant import spread

Wire = Literal["same", "float32", "bfloat16", "fp8"]
WIRES = ("same", "float32", "bfloat16", "fp8")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SCALE_BYTES = 4


def check_wire(wire: str) -> None:
    """Raise ValueError unless it is one of `WIRES`."""
    if wire not in WIRES:
        raise ValueError(f"wire is {wire!r}; choose one of {', '.join(WIRES)}")


def answer_wire(wire: Wire) -> Wire:
    """In which format results come back: sums need more bits than inputs, so fp8 is answered in bfloat16.

    >>> answer_wire("fp8"), answer_wire("same")
    ('bfloat16', 'same')
    """
    return "bfloat16" if wire == "fp8" else wire


def row_bytes(width: int, wire: Wire, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of one row of `width` values; `dtype` is what "same" means.

    >>> row_bytes(7168, "bfloat16"), row_bytes(7168, "fp8")
    (14336, 7392)
    """
    check_wire(wire)
    if wire == "fp8":
        return width + SCALE_BYTES * -(-width // BLOCK)
    return width * _DTYPES.get(wire, dtype).itemsize


def encode(x_ND: Tensor, wire: Wire) -> Tensor:
    """Rows as they are sent: [N, D], or [N, bytes] uint8 for fp8. A block that is not finite becomes NaN.

    >>> encode(torch.ones(3, 256), "fp8").shape
    torch.Size([3, 264])
    """
    check_wire(wire)
    if wire != "fp8":
        return x_ND.to(_DTYPES.get(wire, x_ND.dtype)).contiguous()
    codes_ND, scale = fp8_rows(x_ND)
    return torch.cat([codes_ND.view(torch.uint8), scale.contiguous().view(torch.uint8)], dim=1)


def decode(sent: Tensor, wire: Wire, width: int, dtype: torch.dtype) -> Tensor:
    """What `encode` was given, as far as the format keeps it: [N, width] in `dtype`.

    >>> decode(encode(torch.tensor([[448.0, 1.06]]), "fp8"), "fp8", 2, torch.float32).tolist()
    [[448.0, 1.0]]
    """
    check_wire(wire)
    if wire != "fp8":
        return sent.to(dtype)
    codes_ND, scale = sent[:, :width].contiguous(), sent[:, width:].clone(memory_format=torch.contiguous_format)
    wide_ND = spread(scale.view(torch.float32), BLOCK, width)
    return (codes_ND.view(DTYPE).float() * wide_ND).to(dtype)
