"""INT8 in slow, obvious torch: what a packed weight is, the absmax formats, and the products they define.

Weights are [..., R, C]: R rows (outputs), C columns (inputs, what a product sums over). Leading dimensions are experts.
Every matrix is quantised by itself, so `packed[e]` is expert e's and equals what e alone would have become.
Weights that are not finite are refused; in activations a value that is not finite makes its token's result NaN.
`kernels.nf4` and `kernels.fp8` hold the other formats. Left out on purpose: asymmetric formats with a zero point.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 127  # symmetric: −127 to 127; −128 is not used, so that zero is in the middle
Per = Literal["tensor", "row", "group"]


@dataclass(frozen=True, eq=False)
class Packed:
    """A quantised weight: tensors that are stored, settings that are not, and how to read both.

    Subclasses say `dequantize`. All tensors share the leading dimensions, so that indexing picks an expert's.
    """

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        return {name: value for name, value in self._items() if isinstance(value, Tensor)}

    @property
    def settings(self) -> dict[str, Any]:
        """What is known without being stored: plain values."""
        return {name: value for name, value in self._items() if not isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors' memory."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors.values())

    @property
    def shape(self) -> torch.Size:
        """[..., R, C] of the weight that was packed."""
        raise NotImplementedError

    def __getitem__(self, expert: int) -> Self:
        """The same format, one matrix less deep; a view."""
        return type(self)(**{name: tensor[expert] for name, tensor in self.tensors.items()}, **self.settings)

    def __len__(self) -> int:
        return self.shape[0]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[..., R, C] in `dtype`, computed in float32."""
        raise NotImplementedError

    def rows(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows of one matrix, [...] whole numbers to [..., C] in `dtype`: what an embedding looks up."""
        raise NotImplementedError

    def _items(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


@dataclass(frozen=True, eq=False)
class Int8(Packed):
    """Absmax INT8: a code is round(127·w / absmax) of what it shares a scale with.

    Args:
        codes: [..., R, C] int8, from −127 to 127.
        absmax: float32; [..., 1, 1] per tensor, [..., R, 1] per row, [..., R, ⌈C/group⌉] per group.
        group: columns that share a scale; 0: all of them.
    """

    codes: Tensor
    absmax: Tensor
    group: int = 0

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @cached_property
    def scale(self) -> Tensor:
        """What a code is worth, float32, in absmax's shape."""
        return self.absmax * (1 / LEVELS)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        absmax = spread(self.absmax, self.group, self.shape[-1]) if self.group else self.absmax
        return (self.codes.float() * absmax * (1 / LEVELS)).to(dtype)

    def rows(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        absmax = self.absmax if len(self.absmax) == 1 else self.absmax[ids]
        return Int8(self.codes[ids], absmax, self.group).dequantize(dtype)


def int8(w: Tensor, per: Per = "row", group: int = 128, *, absmax: Tensor | None = None) -> Int8:
    """Absmax INT8 (Dettmers et al. 2022, arXiv 2208.07339, section 2.1; per row: "vector-wise").

    Args:
        w: [..., R, C], floating point, finite.
        per: what shares a scale: a matrix ("tensor"), a row, or `group` neighbours of a row (the last may be fewer).
        absmax: in the record's shape, to clip at other values than the largest; what lies beyond becomes ±127.

    Raises ValueError for other weights, another `per` or a group below 1.

    >>> packed = int8(torch.tensor([[1.0, -2.0], [0.0, 0.0]]))
    >>> packed.codes.tolist(), packed.absmax.tolist()
    ([[64, -127], [0, 0]], [[2.0], [0.0]])
    """
    check_weight(w)
    if per not in ("tensor", "row", "group"):
        raise ValueError(f"per is {per!r}; choose 'tensor', 'row' or 'group'")
    if per == "group" and group < 1:
        raise ValueError(f"group is {group}; give the number of columns that share a scale, 1 or more")
    w, C = w.detach().float(), w.shape[-1]
    if absmax is None:
        parts = blocks(w, group).abs().amax(-1) if per == "group" else w.abs().amax(-1, keepdim=True)
        absmax = parts.amax(-2, keepdim=True) if per == "tensor" else parts
    wide = spread(absmax, group, C) if per == "group" else absmax
    codes = (w * (LEVELS / _nonzero(wide))).round().clamp(-LEVELS, LEVELS).to(torch.int8)
    return Int8(codes, absmax, group if per == "group" else 0)


@dataclass(frozen=True, eq=False)
class Rows:
    """Activations in INT8, a scale for every token.

    Args:
        codes: [T, C] int8; absmax: [T, 1] float32, NaN for a token with a value that is not finite.
        columns: int64, those that stay in high precision; their codes are zero. None: not looked for.
    """

    codes: Tensor
    absmax: Tensor
    columns: Tensor | None = None


def int8_rows(x_TC: Tensor, threshold: float = 0.0) -> Rows:
    """Tokens in INT8, apart from the columns in which some token reaches `threshold` in size (0: all columns).

    Each token's scale comes from what is smaller than the threshold (LLM.int8, arXiv 2208.07339, section 3.2).

    >>> rows = int8_rows(torch.tensor([[1.0, 0.5, 60.0], [1.0, -2.0, 0.0]]), threshold=6.0)
    >>> rows.codes.tolist(), rows.columns.tolist()
    ([[127, 64, 0], [64, -127, 0]], [2])
    """
    check_tokens(x_TC)
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold}; give 0 (no outliers) or more")
    x_TC, columns = x_TC.float(), None
    if threshold:
        outlier_TC = x_TC.abs() >= threshold
        columns = outlier_TC.any(0).nonzero().flatten()
        x_TC = x_TC.masked_fill(outlier_TC, 0.0)
    absmax = x_TC.abs().amax(-1, keepdim=True)
    codes = (x_TC * (LEVELS / _nonzero(absmax))).round().nan_to_num(0.0).to(torch.int8)
    if threshold:
        codes[:, columns] = 0
    return Rows(codes, absmax.masked_fill(~absmax.isfinite(), float("nan")), columns)


def weight_only(x: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
    """[..., C] times a packed [R, C], made whole in x's dtype first: [..., R]."""
    check_product(x, packed)
    return F.linear(x, packed.dequantize(x.dtype), bias)


def int8_product(x: Tensor, packed: Int8, bias: Tensor | None = None, *, threshold: float = 0.0) -> Tensor:
    """Both sides in INT8, whole numbers summed exactly, then both scales: [..., C] times [R, C] to [..., R].

    Args:
        x: floating point; quantised here, a scale for every token. packed: per row.
        threshold: above 0, columns with outliers are taken out and multiplied in x's dtype, with the weights' codes
            made whole (LLM.int8, arXiv 2208.07339, equation 8; published with 6.0). 0: none (W8A8).

    Raises ValueError for weights that are not per row.
    """
    check_product(x, packed)
    R, C = packed.shape
    if packed.absmax.shape != (R, 1):
        raise ValueError(
            f"this product wants a scale for every row, absmax {(R, 1)}, and got {tuple(packed.absmax.shape)}; "
            "quantise the weights with per='row'"
        )
    x_TC = x.reshape(-1, C)
    rows = int8_rows(x_TC, threshold)
    sums_TR = (rows.codes.double() @ packed.codes.double().mT).float()  # exact: below 2**53
    y_TR = sums_TR * (rows.absmax * packed.absmax.mT) * (1 / LEVELS**2)
    if bias is not None:
        y_TR = y_TR + bias.float()
    y_TR = y_TR.to(x.dtype)
    if rows.columns is not None and rows.columns.numel():
        apart = Int8(packed.codes[:, rows.columns], packed.absmax).dequantize(x.dtype)
        y_TR = y_TR.addmm(x_TC[:, rows.columns], apart.mT)
    return y_TR.reshape(*x.shape[:-1], R)


def blocks(x: Tensor, width: int) -> Tensor:
    """[..., C] to [..., ⌈C/width⌉, width]; the last block is filled with zeros.

    >>> blocks(torch.ones(1, 3), 2).tolist()
    [[[1.0, 1.0], [1.0, 0.0]]]
    """
    return F.pad(x, (0, -x.shape[-1] % width)).unflatten(-1, (-1, width))


def spread(scale: Tensor, width: int, columns: int) -> Tensor:
    """A scale for every block to one for every column: [..., ⌈C/width⌉] to [..., C].

    >>> spread(torch.tensor([1.0, 2.0]), 2, 3).tolist()
    [1.0, 1.0, 2.0]
    """
    return scale.repeat_interleave(width, -1)[..., :columns]


def check_weight(w: Tensor) -> None:
    """Raise ValueError unless w is a matrix or a stack of them, floating point, not empty, and finite."""
    if w.ndim < 2 or w.numel() == 0 or not w.is_floating_point():
        raise ValueError(f"a weight is {tuple(w.shape)} {w.dtype}; give floating point [..., R, C], not empty")
    if not w.is_meta and not w.isfinite().all():
        bad = int((~w.isfinite()).sum())
        raise ValueError(f"{bad} of {w.numel()} weights are NaN or infinite; no scale can hold them. Mend them first")


def check_tokens(x_TC: Tensor) -> None:
    """Raise ValueError unless x is [T, C] in floating point."""
    if x_TC.ndim != 2 or not x_TC.is_floating_point():
        raise ValueError(f"x_TC is {tuple(x_TC.shape)} {x_TC.dtype}; give floating point [T, C]")


def _nonzero(absmax: Tensor) -> Tensor:
    """Where everything is zero, or too small for a scale that can be inverted, the codes shall be zero or small."""
    return absmax.clamp_min(torch.finfo(torch.float32).tiny)


def check_product(x: Tensor, packed: Packed) -> None:
    """Raise ValueError unless x is [..., C] and the packed weight one matrix [R, C]."""
    if len(packed.shape) != 2 or x.shape[-1:] != packed.shape[1:]:
        raise ValueError(
            f"x is {tuple(x.shape)} and the packed weight {tuple(packed.shape)}; expected [..., C] and [R, C] "
            "(take one expert of several: packed[e])"
        )
