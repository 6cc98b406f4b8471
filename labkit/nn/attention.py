"""Attention with grouped queries (Ainslie et al. 2023, arXiv 2305.13245), on torch's scaled dot-product attention.

Equal numbers of heads make it multi-head attention, one key head multi-query attention. `labkit.nn.latent` holds MLA.

Shape suffixes: B batch, S sequence, D model width, H query heads, G key and value heads, d head width, K keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.core.config import ModelConfig
from labkit.kernels.dispatch import Choice
from labkit.nn.rope import rotate, softmax_scale

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
        query, key, value = self.query(x_BSD), self.key(x_BSD), self.value(x_BSD)
        if self.config.qk_norm == "full":
            query, key = self.query_norm(query), self.key_norm(key)
        query, key, value = (t.view(B, S, -1, self.config.head_dim).transpose(1, 2) for t in (query, key, value))
        if self.config.qk_norm == "head":
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = (rotate(t, cos, sin, self.config.rope_interleaved).to(value.dtype) for t in (query, key))
        if cache is not None:
            key, value = (t.to(query.dtype) for t in cache.update(self.layer, key, value))
        y_BHSd = attend(query, key, value, mask, scale=self.scale, sinks=self.sinks)
        return self.output(y_BHSd.transpose(1, 2).reshape(B, S, -1))


def attend(
    query_BHSd: Tensor,
    key_BGKd: Tensor,
    value_BGKd: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax of scaled products, times the values (Vaswani et al. 2017, equation 1).

    Args:
        query_BHSd: [B, H, S, d]; key_BGKd: [B, G, K, d]; value_BGKd: [B, G, K, any width]; G divides H.
        mask: bool, True where a query may look; None: causal, the queries being the last of the keys.
        scale: of the products before the softmax.
        sinks: [H], one more logit in each head's softmax, with a value of zero.

    Returns [B, H, S, value's width].
    """
    S = query_BHSd.shape[-2]
    if sinks is not None:
        mask, key_BGKd, value_BGKd = _with_sinks(query_BHSd, key_BGKd, value_BGKd, mask, sinks)
    grouped = query_BHSd.shape[1] != key_BGKd.shape[1]
    return F.scaled_dot_product_attention(
        query_BHSd, key_BGKd, value_BGKd, attn_mask=mask, is_causal=mask is None and S > 1, scale=scale,
        enable_gqa=grouped,
    )  # fmt: skip


def _with_sinks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sinks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One more key of zeros, whose score is therefore the mask's own term: the sink's logit."""
    S, K = query.shape[-2], key.shape[-2]
    if mask is None:
        mask = torch.ones(S, K, dtype=torch.bool, device=query.device).tril(K - S)[None, None]
    seen = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, float("-inf"))
    bias = seen.expand(query.shape[0], query.shape[1], S, K)
    sink = sinks.to(query.dtype)[None, :, None, None].expand(query.shape[0], -1, S, 1)
    return torch.cat([bias, sink], dim=-1), F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))


def backend(query_BHSd: Tensor, key_BGKd: Tensor, value_BGKd: Tensor, mask: Tensor | None = None) -> Choice:
    """Which backend torch's attention takes for these tensors, and why no faster one.

    The order asked is torch's own: FlashAttention, memory-efficient, then plain products ("math").

    >>> x = torch.zeros(1, 2, 4, 8)
    >>> backend(x, x, x).name
    'cpu'
    """
    if query_BHSd.device.type != "cuda":
        return Choice("cpu", "on the CPU torch has one fused implementation for every mask, and plain products else")
    from torch.backends import cuda

    causal, grouped = mask is None and query_BHSd.shape[-2] > 1, query_BHSd.shape[1] != key_BGKd.shape[1]
    params = cuda.SDPAParams(query_BHSd, key_BGKd, value_BGKd, mask, 0.0, causal, grouped)
    tried = []
    asked = (
        ("flash", cuda.flash_sdp_enabled(), cuda.can_use_flash_attention),
        ("efficient", cuda.mem_efficient_sdp_enabled(), cuda.can_use_efficient_attention),
    )
    for name, enabled, possible in asked:
        if enabled and possible(params):
            return Choice(name, "; ".join(tried) or "the first choice supports this")
        why = _why_not(name, query_BHSd, value_BGKd, mask) if enabled else "it is switched off"
        tried.append(f"{name} cannot: {why}")
    return Choice("math", "; ".join(tried))


def _why_not(name: str, query: Tensor, value: Tensor, mask: Tensor | None) -> str:
    if name == "flash" and mask is not None:
        return "it takes no mask, only causality"
    if name == "flash" and query.dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16, not {str(query.dtype).removeprefix('torch.')}"
    if query.shape[-1] != value.shape[-1]:
        return f"queries are {query.shape[-1]} wide and values {value.shape[-1]}"
    return f"head width {query.shape[-1]}, dtype or shapes are not among those it supports"


from labkit.nn.latent import LatentAttention  # noqa: E402 (it needs `attend`)
