"""Scales by what they cost: for every scale, the share of the largest weight that leaves the smallest error in outputs.

The error of an output is the weights' errors times the inputs. With inputs that go their own ways, its expected square
is the sum over columns of the squared error times the inputs' mean square: the diagonal of the Hessian that GPTQ uses
(Frantar et al. 2022, arXiv 2210.17323, section 3). Clipping trades the largest weights' error for everyone else's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.kernels import nf4
from labkit.kernels.quant import Packed, blocks
from labkit.nn.quant.schemes import Scheme

RATIOS = tuple(round(1 - 0.025 * step, 3) for step in range(17))
"""The shares of the largest weight that are tried: 1 down to 0.6."""


def clipped(w: Tensor, scheme: Scheme, moment: Tensor) -> Packed:
    """A weight packed with the best scales of `RATIOS`.

    Args:
        w: [..., R, C]. moment: the inputs' mean square, [C] or [..., C]; where it is all zero, nothing is clipped.
    """
    flat = w.detach().reshape(-1, *w.shape[-2:])
    moments = moment.expand(*w.shape[:-2], w.shape[-1]).reshape(len(flat), -1)
    best = [_best(matrix.float(), scheme, weight_C) for matrix, weight_C in zip(flat, moments, strict=True)]
    return scheme.packed(w, absmax=torch.stack(best).view(*w.shape[:-2], *best[0].shape))


def _best(w_RC: Tensor, scheme: Scheme, moment_C: Tensor) -> Tensor:
    options = dict(scheme.pack_options)
    pack = nf4.nf4 if scheme.pack is nf4.nf4_double else scheme.pack
    largest = pack(w_RC, **options).absmax
    best, least = largest, None
    for ratio in RATIOS:
        packed = pack(w_RC, **options, absmax=largest * ratio)
        error = _by_scale((packed.dequantize() - w_RC).square() * moment_C, packed)
        if least is None:
            least = error
        best = torch.where(error < least, largest * ratio, best)
        least = torch.minimum(error, least)
    return best


def _by_scale(error_RC: Tensor, packed: Packed) -> Tensor:
    """Sums over what shares a scale, in the shape of the scales."""
    shape = packed.absmax.shape
    width = packed.block if isinstance(packed, nf4.NF4) else packed.group or error_RC.shape[-1]
    sums = blocks(error_RC, width).sum(-1)
    return sums.sum().view(1, 1) if shape == (1, 1) else sums
