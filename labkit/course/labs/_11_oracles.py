"""Lab 11's oracles: bitsandbytes' own INT8 and NF4 on the CPU, and E4M3 rounded by a table in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labkit.course.attempt import Case
from labkit.kernels.nf4 import LEVELS


def _ops() -> Any:
    import bitsandbytes  # noqa: F401  registers them

    return torch.ops.bitsandbytes


def absmax(w_RC: Tensor) -> tuple[Tensor, Tensor]:
    codes_RC, largest_R, _ = _ops().int8_vectorwise_quant.default(w_RC.clone())
    return codes_RC, largest_R[:, None]


def absmax_fits(case: Case) -> bool:
    """It refuses nothing, and a row of zeros is 0/0 there."""
    (w_RC,) = case.args
    return bool(w_RC.isfinite().all() and w_RC.abs().amax(-1).all())


def outlier_product(x_TC: Tensor, codes_RC: Tensor, largest_R1: Tensor, threshold: float) -> Tensor:
    """Its INT8 product of the columns without outliers; the others are multiplied in float64."""
    outlier_C = (x_TC.abs() >= threshold).any(0)
    ops, rest = _ops(), (~outlier_C).nonzero().flatten()
    codes_TC, largest_T, _ = ops.int8_vectorwise_quant.default(x_TC[:, rest].contiguous())
    inside = ops.int8_scaled_mm.default(
        codes_TC, codes_RC[:, rest].contiguous(), largest_T, largest_R1[:, 0].contiguous(), dtype=torch.float32
    )
    weights = codes_RC[:, outlier_C].double() * largest_R1.double() / 127
    return (inside.double() + x_TC[:, outlier_C].double() @ weights.T).float()


def outlier_fits(case: Case) -> bool:
    """It needs a column without outliers, and a token that is not all zeros."""
    x_TC, *_, threshold = case.args
    outlier_C = (x_TC.abs() >= threshold).any(0)
    return not bool(outlier_C.all()) and bool(x_TC.abs().amax(-1).all())


def nf4(w_RC: Tensor, levels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    R, C = w_RC.shape
    packed, largest = _ops().quantize_4bit.default(w_RC.contiguous(), block, "nf4", torch.uint8)
    return packed.view(R, C // 2), largest.view(R, C // block)


def nf4_fits(case: Case) -> bool:
    """It knows its own levels, and blocks of 32 and more."""
    _, levels, block = case.args
    return torch.equal(levels, torch.tensor(LEVELS)) and block >= 32


def fp8_block(w_RC: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Block by block, the nearest of all numbers that E4M3 has, ties to the even code, in float64."""
    R, C = w_RC.shape
    table = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()  # 0 to 448; 127 is NaN
    codes = torch.empty(R, C, dtype=torch.uint8)
    scale = torch.ones(-(-R // block), -(-C // block))
    for i in range(len(scale)):
        for j in range(scale.shape[1]):
            part = w_RC[i * block : (i + 1) * block, j * block : (j + 1) * block]
            if part.any():
                scale[i, j] = part.abs().max() / 448
            distance = ((part / scale[i, j]).double().abs()[..., None] - table).abs()
            odd = (torch.arange(127) % 2) * 1e-12  # of two equally near, the even one
            code = (distance + odd).argmin(-1).to(torch.uint8) | (part.signbit().to(torch.uint8) << 7)
            codes[i * block : (i + 1) * block, j * block : (j + 1) * block] = code
    return codes.view(torch.float8_e4m3fn), scale
