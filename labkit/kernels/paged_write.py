"""New entries go into their rows of a paged store: keys and values, or latents and turned keys, in one launch."""

from __future__ import annotations

from torch import Tensor

from labkit.kernels.language import tl, triton, unsupported

COLUMNS = 1024  # numbers that a program moves


@triton.jit
def _move(
    from_ptr, to_ptr, token, row, token_step, head_step, row_step, first,
    G: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = first + tl.arange(0, COLUMNS)
    at = token.to(tl.int64) * token_step + (column // D).to(tl.int64) * head_step + column % D
    fresh = tl.load(from_ptr + at, mask=column < G * D, other=0.0)
    tl.store(to_ptr + row * row_step + column, fresh.to(to_ptr.dtype.element_ty), mask=column < G * D)


@triton.jit(do_not_specialize=["rows_ptr"])
def _write(
    first_ptr, second_ptr, first_to, second_to, rows_ptr,
    first_token, first_head, second_token, second_head, first_row, second_row,
    G: tl.constexpr, D: tl.constexpr, G2: tl.constexpr, D2: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A part of one token's two entries."""
    token, part = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows_ptr + token)
    if part * COLUMNS < G * D:
        _move(first_ptr, first_to, token, row, first_token, first_head, first_row, part * COLUMNS, G, D, COLUMNS)
    if part * COLUMNS < G2 * D2:
        _move(second_ptr, second_to, token, row, second_token, second_head, second_row, part * COLUMNS, G2, D2, COLUMNS)


def refuses(stores: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor]) -> str:
    """Why the kernel cannot move these; empty if it can."""
    for store, new in zip(stores, fresh, strict=True):
        for tensor in (store, new):
            if why_not := unsupported(tensor.dtype, tensor.device.type):
                return why_not
        apart = store.shape[2] > 1 and store.stride(2) != store.shape[3]
        if apart or new.stride(-1) != 1 or store.stride(-1) != 1:
            return "numbers of an entry must lie side by side"
    return ""


def write(stores: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor], rows_T: Tensor) -> None:
    """As `paged_attention.write`, whose arguments these are; nothing waits for the device."""
    (store, other), (new, beside) = stores, fresh
    (T, G, D), (_, G2, D2) = new.shape, beside.shape
    columns = min(COLUMNS, triton.next_power_of_2(max(G * D, G2 * D2)))
    _write[(T, triton.cdiv(max(G * D, G2 * D2), columns))](
        new, beside, store, other, rows_T, new.stride(0), new.stride(1), beside.stride(0), beside.stride(1),
        store.stride(1), other.stride(1), G=G, D=D, G2=G2, D2=D2, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
