"""The tensors of the paged cache, and attention over them: what a `Transformer` is given instead of a `KVCache`.

A model then runs over a flat batch: the tokens of many sequences in one row, [1, T], each with its own position. Where
they stand is said once a step, by a `Layout`; who holds which block is the `BlockPool`'s business.

Shape suffixes: T tokens, H query heads, G key and value heads, d head width, R latent rank, r rotary width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from labkit.core.config import ModelConfig
from labkit.core.whole import need_whole
from labkit.kernels import paged_attention as kernel
from labkit.kernels.paged_layout import Layout
from labkit.nn.rope import rotate

__all__ = ["Layout", "PagedCache"]

Turn = tuple[Tensor, Tensor, bool]


class PagedCache:
    """Blocks of keys and values, or of latents (MLA), of all layers of one model.

    Args:
        config: of the model; num_blocks, block_size: as the scheduler's limits say.
        dtype, device: of the tensors.

    `layers` has a tuple for each layer: keys and values [num_blocks + 1, block_size, G, d], or one tensor of latents
    with the rotary key beside each, [num_blocks + 1, block_size, 1, R + r]. The last block belongs to nobody: the
    padding of a batch may be written there. Made for inference under `torch.no_grad`.

    Raises ValueError for sizes below one.

    >>> from labkit.core.presets import preset
    >>> cache = PagedCache(preset("deepseek-v2-lite"), num_blocks=2, block_size=4)
    >>> cache.bytes_per_token == 27 * (512 + 64) * 4
    True
    """

    attends = True
    length = 0  # of what stands before the batch for all alike: positions come with each token

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        need_whole("num_blocks", num_blocks)
        need_whole("block_size", block_size)
        self.config, self.num_blocks, self.block_size = config, num_blocks, block_size
        self.layout: Layout | None = None
        parts, heads, width = 2, config.num_kv_heads, config.head_dim
        if config.attention == "mla":
            parts, heads, width = 1, 1, config.mla_kv_rank + config.mla_rope_dim
        shape = (config.num_layers, parts, num_blocks + 1, block_size, heads, width)
        self.entries = torch.zeros(shape, dtype=dtype, device=device)
        self.layers = [layer.unbind(0) for layer in self.entries.unbind(0)]

    @contextmanager
    def using(self, layout: Layout) -> Iterator[PagedCache]:
        """Inside the block, forward passes are over this flat batch."""
        before, self.layout = self.layout, layout
        try:
            yield self
        finally:
            self.layout = before

    def advance(self, S: int) -> None:
        """Nothing to count: the scheduler knows how far each sequence is."""

    def attend(
        self,
        layer: int,
        query_1HTd: Tensor,
        key_1GTd: Tensor,
        value_1GTd: Tensor,
        *,
        scale: float,
        sinks: Tensor | None = None,
        turn: Turn | None = None,
    ) -> Tensor:
        """Write what a layer made of the step's tokens, then let each of them attend to its own sequence.

        Args:
            layer: its number.
            query_1HTd: [1, H, T, d]; key_1GTd, value_1GTd: [1, G, T, d].
            scale: of the products; sinks: [H] or None.
            turn: what `nn.rope.rotate` takes, for queries (which may change in place) and keys; None: they are turned.

        Returns [1, H, T, d], laid out [1, T, H, d] in memory. Raises ValueError if it is not of this model, or no
        layout is set.
        """
        layout, stores = self._ready(layer, query_1HTd, key_1GTd)
        if len(stores) != 2:
            raise ValueError("this cache holds latents; its model attends by attend_latent")
        fresh = key_1GTd[0].transpose(0, 1), value_1GTd[0].transpose(0, 1)
        query_THd = _written(layout, query_1HTd[0].transpose(0, 1), stores, fresh, turn)
        window = self.config.sliding_window if self.config.slides(layer) else 0
        y_THd = kernel.attend(query_THd, *stores, layout, scale=scale, window=window, sinks=sinks)
        return y_THd.transpose(0, 1)[None]

    def attend_latent(
        self,
        layer: int,
        query_1HTd: Tensor,
        latent_1TR: Tensor,
        key_1Tr: Tensor,
        *,
        scale: float,
        turn: Turn | None = None,
    ) -> Tensor:
        """The same for latent attention in its absorbed form: all heads read the latents themselves.

        Args:
            layer: its number.
            query_1HTd: [1, H, T, R + r], the key's matrix inside; the last r turn.
            latent_1TR: [1, T, R]; key_1Tr: [1, T, r].
            scale: of the products; turn: as for `attend`.

        Returns [1, H, T, R], of latents. Raises ValueError as `attend` does.
        """
        layout, stores = self._ready(layer, query_1HTd, key_1Tr[:, None])
        if len(stores) != 1:
            raise ValueError("this cache holds keys and values; its model attends by attend")
        store, R = stores[0], latent_1TR.shape[-1]
        query_THd, fresh = query_1HTd[0].transpose(0, 1), (key_1Tr[0, :, None], latent_1TR[0, :, None])
        tail_THr = _written(layout, query_THd[..., R:], (store[..., R:], store[..., :R]), fresh, turn)
        if tail_THr.data_ptr() != query_THd[..., R:].data_ptr():
            query_THd = torch.cat([query_THd[..., :R], tail_THr], dim=-1)
        y_THR = kernel.attend(query_THd, store, store[..., :R], layout, scale=scale)
        return y_THR.transpose(0, 1)[None]

    def _ready(self, layer: int, query_1HTd: Tensor, key_1GTd: Tensor) -> tuple[Layout, tuple[Tensor, ...]]:
        if self.layout is None:
            raise ValueError("nobody said where the tokens stand; run the model inside `with cache.using(layout):`")
        if not 0 <= layer < len(self.layers):
            raise ValueError(f"layer is {layer}; this cache has layers 0 to {len(self.layers) - 1}")
        T = len(self.layout.positions_T)
        if len(query_1HTd) != 1 or query_1HTd.shape[2] != T or key_1GTd.shape[2] != T:
            raise ValueError(
                f"layer {layer} was given queries {tuple(query_1HTd.shape)} and keys {tuple(key_1GTd.shape)}; expected "
                f"one row of the layout's {T} tokens"
            )
        return self.layout, self.layers[layer]

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks in all layers, (from, to) each: all are read, then all written.

        Raises ValueError for a block that does not exist, or two copies into one.
        """
        if not pairs:
            return
        source, target = zip(*pairs, strict=True)
        if not all(0 <= block < self.num_blocks for block in (*source, *target)):
            raise ValueError(f"copies are {list(pairs)}; the blocks are 0 to {self.num_blocks - 1}")
        if len(set(target)) != len(target):
            raise ValueError(f"copies are {list(pairs)}, two of them into one block")
        both_2P = torch.tensor([source, target])
        if self.entries.is_cuda:
            both_2P = both_2P.pin_memory()
        source_P, target_P = both_2P.to(self.entries.device, non_blocking=True)
        self.entries.index_copy_(2, target_P, self.entries.index_select(2, source_P))

    def lose(self) -> None:
        """Forget everything, as if the memory had gone: all entries are NaN."""
        self.entries.fill_(torch.nan)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, filled or not."""
        return self.entries.nbytes

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one position of one sequence takes, over all layers."""
        return self.nbytes // ((self.num_blocks + 1) * self.block_size)


def _written(
    layout: Layout,
    query_THr: Tensor,
    stores: tuple[Tensor, Tensor],
    fresh: tuple[Tensor, Tensor],
    turn: Turn | None,
) -> Tensor:
    """Write two entries of each token; turn the first of them and the queries before, which are returned."""
    if turn is not None:
        if kernel.turn_and_write(query_THr, stores, fresh, turn, layout):
            return query_THr
        turned = (rotate(t.transpose(0, 1)[None], *turn)[0].transpose(0, 1) for t in (query_THr, fresh[0]))
        query_THr, key_TGr = (t.to(fresh[1].dtype) for t in turned)
        fresh = key_TGr, fresh[1]
    kernel.write(stores, fresh, layout)
    return query_THr
