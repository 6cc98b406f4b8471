"""Lab 11: right answers, as `reveal` shows them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def absmax(w_RC: Tensor) -> tuple[Tensor, Tensor]:
    if not w_RC.isfinite().all():
        raise ValueError("some weights are NaN or infinite; no scale can hold them")
    w_RC = w_RC.float()
    largest_R1 = w_RC.abs().amax(dim=-1, keepdim=True)
    step_R1 = torch.where(largest_R1 > 0, largest_R1, 1.0) / 127
    return (w_RC / step_R1).round().to(torch.int8), largest_R1


def outlier_product(x_TC: Tensor, codes_RC: Tensor, largest_R1: Tensor, threshold: float) -> Tensor:
    outlier_C = (x_TC.abs() >= threshold).any(dim=0)
    inside_TC = x_TC.masked_fill(outlier_C, 0.0)
    largest_T1 = inside_TC.abs().amax(dim=-1, keepdim=True)
    step_T1 = torch.where(largest_T1 > 0, largest_T1, 1.0) / 127
    codes_TC = (inside_TC / step_T1).round()
    sums_TR = (codes_TC.double() @ codes_RC.double().T).float()  # whole numbers, exact
    apart_TR = x_TC[:, outlier_C] @ (codes_RC[:, outlier_C] * largest_R1 / 127).T
    return sums_TR * step_T1 * (largest_R1.T / 127) + apart_TR


def nf4(w_RC: Tensor, levels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    parts = w_RC.unflatten(-1, (-1, block))
    largest = parts.abs().amax(dim=-1)
    scaled_RC = (parts / torch.where(largest > 0, largest, 1.0)[..., None]).flatten(-2)
    code_RC = (scaled_RC[..., None] - levels).abs().argmin(dim=-1).to(torch.uint8)
    return code_RC[:, 0::2] * 16 + code_RC[:, 1::2], largest


def fp8_block(w_RC: Tensor, block: int) -> tuple[Tensor, Tensor]:
    R, C = w_RC.shape
    filled = F.pad(w_RC, (0, -C % block, 0, -R % block))
    largest = filled.unflatten(0, (-1, block)).unflatten(2, (-1, block)).abs().amax(dim=(1, 3))
    scale = torch.where(largest > 0, largest / 448, 1.0)
    wide = scale.repeat_interleave(block, dim=0).repeat_interleave(block, dim=1)[:R, :C]
    return (w_RC / wide).to(torch.float8_e4m3fn), scale


def bytes_by_room(model: nn.Module, room: Callable[[str], str]) -> dict[str, int]:
    found = {}
    seen = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            found[room(name)] = found.get(room(name), 0) + storage.nbytes()
    return found


def pick_precision(feature_T: Tensor, low_bits: float, high_bits: float, budget: float) -> Tensor:
    if budget < low_bits:
        raise ValueError(f"a budget of {budget} bits is less than the {low_bits} that every token costs")
    T = len(feature_T)
    number = min(T, int(T * (budget - low_bits) / (high_bits - low_bits)))
    high_T = torch.zeros(T, dtype=torch.bool)
    high_T[feature_T.argsort(descending=True, stable=True)[:number]] = True
    return high_T
