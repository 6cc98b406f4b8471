"""What attention keeps of the tokens it has seen: keys and values, or one latent and one rotary key (MLA).

Preallocated, contiguous, one row for each sequence. Left out on purpose: blocks and sharing (see `serve.cache`); layers
with a sliding window keep everything too.

Shape suffixes: B batch, H key and value heads, S positions, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.core.config import ModelConfig


class KVCache:
    """The cache of all layers of one model.

    Args:
        config: of the model; batch: B; capacity: positions that fit.
        dtype, device: of the tensors.

    `attends` is False: attention asks for what is cached and computes by itself (`serve.cache.paged` has another kind).
    `length` positions are filled. `reads` counts the cached positions that were handed back, summed over layers: what
    was not computed again. Made for decoding under `torch.no_grad`.

    Raises ValueError for sizes below one.

    >>> from labkit.core.presets import preset
    >>> cache = KVCache(preset("deepseek-v2-lite"), batch=1, capacity=2)
    >>> cache.bytes_per_token == 27 * (512 + 64) * 4
    True
    """

    attends = False

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch < 1 or capacity < 1:
            raise ValueError(f"batch is {batch} and capacity {capacity}; give 1 or more")
        self.batch, self.capacity = batch, capacity
        self.length, self.reads = 0, 0
        if config.attention == "mla":
            shapes = (batch, capacity, config.mla_kv_rank), (batch, capacity, config.mla_rope_dim)
        else:
            shapes = ((batch, config.num_kv_heads, capacity, config.head_dim),) * 2
        self.layers = [
            tuple(torch.zeros(shape, dtype=dtype, device=device) for shape in shapes) for _ in range(config.num_layers)
        ]

    def update(self, layer: int, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Write what a layer made of new positions; give everything that it has, the new ones last.

        Args:
            layer: its number.
            first, second: keys and values [B, H, S, d], or the latent [B, S, rank] and the rotary key [B, S, rope].

        Returns views of the cache in its dtype. Raises ValueError if they do not fit, saying the capacity.
        """
        if not 0 <= layer < len(self.layers):
            raise ValueError(f"layer is {layer}; this cache has layers 0 to {len(self.layers) - 1}")
        S = first.shape[-2]
        end = self.length + S
        if end > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} positions and {self.length} are filled; {S} more do not fit: make it "
                "with a larger capacity"
            )
        kept = self.layers[layer]
        fresh = tuple(zip(kept, (first, second), strict=True))
        for store, new in fresh:
            if new.shape != (*store.shape[:-2], S, store.shape[-1]):
                raise ValueError(
                    f"layer {layer} was given {tuple(new.shape)} for a cache of {tuple(store.shape)}; is it of this "
                    "model and batch?"
                )
        for store, new in fresh:
            store[..., self.length : end, :] = new
        self.reads += self.length
        return kept[0][..., :end, :], kept[1][..., :end, :]

    def advance(self, S: int) -> None:
        """Count S positions as filled, once every layer has written them."""
        self.length += S

    def cut(self, length: int) -> None:
        """Forget what stands after the first `length` positions. Raises ValueError for more than are filled."""
        if not 0 <= length <= self.length:
            raise ValueError(f"length is {length}; give 0 to {self.length}, the positions that are filled")
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, filled or not."""
        return sum(store.nbytes for kept in self.layers for store in kept)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one position of one sequence takes, over all layers."""
        return self.nbytes // (self.batch * self.capacity)
