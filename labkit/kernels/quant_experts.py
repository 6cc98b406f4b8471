"""The experts of a layer with quantised weights as one operator, forward only.

Weight-only (`activations=False`): packed weights are widened in registers, products are in the tokens' dtype; for many
tokens they are made whole once (`quant_wide`), which takes up to `WHOLE` bytes while it lasts. With
`activations=True` both sides are quantised, "int8" or "fp8": tokens once, before they are gathered, and the hidden rows
where they are made. `kernels.quant`, `fp8` and `nf4` are the specification.
"""

from __future__ import annotations

import functools
import importlib
import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from labkit.kernels import quant_few, quant_mm, quant_pairs, quant_rows
from labkit.kernels.combine import combine
from labkit.kernels.grouped_mm import gate_up as wide_gate_up
from labkit.kernels.grouped_mm import rows_times
from labkit.kernels.language import INTERPRETED, triton, unsupported, watched
from labkit.kernels.permute import expert_map
from labkit.kernels.quant_wide import widen
from labkit.kernels.tiles import FEW, SOME, Tile, tiles

FORMS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "nf4": torch.uint8}
"""The formats, and the dtype of their codes."""
PAIRS = 4  # up to so many tokens, every pair is computed by itself
MANY = 256  # from so many rows of an average expert on, weights are made whole for the call
WHOLE = 2**31  # unless that would take more bytes than this
# Hopper's, measured there (docs/kernels.md).
_TILES = {
    "few": Tile(16, 128, 128, 4, 4, 3),
    "some": Tile(32, 128, 128, 4, 3, 2),
    "many": Tile(64, 128, 128, 4, 3, 2),
    "both": Tile(128, 256, 128, 8, 4),
}
# For less shared memory than Hopper's, which has been tried nowhere, and for float32, whose rows are twice as wide.
_SMALLER = {
    "few": Tile(16, 128, 128, 4, 2, 2),
    "some": Tile(32, 128, 128, 4, 2, 2),
    "many": Tile(64, 128, 128, 4, 2, 2),
    "both": Tile(64, 256, 128, 8, 2),
}
_INTERPRETED = {
    "few": Tile(16, 128, 128),
    "some": Tile(32, 128, 128),
    "many": Tile(64, 128, 128),
    "both": Tile(64, 256, 128),
}


def refuses(form: str, dtype: torch.dtype, device: str, D: int, F: int, *, activations: bool = False) -> str:
    """Why `experts` cannot compute experts of this kind; empty if it can.

    >>> refuses("fp8", torch.float32, "cpu", 256, 96)
    'F = 96 is not a multiple of 128: a block of 128 rows would hold both gate and up rows, under one scale'
    """
    if form not in FORMS:
        return f"the format {form!r} is none of {', '.join(FORMS)}"
    if activations and form == "nf4":
        return "NF4 is for weights only; give activations=False"
    why_not = unsupported(dtype, device)
    if why_not:
        return why_not
    if form == "fp8" and not INTERPRETED and torch.cuda.get_device_capability() < (8, 9):
        return "this GPU does not know E4M3 (compute capability 8.9 or later does)"
    values = 32 if form == "nf4" else 16
    for letter, width in (("D", D), ("F", F)):
        if width % values or width < values:
            return f"{letter} = {width} makes rows that are not of whole 16 bytes; it needs a multiple of {values}"
    if form == "fp8" and F % quant_rows.BLOCK:
        return (
            f"F = {F} is not a multiple of 128: a block of 128 rows would hold both gate and up rows, under one scale"
        )
    return ""


def experts(
    x_TD: Tensor, topk_ids_TK: Tensor, topk_scores_TK: Tensor, gate_up: Tensor, gate_up_scale: Tensor, down: Tensor,
    down_scale: Tensor, *, form: str, activations: bool = False,
) -> Tensor:  # fmt: skip
    """Each token through its quantised experts, on Triton kernels; not differentiable.

    Args:
        x_TD: [T, D], float32, float16 or bfloat16. topk_ids_TK: [T, K] int64 or int32; an id outside 0 … E − 1 is a
            dropped pair, which adds nothing. topk_scores_TK: [T, K], any floating point.
        gate_up, gate_up_scale, down, down_scale: codes [E, 2F, D] (gate rows first) and [E, D, F], and float32 scales:
            "int8": int8; a scale for each row, [E, 2F] and [E, D].
            "fp8": float8_e4m3fn; a scale for 128 × 128 weights, [E, 2F/128, ⌈D/128⌉] and [E, ⌈D/128⌉, F/128].
            "nf4": uint8, two columns a byte, the even one in the high half: [E, 2F, D/2] and [E, D, F/2]; the largest
            of each 64 columns, [E, 2F, ⌈D/64⌉] and [E, D, ⌈F/64⌉].
        activations: quantise what goes into the products too.

    Returns [T, D] in x's dtype; equal inputs give equal bits. A value that is not finite makes NaN of its own token at
    most. Raises ValueError for sizes and dtypes that do not fit, for what `refuses` names, and where a gradient would
    be needed.
    """
    packed = 2 if form == "nf4" else 1
    D, F = down.shape[-2:] if down.ndim == 3 else (0, 0)
    why_not = refuses(form, x_TD.dtype, x_TD.device.type, D, F * packed, activations=activations)
    if why_not:
        raise ValueError(f"the Triton kernels cannot compute these experts: {why_not}")
    _check(x_TD, topk_ids_TK, topk_scores_TK, gate_up, gate_up_scale, down, down_scale, form)
    if torch.is_grad_enabled() and (x_TD.requires_grad or topk_scores_TK.requires_grad):
        raise ValueError("quantised experts have no gradients; call them under torch.no_grad()")
    call = _forward if watched() else _compute
    return call(x_TD, topk_ids_TK, topk_scores_TK, gate_up, gate_up_scale, down, down_scale, form, activations)


def _compute(
    x_TD: Tensor, topk_ids_TK: Tensor, topk_scores_TK: Tensor, gate_up: Tensor, gate_up_scale: Tensor, down: Tensor,
    down_scale: Tensor, form: str, activations: bool,
) -> Tensor:  # fmt: skip
    x, ids, scores, *weights = (
        tensor.contiguous() for tensor in (x_TD, topk_ids_TK, topk_scores_TK, gate_up, gate_up_scale, down, down_scale)
    )
    if ids.numel() == 0:
        return torch.zeros_like(x)
    if activations:
        return _both_quantised(x, ids, scores, *weights, form)
    first, second = weights[:2], weights[2:]
    if len(x) <= PAIRS:
        hidden = quant_pairs.gate_up_pairs(x, ids, *first, form)
        return quant_pairs.down_tokens(hidden, ids, scores, *second, form)
    rows = ids.numel() / len(down)
    if rows >= MANY and _bytes_whole(first[0], form, x.dtype) <= WHOLE:
        return _made_whole(x, ids, scores, first, second, form)
    tile = _tile(rows, x)
    places = expert_map(ids, len(down), tile.block_m)
    hidden = quant_few.gate_up_tiles(x, *first, form, places, tile)
    return combine(quant_few.down_tiles(hidden, *second, form, places, tile), places.place_TK, scores)


def _made_whole(x: Tensor, ids: Tensor, scores: Tensor, gate_up: list[Tensor], down: list[Tensor], form: str) -> Tensor:
    tile, _ = tiles(x.dtype, ids.numel() / len(down[0]), x.device)
    places = expert_map(ids, len(down[0]), tile.block_m)
    hidden, _ = wide_gate_up(x, widen(*gate_up, form, x.dtype), places, tile, save=False)
    y = rows_times(hidden, widen(*down, form, x.dtype), places, tile, gather=False, transposed=True)
    return combine(y, places.place_TK, scores)


def _bytes_whole(codes: Tensor, form: str, dtype: torch.dtype) -> int:
    return codes.numel() * (2 if form == "nf4" else 1) * dtype.itemsize


def _both_quantised(
    x: Tensor, ids: Tensor, scores: Tensor, gate_up: Tensor, gate_up_scale: Tensor, down: Tensor, down_scale: Tensor,
    form: str,
) -> Tensor:  # fmt: skip
    if form == "fp8" and not why_plain(x.device.index or 0):
        from labkit.kernels import quant_mm_hopper as hopper

        places = expert_map(ids, len(down), hopper.TILE.block_m)
        rows = quant_rows.fp8_rows_in_order(x, places.place_TK)
        rows = hopper.gate_up_fp8(*rows, gate_up, gate_up_scale, places)
        y = hopper.down_fp8(*rows, down, down_scale, places, x.dtype)
        return combine(y, places.place_TK, scores)
    tile = _tile(None, x)
    places = expert_map(ids, len(down), tile.block_m)
    if form == "fp8":
        rows = quant_mm.gate_up_fp8(*quant_rows.fp8_rows(x), gate_up, gate_up_scale, places, tile)
        y = quant_mm.down_fp8(*rows, down, down_scale, places, tile, x.dtype)
    else:
        hidden = quant_mm.gate_up_int8(*quant_rows.int8_rows(x), gate_up, gate_up_scale, places, tile, x.dtype)
        y = quant_mm.down_int8(*quant_rows.int8_rows(hidden), down, down_scale, places, tile, x.dtype)
    return combine(y, places.place_TK, scores)


@functools.cache
def why_plain(device: int = 0) -> str:
    """Why FP8 on both sides is computed by plain Triton and not by `quant_mm_hopper`; empty if it is not."""
    if INTERPRETED:
        return "kernels are interpreted, which warps with different jobs cannot be"
    capability = torch.cuda.get_device_capability(device)
    if capability[0] != 9:
        return f"compute capability is {capability[0]}.{capability[1]}; the kernels are for Hopper, 9.0"
    try:
        importlib.import_module("labkit.kernels.quant_mm_hopper")
    except ImportError as error:
        return f"Triton {triton.__version__} has not the Gluon that the kernels are written in (3.6 has): {error}"
    return ""


_forward = torch.library.custom_op("labkit::quant_experts", _compute, mutates_args=())


@_forward.register_fake
def _(x_TD, topk_ids_TK, topk_scores_TK, gate_up, gate_up_scale, down, down_scale, form, activations):
    return x_TD.new_empty(x_TD.shape)


@register_flop_formula(torch.ops.labkit.quant_experts)
def _flops(x_TD, topk_ids_TK, topk_scores_TK, gate_up, gate_up_scale, down, *_, **__) -> int:
    """Multiplications and additions of the products, whatever they are computed in."""
    return 3 * math.prod(topk_ids_TK) * gate_up[1] * x_TD[1]


def _tile(rows: float | None, x: Tensor) -> Tile:
    """The tile for so many rows of an average expert; None: both sides quantised. x: the tokens."""
    kind = "both" if rows is None else "few" if rows <= FEW else "some" if rows <= SOME else "many"
    if INTERPRETED:
        return _INTERPRETED[kind]
    return (_TILES if x.dtype != torch.float32 and _wide(x.device.index or 0) else _SMALLER)[kind]


@functools.cache
def _wide(device: int) -> bool:
    """Whether a program may have the shared memory that Hopper's tiles take."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin >= 227 * 1024


def _check(
    x: Tensor, ids: Tensor, scores: Tensor, gate_up: Tensor, gate_up_scale: Tensor, down: Tensor, down_scale: Tensor,
    form: str,
) -> None:  # fmt: skip
    E, D = down.shape[:2]
    F = down.shape[2] * (2 if form == "nf4" else 1)
    shapes = {}
    for name, R, C in (("gate_up", 2 * F, D), ("down", D, F)):
        shapes[name] = (E, R, C // 2 if form == "nf4" else C)
        shapes[f"{name}_scale"] = {
            "int8": (E, R), "fp8": (E, -(-R // 128), -(-C // 128)), "nf4": (E, R, -(-C // 64))
        }[form]  # fmt: skip
    given = {"gate_up": gate_up, "gate_up_scale": gate_up_scale, "down": down, "down_scale": down_scale}
    for name, tensor in given.items():
        dtype = torch.float32 if name.endswith("scale") else FORMS[form]
        if tuple(tensor.shape) != shapes[name] or tensor.dtype != dtype:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} {tensor.dtype}; {form} with down {tuple(down.shape)} needs "
                f"{shapes[name]} {dtype}"
            )
    T = len(x)
    if x.ndim != 2 or x.shape[1] != D:
        raise ValueError(f"x_TD is {tuple(x.shape)}; the experts' width is {D}, give [T, {D}]")
    if ids.ndim != 2 or len(ids) != T or ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"topk_ids_TK is {tuple(ids.shape)} {ids.dtype}; give [{T}, K] int64 or int32")
    if scores.shape != ids.shape or not scores.is_floating_point():
        raise ValueError(
            f"topk_scores_TK is {tuple(scores.shape)} {scores.dtype}; give floating point {tuple(ids.shape)}"
        )
    elsewhere = {t.device for t in (x, ids, scores, *given.values())}
    if len(elsewhere) > 1:
        raise ValueError(f"the tensors are on {', '.join(sorted(map(str, elsewhere)))}; put them on one device")
