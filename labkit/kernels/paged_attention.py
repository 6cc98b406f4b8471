"""Attention over a paged cache, for a flat batch of many sequences: what must come out, in torch, and who computes it.

A store holds entries in blocks, and a table says which blocks are a sequence's. A token sees the entries of its own
sequence up to its own position, and in a sliding window only the last of them. Kwon et al. 2023, PagedAttention (arXiv
2309.06180), section 4.1. On a GPU, `paged_decode`, `paged_prefill` and `paged_write` compute the same.

Shape suffixes: T tokens, H query heads, G key and value heads, d head width, v value width; A blocks of a store, b
positions in each; n sequences computed together, S tokens of each, K positions that they may see; s heads that share
keys, R = s · S.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.kernels.choice import Choice, Forced
from labkit.kernels.paged_layout import Layout
from labkit.kernels.paged_padded import Padded, padded

__all__ = ["Layout", "attend", "choose", "force", "turn_and_write", "write"]

Turn = tuple[Tensor, Tensor, bool]
NAMES = ("triton", "torch")
CACHED = 1 << 18  # numbers copied for one padded call: still in a core's cache when it computes
_forced = Forced("paged_attention")


@contextlib.contextmanager
def force(name: str) -> Iterator[None]:
    """Inside the block this implementation runs, "triton" or "torch", in this thread or task only."""
    if name not in NAMES:
        raise ValueError(f"implementation is {name!r}; choose one of {', '.join(NAMES)}")
    with _forced.to(name):
        yield


def choose(query_THd: Tensor, key_AbGd: Tensor, value_AbGv: Tensor) -> Choice:
    """Which implementation `attend` runs with these, and why. Raises ValueError if the forced one cannot.

    >>> choose(torch.zeros(1, 2, 8), torch.zeros(3, 4, 2, 8), torch.zeros(3, 4, 2, 8))
    Choice(name='torch', reason='the tensors are on cpu')
    """
    if _forced.name == "torch":
        return Choice("torch", "forced")
    if not _forced.name and query_THd.device.type != "cuda":
        return Choice("torch", f"the tensors are on {query_THd.device.type}")
    why_not = _triton_refuses(query_THd, key_AbGd, value_AbGv)
    if _forced.name and why_not:
        raise ValueError(f"the Triton kernels cannot compute this: {why_not}")
    if why_not:
        return Choice("torch", f"triton cannot: {why_not}")
    return Choice("triton", "forced" if _forced.name else "the first choice supports this")


def _triton_refuses(query_THd: Tensor, key_AbGd: Tensor, value_AbGv: Tensor) -> str:
    if find_spec("triton") is None:
        return 'Triton is not installed; pip install "labkit[gpu]"'
    from labkit.kernels.paged_tiles import refuses

    return refuses(query_THd, key_AbGd, value_AbGv)


def write(stores: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor], layout: Layout) -> None:
    """Put the two entries of each of the step's tokens into their rows, in the store's dtype.

    Args:
        stores: two of [A, b, any heads, any width], contiguous, or parts of the width of one that is.
        fresh: [T, heads, width] for each, any strides.
        layout: says the rows.
    """
    if _moves(stores, fresh):
        from labkit.kernels.paged_write import write as move

        move(stores, fresh, layout.rows_T)
        return
    for store, new in zip(stores, fresh, strict=True):
        store.flatten(0, 1).index_copy_(0, layout.rows_T, new.to(store.dtype))


def turn_and_write(
    query_THr: Tensor, stores: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor], turn: Turn, layout: Layout
) -> bool:
    """Turn queries in place by their positions, write the two entries as `write` does, the first of them turned.

    Args:
        query_THr: [T, H, r].
        stores, fresh, layout: as for `write`; the first entry is r wide.
        turn: cosines and sines [1, T, r / 2] of `nn.rope.rope_tables`, and whether pairs are neighbours.

    Returns whether it was done: there is a kernel for it, and no specification but `nn.rope.rotate`.
    """
    if not _writes_on(fresh[0]):
        return False
    from labkit.kernels.paged_turn import refuses
    from labkit.kernels.paged_turn import turn_and_write as both

    if refuses(query_THr, stores, fresh, turn):
        return False
    both(query_THr, query_THr, stores, fresh, turn, layout.rows_T)
    return True


def _moves(stores: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor]) -> bool:
    """Whether the kernel writes."""
    if not _writes_on(fresh[0]):
        return False
    from labkit.kernels.paged_write import refuses

    return not refuses(stores, fresh)


def _writes_on(fresh: Tensor) -> bool:
    """Whether kernels are wanted."""
    return _forced.name == "triton" or (_forced.name is None and fresh.is_cuda and find_spec("triton") is not None)


def attend(
    query_THd: Tensor,
    key_AbGd: Tensor,
    value_AbGv: Tensor,
    layout: Layout,
    *,
    scale: float,
    window: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax of scaled products with the entries that each token sees, times the values.

    Args:
        query_THd: [T, H, d]; G divides H.
        key_AbGd: [A, b, G, d]; value_AbGv: [A, b, G, v], or the first v numbers of the keys themselves, as in latent
            attention (`key_AbGd[..., :v]`).
        layout: whose entries; they are written before.
        scale: of the products before the softmax.
        window: a token sees the last `window` positions, itself among them; 0: all.
        sinks: [H], one more logit in each head's softmax, with a value of zero.

    Returns [T, H, v] in the queries' dtype; zeros for an empty place. What stands in rows that nobody sees does not
    matter, were it no number. Raises ValueError for shapes that do not fit.

    >>> from types import SimpleNamespace as Chunk
    >>> layout = Layout.of([Chunk(start=1, tokens=(7,), blocks=(2, 0))], block_size=1)
    >>> store = torch.tensor([3.0, 9.0, 1.0]).view(3, 1, 1, 1)
    >>> attend(torch.zeros(1, 2, 1), store, store, layout, scale=1.0).flatten().tolist()
    [2.0, 2.0]
    """
    check(query_THd, key_AbGd, value_AbGv, layout, window, sinks)
    compute = _triton if choose(query_THd, key_AbGd, value_AbGv).name == "triton" else _torch
    return compute(query_THd, key_AbGd, value_AbGv, layout, scale, window, sinks)


def _triton(query_THd, key_AbGd, value_AbGv, layout: Layout, scale, window, sinks) -> Tensor:
    """Tokens that are alone in their sequence by one kernel, the others by another."""
    from labkit.kernels.paged_decode import decode
    from labkit.kernels.paged_prefill import prefill

    shape, all_decode = (*query_THd.shape[:2], value_AbGv.shape[-1]), layout.decodes == len(query_THd)
    out_THv = query_THd.new_empty(shape) if all_decode else query_THd.new_zeros(shape)
    how = {"scale": scale, "window": window, "sinks": sinks}
    if layout.decodes:
        decode(out_THv, query_THd, key_AbGd, value_AbGv, layout, **how)
    if not all_decode:
        prefill(out_THv, query_THd, key_AbGd, value_AbGv, layout, **how)
    return out_THv


def _torch(query_THd, key_AbGd, value_AbGv, layout: Layout, scale, window, sinks) -> Tensor:
    """A few padded calls of torch's own attention."""
    out_THv = query_THd.new_zeros(*query_THd.shape[:2], value_AbGv.shape[-1])
    most = CACHED // (key_AbGd.shape[2] * key_AbGd.shape[3])
    batches = padded(layout, key_AbGd.shape[1], window, most)
    rows = max((batch.rows_nK.numel() for batch in batches), default=0)
    rooms = tuple(_room(layout, part, store, rows) for part, store in enumerate((key_AbGd, value_AbGv)))
    for batch in batches:
        _attend(out_THv, query_THd, key_AbGd, value_AbGv, batch, rooms, scale, sinks)
    return out_THv


def _room(layout: Layout, part: int, store_AbGd: Tensor, rows: int) -> Tensor:
    """Memory for so many rows, the same in all layers of a step: fresh pages cost more than the copy."""
    key = (part, rows, store_AbGd.shape[2:], store_AbGd.dtype)
    if key not in layout.derived:
        layout.derived[key] = store_AbGd.new_empty(rows, *store_AbGd.shape[2:])
    return layout.derived[key]


def _attend(
    out_THv: Tensor, query_THd: Tensor, key_AbGd: Tensor, value_AbGv: Tensor, batch: Padded,
    rooms: tuple[Tensor, Tensor], scale: float, sinks: Tensor | None,
) -> None:  # fmt: skip
    """One padded call; the heads that share keys, and the tokens, are the queries of each key head."""
    (n, S), (H, G) = batch.tokens_nS.shape, (query_THd.shape[1], key_AbGd.shape[2])
    key_nGKd = _entries(key_AbGd, batch.rows_nK, rooms[0], query_THd.dtype)
    latent = key_AbGd.data_ptr() == value_AbGv.data_ptr()
    value_nGKv = key_nGKd if latent else _entries(value_AbGv, batch.rows_nK, rooms[1], query_THd.dtype)
    tokens, shared = batch.tokens_nS.flatten(), H // G
    query_nSGsd = query_THd.index_select(0, tokens).view(n, S, G, shared, -1)
    rows_nGRd = query_nSGsd.permute(0, 2, 3, 1, 4).reshape(n, G, shared * S, -1)
    mask_n1RK = (batch.mask_nSK if S == 1 else batch.mask_nSK.repeat(1, shared, 1))[:, None]
    if sinks is None:
        y_nGRv = F.scaled_dot_product_attention(rows_nGRd, key_nGKd, value_nGKv, attn_mask=mask_n1RK, scale=scale)
    else:
        sinks_GR = sinks.view(G, shared, 1).expand(-1, -1, S).reshape(G, -1)
        y_nGRv = _with_sinks(rows_nGRd, key_nGKd, value_nGKv, mask_n1RK, scale, sinks_GR)
    y_nSGsv = y_nGRv.reshape(n, G, shared, S, -1).permute(0, 3, 1, 2, 4)
    out_THv.index_copy_(0, tokens, y_nSGsv.reshape(n * S, H, -1)[..., : value_AbGv.shape[-1]])


def _entries(store_AbGd: Tensor, rows_nK: Tensor, room: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, G, K, d]: a copy of these rows."""
    found = torch.index_select(store_AbGd.flatten(0, 1), 0, rows_nK.flatten(), out=room[: rows_nK.numel()]).to(dtype)
    return found.view(*rows_nK.shape, *store_AbGd.shape[2:]).transpose(1, 2)


def _with_sinks(rows_nGRd, key_nGKd, value_nGKv, mask_n1RK, scale: float, sinks_GR: Tensor) -> Tensor:
    """The plain formula, at least in float32, with one more column in the softmax."""
    wide = torch.promote_types(rows_nGRd.dtype, torch.float32)
    scores = (rows_nGRd.to(wide) @ key_nGKd.mT.to(wide) * scale).masked_fill_(~mask_n1RK, -torch.inf)
    sink_nGR1 = sinks_GR.to(wide)[None, :, :, None].expand(len(scores), -1, -1, -1)
    weights = torch.cat([scores, sink_nGR1], dim=-1).softmax(-1)[..., :-1]
    return (weights @ value_nGKv.to(wide)).to(rows_nGRd.dtype)


def check(
    query_THd: Tensor, key_AbGd: Tensor, value_AbGv: Tensor, layout: Layout, window: int, sinks: Tensor | None
) -> None:
    """Raise ValueError for shapes that do not fit."""
    shapes = [tuple(t.shape) for t in (query_THd, key_AbGd, value_AbGv)]
    if (
        [len(shape) for shape in shapes] != [3, 4, 4] or shapes[1][:3] != shapes[2][:3]
        or shapes[0][2] != shapes[1][3] or shapes[0][1] % shapes[1][2]
    ):  # fmt: skip
        raise ValueError(
            f"queries, keys and values have shapes {shapes}; expected [T, H, d], [A, b, G, d] and [A, b, G, any width],"
            " with G a divisor of H"
        )
    if shapes[0][0] != len(layout.positions_T):
        raise ValueError(f"there are {shapes[0][0]} queries, the layout has {len(layout.positions_T)} tokens")
    if window < 0:
        raise ValueError(f"window is {window}; give 0 for all, or how many positions are seen")
    if sinks is not None and tuple(sinks.shape) != shapes[0][1:2]:
        raise ValueError(f"sinks has shape {tuple(sinks.shape)}; expected ({shapes[0][1]},), one for each head")
