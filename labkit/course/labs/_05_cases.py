"""Lab 05: right answers, as `reveal` shows them, and the inputs they are compared on."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.attempt import Case


def _normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def _positions(*starts: int, S: int) -> Tensor:
    """A row of S positions from each start."""
    return torch.tensor(starts)[:, None] + torch.arange(S)


# -------------------------------------------------------------------------------------------------------------- rope


def rope(x_BHSd: Tensor, positions_BS: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    d = x_BHSd.shape[-1]
    frequencies = theta ** (-torch.arange(0, d, 2, device=x_BHSd.device) / d)
    angles = positions_BS[:, None, :, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    if interleaved:
        first, second = x_BHSd[..., 0::2], x_BHSd[..., 1::2]
    else:
        first, second = x_BHSd.chunk(2, dim=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


def rope_cases(seed: int) -> list[Case]:
    ones = torch.ones(1, 1, 3, 4)
    padded = torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])
    return [
        Case((ones, _positions(0, S=3)), label="three positions, two pairs"),
        Case((ones, _positions(0, S=3), 10_000.0, True), label="pairs of neighbours"),
        Case((_normal(seed, 2, 3, 5, 6), _positions(0, 7, S=5)), label="rows that begin at different positions"),
        Case((_normal(seed + 1, 2, 3, 5, 6), _positions(3, 0, S=5), 10_000.0, True), label="the same by neighbours"),
        Case((_normal(seed + 2, 2, 2, 5, 8), padded, 500.0), label="left padding, another theta"),
        Case((_normal(seed + 3, 1, 1, 4, 2), _positions(5, S=4), 100.0, True), label="one pair"),
        Case((_normal(seed + 4, 3, 2, 1, 10), _positions(301, 31, 0, S=1)), label="one new token each, far out"),
        Case((_normal(seed + 5, 2, 4, 4, 4), _positions(1, 2, S=4)), label="as many heads as positions"),
        Case((_normal(seed + 6, 1, 2, 3, 4), _positions(2, S=3), 50.0, True), label="gradients flow", needs_grad=True),
    ]


# ------------------------------------------------------------------------------------------------------- cache_bytes


def cache_bytes(
    attention: str, num_layers: int, num_heads: int, head_dim: int, positions: int = 1, *, num_kv_heads: int = 1,
    kv_rank: int = 0, rope_dim: int = 0, window: int = 0, window_layers: int = 0, bytes_per_value: int = 2,
) -> int:  # fmt: skip
    kv_heads = {"mha": num_heads, "gqa": num_kv_heads, "mqa": 1}
    if attention == "mla":
        values = kv_rank + rope_dim
    elif attention in kv_heads:
        values = 2 * kv_heads[attention] * head_dim
    else:
        raise ValueError(f"attention is {attention!r}; give mha, gqa, mqa or mla")
    seen = (num_layers - window_layers) * positions + window_layers * min(positions, window)
    return seen * values * bytes_per_value


def cache_cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    G = draw.randint(2, 4)
    layers, heads, d = draw.randint(2, 5), 3 * G, 2 * draw.randint(3, 9)
    latent = {"kv_rank": 4 * d, "rope_dim": d - 2}
    half = {"num_kv_heads": G, "window": 4, "window_layers": 2}
    return [
        Case(("gqa", 1, 6, 4), {"num_kv_heads": 3}, label="one layer, grouped queries"),
        Case(("mha", 1, 6, 4), {"num_kv_heads": 3}, label="every query head has its own keys and values"),
        Case(("mqa", 3, 6, 4), {"num_kv_heads": 3}, label="one pair for all heads"),
        Case(("mla", 2, 6, 4), {"num_kv_heads": 6, "kv_rank": 8, "rope_dim": 2}, label="latent and rotary key"),
        Case(("mla", layers, heads, d, 7), {**latent, "bytes_per_value": 4}, label="float32, seven positions"),
        Case(("gqa", layers, heads, d, 5), {"num_kv_heads": G, "bytes_per_value": 1}, label="8-bit, five positions"),
        Case(("gqa", 5, heads, d, 11), half, label="two of five layers have a window of 4"),
        Case(("gqa", 5, heads, d, 3), half, label="fewer positions than the window holds"),
        Case(("mha", 4, heads, d, 9), {"window": 2, "window_layers": 4}, label="every layer has a window"),
        Case(("mla", 61, 128, 192), {"num_kv_heads": 128, "kv_rank": 512, "rope_dim": 64}, label="DeepSeek-V3"),
        Case(("sparse", 2, 4, 8), label="an unknown kind: ValueError"),
    ]


# -------------------------------------------------------------------------------------------------------------- mask


def mask(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    K = real_BK.shape[1]
    key_K = torch.arange(K, device=real_BK.device)
    query_S1 = key_K[K - num_queries :, None]
    seen_SK = key_K <= query_S1
    if window:
        seen_SK = seen_SK & (key_K > query_S1 - window)
    seen_BSK = (seen_SK & real_BK[:, None, :]) | (key_K == query_S1)
    return seen_BSK[:, None]


def mask_cases(seed: int) -> list[Case]:
    drawn = torch.rand(3, 9, generator=torch.Generator().manual_seed(seed)) < 0.7
    whole, left = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[False, False, True, True, True], [True] * 5])
    right = torch.tensor([[True, True, True, False, False], [True, False, False, False, False]])
    return [
        Case((whole, 4), label="causal, nothing else"),
        Case((whole, 2), label="two new queries, two cached keys"),
        Case((whole, 1), label="one new query sees all"),
        Case((left, 5), label="left padding"),
        Case((right, 5), label="right padding"),
        Case((left, 2), label="left padding and a cache"),
        Case((whole, 4, 2), label="a window of two"),
        Case((left, 5, 3), label="a window over padding"),
        Case((whole, 3, 1), label="a window of one"),
        Case((left, 3, 9), label="a window wider than the sequence"),
        Case((drawn, 7, 4), label="holes, a cache and a window"),
    ]


# --------------------------------------------------------------------------------------------------------------- mla


def mla(
    x_BSD: Tensor, query_HdD: Tensor, kv_down_CD: Tensor, norm_R: Tensor, kv_up_HER: Tensor, positions_BS: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    R = len(norm_R)
    r = len(kv_down_CD) - R
    n = query_HdD.shape[1] - r
    query_BHSd = torch.einsum("bsD,hdD->bhsd", x_BSD, query_HdD)
    query_BHSd = torch.cat([query_BHSd[..., :n], rope(query_BHSd[..., n:], positions_BS, interleaved=True)], dim=-1)

    latent_BSR, rotary_BSr = (x_BSD @ kv_down_CD.T).split([R, r], dim=-1)
    latent_BSR = F.rms_norm(latent_BSR, (R,), norm_R, eps=1e-6)
    rotary_B1Sr = rope(rotary_BSr[:, None], positions_BS, interleaved=True)

    up_BHSE = torch.einsum("bsR,heR->bhse", latent_BSR, kv_up_HER)
    key_BHSn, value_BHSv = up_BHSE[..., :n], up_BHSE[..., n:]
    key_BHSd = torch.cat([key_BHSn, rotary_B1Sr.expand(-1, len(query_HdD), -1, -1)], dim=-1)
    y_BHSv = F.scaled_dot_product_attention(query_BHSd, key_BHSd, value_BHSv, is_causal=True)
    return y_BHSv, latent_BSR, rotary_B1Sr[:, 0]


def mla_cases(seed: int) -> list[Case]:
    def layer(at: int, D: int, H: int, n: int, r: int, v: int, R: int) -> tuple[Tensor, ...]:
        down, norm = _normal(at + 1, R + r, D, scale=D**-0.5), 1 + 0.5 * _normal(at + 2, R)
        up = _normal(at + 3, H, n + v, R, scale=R**-0.5)
        return _normal(at, H, n + r, D, scale=2 * D**-0.5), down, norm, up

    return [
        Case((_normal(seed, 1, 2, 3), *layer(seed + 1, 3, 1, 1, 2, 2, 2), _positions(0, S=2)), label="two tokens"),
        Case((_normal(seed + 5, 2, 5, 6), *layer(seed + 6, 6, 3, 4, 2, 5, 7), _positions(0, 0, S=5)), label="3 heads"),
        Case(
            (_normal(seed + 10, 2, 4, 5), *layer(seed + 11, 5, 2, 3, 4, 3, 6), _positions(2, 40, S=4)),
            label="keys as wide as values, rows at different positions",
        ),
        Case(
            (_normal(seed + 15, 1, 6, 8), *layer(seed + 16, 8, 4, 2, 6, 2, 3), _positions(9, S=6)),
            label="more rotary dimensions than others",
        ),
        Case((_normal(seed + 20, 3, 1, 4), *layer(seed + 21, 4, 2, 2, 2, 3, 4), _positions(5, 1, 0, S=1)), label="S=1"),
        Case(
            (_normal(seed + 25, 1, 3, 4), *layer(seed + 26, 4, 2, 2, 2, 3, 4), _positions(1, S=3)),
            label="gradients flow", needs_grad=True,
        ),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ absorb


def absorb(
    query_BHd: Tensor, latent_BKR: Tensor, rotary_BKr: Tensor, kv_up_HER: Tensor, seen_BK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    d, r = query_BHd.shape[-1], rotary_BKr.shape[-1]
    n = d - r
    query_BHn, query_BHr = query_BHd[..., :n], query_BHd[..., n:]
    up_key_HnR, up_value_HvR = kv_up_HER[:, :n], kv_up_HER[:, n:]

    folded_BHR = torch.einsum("bhn,hnR->bhR", query_BHn, up_key_HnR)
    scores_BHK = (folded_BHR @ latent_BKR.mT + query_BHr @ rotary_BKr.mT) * d**-0.5
    shares_BHK = scores_BHK.masked_fill(~seen_BK[:, None], float("-inf")).softmax(dim=-1)
    read_BHR = shares_BHK @ latent_BKR
    return torch.einsum("bhR,hvR->bhv", read_BHR, up_value_HvR), folded_BHR, read_BHR


def absorb_cases(seed: int) -> list[Case]:
    def step(at: int, B: int, H: int, K: int, n: int, r: int, v: int, R: int) -> tuple[Tensor, ...]:
        up = _normal(at + 3, H, n + v, R, scale=R**-0.5)
        return _normal(at, B, H, n + r, scale=2.0), _normal(at + 1, B, K, R), _normal(at + 2, B, K, r), up

    def all_of(B: int, K: int) -> Tensor:
        return torch.ones(B, K, dtype=torch.bool)

    left = torch.tensor([[False, False, False, True, True, True], [True] * 6])
    return [
        Case((*step(seed, 1, 1, 3, 1, 2, 2, 2), all_of(1, 3)), label="one head, three positions"),
        Case((*step(seed + 5, 2, 3, 6, 4, 2, 5, 7), all_of(2, 6)), label="three heads"),
        Case((*step(seed + 10, 2, 2, 6, 3, 4, 5, 6), left), label="left padding"),
        Case((*step(seed + 15, 1, 4, 5, 3, 2, 3, 3), all_of(1, 5)), label="n, v and R are equal"),
        Case((*step(seed + 20, 3, 2, 1, 2, 2, 3, 4), all_of(3, 1)), label="the first token: K = 1"),
        Case((*step(seed + 25, 1, 5, 9, 2, 6, 4, 3), all_of(1, 9)), label="the rank is small"),
        Case((*step(seed + 30, 2, 2, 6, 2, 2, 3, 4), left), label="gradients flow", needs_grad=True),
    ]
