"""NF4 in slow, obvious torch: sixteen levels that suit normal weights, a scale for every 64; and scales of scales.

QLoRA (Dettmers et al. 2023, arXiv 2305.14314, section 3 and appendix E). Codes equal bitsandbytes' where rows are whole
blocks; where they are not, our blocks end with the row, theirs go on into the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.kernels.quant import Packed, blocks, check_weight, spread

BLOCK = 64
SCALES = 256  # scales that share a scale of their own
_SMALL = 1e-38  # what bitsandbytes divides by in a block of zeros
# QLoRA, appendix E: quantiles of N(0, 1) scaled to [−1, 1], with an exact zero.
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class _FourBit(Packed):
    """What both records do with `codes`, `absmax`, `columns` and `block`."""

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.codes.shape[:-1], self.columns))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return _dequantize(self.codes, self.absmax, self.columns, self.block).to(dtype)

    def rows(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return _dequantize(self.codes[ids], self.absmax[ids], self.columns, self.block).to(dtype)


@dataclass(frozen=True, eq=False)
class NF4(_FourBit):
    """Two codes a byte.

    Args:
        codes: [..., R, ⌈C/2⌉] uint8, the even column in the high half.
        absmax: [..., R, ⌈C/block⌉] float32.
        columns: C.
        block: columns that share a scale.
    """

    codes: Tensor
    absmax: Tensor
    columns: int
    block: int = BLOCK


@dataclass(frozen=True, eq=False)
class NF4Double(_FourBit):
    """NF4 whose scales, less their mean, are in eight bits themselves: 4.127 bits a weight in place of 4.5.

    Args:
        codes: [..., R, ⌈C/2⌉] uint8; columns, block: as in `NF4`.
        absmax_codes: [..., R, ⌈C/block⌉] uint8, numbers of `dynamic_levels()`.
        absmax_scale: [..., ⌈scales/256⌉] float32, over a matrix's scales row by row.
        offset: [...] float32, a matrix's mean scale.
    """

    codes: Tensor
    absmax_codes: Tensor
    absmax_scale: Tensor
    offset: Tensor
    columns: int
    block: int = BLOCK

    @property
    def absmax(self) -> Tensor:
        """[..., R, ⌈C/block⌉] float32, made whole."""
        levels = dynamic_levels().to(self.codes.device)[self.absmax_codes.flatten(-2).long()]
        wide = spread(self.absmax_scale, SCALES, levels.shape[-1])
        return (levels * wide + self.offset[..., None]).view(self.absmax_codes.shape)


def nf4(w: Tensor, block: int = BLOCK, *, absmax: Tensor | None = None) -> NF4:
    """The nearest of sixteen levels, for every weight over the largest of its block.

    Args:
        w: [..., R, C], floating point, finite. block: columns that share a scale, even; the last may be fewer.
        absmax: in the record's shape, to clip at other values than the largest.

    Raises ValueError for other weights and blocks.

    >>> packed = nf4(torch.tensor([[1.0, -2.0, 0.5, 0.0]]))
    >>> [f"{byte:08b}" for byte in packed.codes[0].tolist()], packed.absmax.tolist()
    (['11000000', '10100111'], [[2.0]])
    """
    check_weight(w)
    if block < 2 or block % 2:
        raise ValueError(f"block is {block}; give an even number of columns (two codes share a byte)")
    C, parts = w.shape[-1], blocks(w.detach().float(), block)
    if absmax is None:
        absmax = parts.abs().amax(-1)
    scaled = (parts * (1.0 / absmax.clamp_min(_SMALL))[..., None]).clamp(-1, 1).flatten(-2)[..., : C + C % 2]
    levels = torch.tensor(LEVELS, device=w.device)
    code = _nearest(scaled, levels)
    return NF4(code[..., ::2] << 4 | code[..., 1::2], absmax, C, block)


def nf4_double(w: Tensor, block: int = BLOCK, *, absmax: Tensor | None = None) -> NF4Double:
    """NF4 with double quantisation (QLoRA, section 3): arguments as `nf4`.

    The codes are chosen by the scales as they were before those were quantised, as in QLoRA's own code.
    """
    single = nf4(w, block, absmax=absmax)
    flat = single.absmax.flatten(-2)
    offset = torch.stack([part.mean() for part in flat.reshape(-1, flat.shape[-1])]).view(flat.shape[:-1])
    parts = blocks(flat - offset[..., None], SCALES)
    scale = parts.abs().amax(-1)
    levels = dynamic_levels().to(w.device)
    scaled = (parts * (1.0 / scale.clamp_min(_SMALL))[..., None]).flatten(-2)[..., : flat.shape[-1]]
    codes = _nearest(scaled, levels)
    return NF4Double(single.codes, codes.view(single.absmax.shape), scale, offset, single.columns, block)


@cache
def dynamic_levels() -> Tensor:
    """The 256 levels of the signed eight-bit dynamic type: the smaller the number, the fewer bits for its digits.

    Decade d of seven, down from [0.1, 1], is cut into 2^(6−d) equal steps on either side of zero, each worth its
    middle; 0 and 1 are exact (Dettmers 2015, arXiv 1511.04561, section 3; as bitsandbytes has it).

    >>> levels = dynamic_levels()
    >>> len(levels), levels[-1].item(), (levels == 0).sum().item(), round(levels[0].item(), 4)
    (256, 1.0, 1, -0.993)
    """
    found = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (6 - decade) + 1)
        middles = 10.0**-decade * ((edges[:-1] + edges[1:]) / 2)
        found += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(found))


def _nearest(values: Tensor, levels: Tensor) -> Tensor:
    """The number of the nearest of these rising levels, uint8, in the values' shape."""
    return torch.bucketize(values.contiguous(), (levels[:-1] + levels[1:]) / 2).to(torch.uint8)


def _dequantize(codes: Tensor, absmax: Tensor, columns: int, block: int) -> Tensor:
    levels = torch.tensor(LEVELS, device=codes.device)
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=-1)  # a byte's two levels
    whole = F.embedding(codes.int(), pairs).flatten(-2)[..., :columns]
    if columns % block:
        return whole * spread(absmax, block, columns)
    return (whole.unflatten(-1, (-1, block)) * absmax[..., None]).flatten(-2)
