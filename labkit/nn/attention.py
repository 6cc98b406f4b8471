"""Attention with grouped queries (Ainslie et al. 2023, arXiv 2305.13245), on torch's scaled dot-product attention.

Equal numbers of heads make it multi-head attention, one key head multi-query attention. `labkit.nn.latent` holds MLA.

Shape suffixes: B batch, S sequence, D model width, H query heads, G key and value heads, d head width, K keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from labkit.core.config import ModelConfig
from labkit.kernels.dispatch import Choice
from labkit.nn.latent import LatentAttention
from labkit.nn.precision import in_autocast_dtype, normed
from labkit.nn.rope import rotate, softmax_scale
from labkit.nn.sdpa import attend, backend

if TYPE_CHECKING:
    from labkit.nn.cache import KVCache

__all__ = ["Attention", "Choice", "LatentAttention", "attend", "backend"]


class Attention(nn.Module):
    """Grouped-query attention of one layer.

    Args:
        config: of the model: head counts, biases, norms of queries and keys, sinks.
        layer: its number, the cache's key.

    Parameters: `query`, `key`, `value`, `output` (linear), `query_norm`, `key_norm` (or None), and `sinks` [H] (or
    None): a learned logit that takes part in each head's softmax and stands for nothing (GPT-OSS).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        c, self.layer = config, layer
        D, d, bias = c.d_model, c.head_dim, c.attention_bias
        self.config, self.scale = config, softmax_scale(config)
        self.query = nn.Linear(D, c.num_heads * d, bias=bias)
        self.key = nn.Linear(D, c.num_kv_heads * d, bias=bias)
        self.value = nn.Linear(D, c.num_kv_heads * d, bias=bias)
        self.output = nn.Linear(c.num_heads * d, D, bias=bias)
        widths = {"none": None, "head": (d, d), "full": (c.num_heads * d, c.num_kv_heads * d)}[c.qk_norm]
        self.query_norm = nn.RMSNorm(widths[0], eps=c.norm_eps) if widths else None
        self.key_norm = nn.RMSNorm(widths[1], eps=c.norm_eps) if widths else None
        self.sinks = nn.Parameter(torch.zeros(c.num_heads)) if c.attention_sinks else None

    def forward(
        self, x_BSD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None = None
    ) -> Tensor:
        """[B, S, D] to the same; cos, sin of `rope_tables`, mask of `attention_mask` (None: causal)."""
        B, S, _ = x_BSD.shape
        x_BSD = in_autocast_dtype(x_BSD)
        query, key, value = self.query(x_BSD), self.key(x_BSD), self.value(x_BSD)
        if self.config.qk_norm == "full":
            query, key = normed(query, self.query_norm), normed(key, self.key_norm)
        query, key, value = (t.view(B, S, -1, self.config.head_dim).transpose(1, 2) for t in (query, key, value))
        if self.config.qk_norm == "head":
            query, key = normed(query, self.query_norm), normed(key, self.key_norm)
        turn = cos, sin, self.config.rope_interleaved
        if cache is not None and cache.attends:
            y_BHSd = cache.attend(self.layer, query, key, value, scale=self.scale, sinks=self.sinks, turn=turn)
            return self.output(y_BHSd.transpose(1, 2).reshape(B, S, -1))
        query, key = (rotate(t, *turn).to(value.dtype) for t in (query, key))
        if cache is not None:
            key, value = (t.to(query.dtype) for t in cache.update(self.layer, key, value))
        y_BHSd = attend(query, key, value, mask, scale=self.scale, sinks=self.sinks)
        return self.output(y_BHSd.transpose(1, 2).reshape(B, S, -1))
