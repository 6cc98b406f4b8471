"""Multi-head latent attention: keys and values come from one small latent, and only that is cached.

DeepSeek-V2 (arXiv 2405.04434, section 2.1). Expanded, every latent becomes keys and values of all heads. Absorbed, the
key's matrix moves into the query and the value's into the output, so that heads read the latents themselves: less work
for a step of decoding, more for a long prompt. Both are the same function.

Shape suffixes: B batch, S sequence, K positions attended, D model width, H heads, R latent rank, r rotary width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from labkit.core.config import ModelConfig
from labkit.nn.precision import in_autocast_dtype, normed
from labkit.nn.rope import rotate, softmax_scale
from labkit.nn.sdpa import attend

if TYPE_CHECKING:
    from labkit.nn.cache import KVCache

LATENT_EPS = 1e-6  # DeepSeek's code and transformers' leave the inner norms at this, whatever the model's epsilon


class LatentAttention(nn.Module):
    """Latent attention of one layer.

    Args:
        config: of the model, with its `mla_*` widths.
        layer: its number, the cache's key.

    Parameters: `query`, or `query_down`, `query_norm`, `query_up` with a query rank; `kv_down` to R + r, `kv_norm`,
    `kv_up` to every head's key and value; `output`.
    `absorbed`: True or False decides the form; None takes the absorbed one for single steps with a cache. A cache that
    attends by itself knows that form only.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        c, self.layer = config, layer
        self.config, self.scale = config, softmax_scale(config)
        self.absorbed: bool | None = None
        if c.mla_q_rank:
            self.query_down = nn.Linear(c.d_model, c.mla_q_rank, bias=c.attention_bias)
            self.query_norm = nn.RMSNorm(c.mla_q_rank, eps=LATENT_EPS)
            self.query_up = nn.Linear(c.mla_q_rank, c.num_heads * c.head_dim, bias=False)
        else:
            self.query = nn.Linear(c.d_model, c.num_heads * c.head_dim, bias=False)
        self.kv_down = nn.Linear(c.d_model, c.mla_kv_rank + c.mla_rope_dim, bias=c.attention_bias)
        self.kv_norm = nn.RMSNorm(c.mla_kv_rank, eps=LATENT_EPS)
        self.kv_up = nn.Linear(c.mla_kv_rank, c.num_heads * (c.mla_nope_dim + c.mla_v_dim), bias=False)
        self.output = nn.Linear(c.num_heads * c.mla_v_dim, c.d_model, bias=c.attention_bias)

    def forward(
        self, x_BSD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None = None
    ) -> Tensor:
        """[B, S, D] to the same; cos, sin of `rope_tables`, mask of `attention_mask` (None: causal)."""
        c, (B, S, _) = self.config, x_BSD.shape
        x_BSD = in_autocast_dtype(x_BSD)
        query = self.query_up(normed(self.query_down(x_BSD), self.query_norm)) if c.mla_q_rank else self.query(x_BSD)
        query_BHSd = query.view(B, S, c.num_heads, c.head_dim).transpose(1, 2)
        nope_BHSn, rope_BHSr = query_BHSd.split([c.mla_nope_dim, c.mla_rope_dim], dim=-1)
        latent_BSR, key_BSr = self.kv_down(x_BSD).split([c.mla_kv_rank, c.mla_rope_dim], dim=-1)
        latent_BKR, turn = normed(latent_BSR, self.kv_norm), (cos, sin, c.rope_interleaved)
        if cache is not None and cache.attends:
            y_BHSv = self._paged(nope_BHSn, rope_BHSr, latent_BKR, key_BSr, cache, turn)
            return self.output(y_BHSv.transpose(1, 2).reshape(B, S, -1))
        rope_BHSr = rotate(rope_BHSr, *turn).to(query.dtype)
        key_BKr = rotate(key_BSr[:, None], *turn)[:, 0].to(query.dtype)
        if cache is not None:
            latent_BKR, key_BKr = (t.to(query.dtype) for t in cache.update(self.layer, latent_BKR, key_BKr))
        absorbed = cache is not None and S == 1 if self.absorbed is None else self.absorbed
        form = self._absorbed if absorbed else self._expanded
        y_BHSv = form(nope_BHSn, rope_BHSr, latent_BKR, key_BKr, mask)
        return self.output(y_BHSv.transpose(1, 2).reshape(B, S, -1))

    def _expanded(self, nope: Tensor, rope: Tensor, latent_BKR: Tensor, key_BKr: Tensor, mask: Tensor | None) -> Tensor:
        """Every head's keys and values, made from the latents."""
        c = self.config
        up = self.kv_up(latent_BKR).unflatten(-1, (c.num_heads, -1)).transpose(1, 2)
        key_BHKn, value_BHKv = up.split([c.mla_nope_dim, c.mla_v_dim], dim=-1)
        shared = key_BKr[:, None].expand(-1, c.num_heads, -1, -1)
        key_BHKd = torch.cat([key_BHKn, shared.to(key_BHKn.dtype)], dim=-1)
        return attend(torch.cat([nope, rope], dim=-1), key_BHKd, value_BHKv, mask, scale=self.scale)

    def _absorbed(self, nope: Tensor, rope: Tensor, latent_BKR: Tensor, key_BKr: Tensor, mask: Tensor | None) -> Tensor:
        """All heads read one key, the latent with the rotary key beside it, whose latent part is the value too."""
        up_HnR, up_HvR = self._ups(nope.dtype)
        query_BHSd = torch.cat([nope @ up_HnR, rope], dim=-1)
        key_B1Kd = torch.cat([latent_BKR, key_BKr], dim=-1)[:, None]
        y_BHSd = attend(query_BHSd, key_B1Kd, key_B1Kd, mask, scale=self.scale)
        return y_BHSd[..., : self.config.mla_kv_rank] @ up_HvR.mT

    def _paged(self, nope: Tensor, rope: Tensor, latent_BSR: Tensor, key_BSr: Tensor, cache: Any, turn: Any) -> Tensor:
        """The same with a cache that attends by itself, to more than it was given."""
        if self.absorbed is False:
            raise ValueError("a paged cache is read in the absorbed form; leave `absorbed` at None, or set it to True")
        up_HnR, up_HvR = self._ups(nope.dtype)
        query_BHSd = torch.cat([nope @ up_HnR, rope], dim=-1)
        y_BHSR = cache.attend_latent(self.layer, query_BHSd, latent_BSR, key_BSr, scale=self.scale, turn=turn)
        return y_BHSR @ up_HvR.mT

    def _ups(self, dtype: torch.dtype) -> Iterable[Tensor]:
        """The matrices that make keys, [H, n, R], and values, [H, v, R], of latents."""
        up_HdR = self.kv_up.weight.to(dtype).unflatten(0, (self.config.num_heads, -1))
        return up_HdR.split([self.config.mla_nope_dim, self.config.mla_v_dim], dim=1)
