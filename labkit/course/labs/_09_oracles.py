"""Lab 09's oracles: torch's split and grouped_mm with its gradients, transformers' experts, Triton's own tile order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.core.config import MoEConfig
from labkit.course.attempt import Case
from labkit.course.labs._language import tl, triton
from labkit.kernels.guard import Instead, Out
from labkit.nn.oracle import hf_experts


def tile_map(tokens_per_expert_E: Tensor, block_m: int) -> tuple[Tensor, Tensor]:
    """Torch cuts the rows into experts' shares, and each share into tiles."""
    device = tokens_per_expert_E.device
    rows_N = torch.arange(int(tokens_per_expert_E.sum()), device=device)
    shares = rows_N.split(tokens_per_expert_E.tolist())
    tiles = [(e, tile[0]) for e, share in enumerate(shares) if len(share) for tile in share.split(block_m)]
    experts, rows = zip(*tiles, strict=True) if tiles else ((), ())
    both = (experts, [int(row) for row in rows])
    expert_M, row_M = (torch.tensor(values, dtype=torch.int64, device=device) for values in both)
    return expert_M, row_M


@triton.jit
def _swizzle(row_ptr, column_ptr, rows, columns, GROUP: tl.constexpr):
    tile = tl.program_id(0)
    row, column = tl.swizzle2d(tile // columns, tile % columns, rows, columns, GROUP)
    tl.store(row_ptr + tile, row)
    tl.store(column_ptr + tile, column)


def tile_order(tile_M: Tensor, rows: int, columns: int, group: int) -> tuple[Tensor, Tensor]:
    """Triton's swizzle2d, for all tiles of the grid; then those that were asked for."""
    from labkit.kernels.language import INTERPRETED

    device = "cpu" if INTERPRETED else "cuda"
    row, column = (torch.empty(rows * columns, dtype=torch.int32, device=device) for _ in range(2))
    _swizzle[(rows * columns,)](row, column, rows, columns, GROUP=group)
    return row.cpu().long()[tile_M], column.cpu().long()[tile_M]


def _ends(offsets: Tensor) -> Tensor:
    return offsets[1:].contiguous()


def _gather(
    x: Tensor, tokens: Tensor, weights: Tensor, out: Out, expert: Tensor, row: Tensor, column: Tensor, offsets: Tensor,
    D: int, W: int, **blocks: int,
) -> Tensor:  # fmt: skip
    return F.grouped_mm(x[tokens.long()].float(), weights.float().mT, offs=_ends(offsets))


def _swiglu_epilogue(
    x: Tensor, tokens: Tensor, gate_up: Tensor, pre: Out | None, hidden: Out, expert: Tensor, row: Tensor,
    column: Tensor, offsets: Tensor, D: int, width: int, SAVE: bool, **blocks: int,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Mixtral's experts with a down matrix of ones on its diagonal: what comes out is what would have gone into it."""
    E, x_ND = len(gate_up), x[tokens.long()].float()
    of_row = torch.arange(E).repeat_interleave(offsets.diff())[:, None]
    config = MoEConfig(d_model=D, d_expert=width, num_experts=E, top_k=1)
    down = torch.eye(D, width).expand(E, D, width)
    out = hf_experts("mixtral", config, x_ND, of_row, torch.ones(len(x_ND), 1), gate_up.float(), down)[:, :width]
    if not SAVE:
        return out
    return F.grouped_mm(x_ND, gate_up.float().mT, offs=_ends(offsets)), out


def _weight_gradient(
    x: Tensor, y: Tensor, tokens: Tensor, offsets: Tensor, out: Out, D: int, W: int, d_stride: int, w_stride: int,
    **blocks: int,
) -> Tensor:  # fmt: skip
    """The gradient that torch finds by itself: of Σ y · (rows · weights), by the weights."""
    E = len(offsets) - 1
    weights = torch.zeros(E, D, W, requires_grad=True)
    with torch.enable_grad():
        product = F.grouped_mm(x[tokens.long()].float(), weights, offs=_ends(offsets))
        (gradient,) = torch.autograd.grad(product, weights, y.float())
    return gradient if w_stride == 1 else gradient.mT.contiguous()


gather, swiglu_epilogue, weight_gradient = (Instead(c) for c in (_gather, _swiglu_epilogue, _weight_gradient))


def multiples_of_four(case: Case) -> bool:
    """Whether torch's grouped_mm takes these widths, whose rows must be multiples of 16 bytes."""
    sizes = [size for size in case.args if isinstance(size, int)]
    return sizes[0] % 4 == 0 and sizes[1] % 4 == 0


def narrow(case: Case) -> bool:
    """Whether the experts' inner width fits into the outer one, so that a diagonal can carry it out."""
    return case.args[-1] <= case.args[-2]
