"""Lab 05: mistakes in rotating, counting and masking, as a learner's function makes them."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.course.labs import _05_cases as right

# -------------------------------------------------------------------------------------------------------------- rope


def _turn(x: Tensor, angles_BSp: Tensor, interleaved: bool) -> Tensor:
    """Each pair by its angle, [B, S, d/2] or [B, H, S, d/2]."""
    angles = angles_BSp if angles_BSp.ndim == 4 else angles_BSp[:, None]
    cos, sin = angles.cos(), angles.sin()
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


def _frequencies(d: int, theta: float) -> Tensor:
    return theta ** (-torch.arange(0, d, 2) / d)


def rope_always_halves(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    return right.rope(x, positions, theta, False)


def rope_always_neighbours(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    return right.rope(x, positions, theta, True)


def rope_swapped(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    return right.rope(x, positions, theta, not interleaved)


def rope_left_in_halves(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    turned = right.rope(x, positions, theta, interleaved)
    return torch.cat([turned[..., 0::2], turned[..., 1::2]], dim=-1) if interleaved else turned


def rope_backwards(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    return right.rope(x, -positions, theta, interleaved)


def rope_no_rotation(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    """Both halves with a minus."""
    angles = (positions[..., None] * _frequencies(x.shape[-1], theta))[:, None]
    cos, sin = angles.cos(), angles.sin()
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    turned = first * cos - second * sin, second * cos - first * sin
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


def rope_half_exponent(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    d = x.shape[-1]
    return _turn(x, positions[..., None] * theta ** (-torch.arange(d // 2) / d), interleaved)


def rope_growing(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    return _turn(x, positions[..., None] / _frequencies(x.shape[-1], theta), interleaved)


def rope_slow_first(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    return _turn(x, positions[..., None] * _frequencies(x.shape[-1], theta).flip(0), interleaved)


def rope_one_angle(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    return _turn(x, positions[..., None].expand(-1, -1, x.shape[-1] // 2), interleaved)


def rope_theta_fixed(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    return right.rope(x, positions, 10_000.0, interleaved)


def rope_from_zero(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    return right.rope(x, torch.arange(x.shape[2])[None], theta, interleaved)


def rope_first_row(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    return right.rope(x, positions[:1], theta, interleaved)


def rope_from_one(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    return right.rope(x, positions + 1, theta, interleaved)


def rope_along_heads(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    angles = positions[:, :, None, None] * _frequencies(x.shape[-1], theta)
    return _turn(x, angles, interleaved)


def rope_crossed_tables(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    """Full-width tables laid out for the other kind of pairs."""
    angles = positions[..., None] * _frequencies(x.shape[-1], theta)
    wide = torch.cat([angles, angles], dim=-1) if interleaved else angles.repeat_interleave(2, dim=-1)
    cos, sin = wide[:, None].cos(), wide[:, None].sin()
    if interleaved:
        other = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    else:
        other = torch.cat([-x.chunk(2, dim=-1)[1], x.chunk(2, dim=-1)[0]], dim=-1)
    return x * cos + other * sin


# ------------------------------------------------------------------------------------------------------- cache_bytes


def _count(attention: str, layers: int, heads: int, d: int, positions: int = 1, **given: int) -> dict[str, int]:
    """The factors of the right answer by name, for mistakes that get one of them wrong."""
    right.cache_bytes(attention, layers, heads, d, positions, **given)  # raises for an unknown kind
    window, sliding = given.get("window", 0), given.get("window_layers", 0)
    groups = {"mha": heads, "gqa": given.get("num_kv_heads", 1), "mqa": 1, "mla": 0}[attention]
    return {
        "seen": (layers - sliding) * positions + sliding * min(positions, window), "groups": groups, "d": d,
        "rank": given.get("kv_rank", 0), "rope": given.get("rope_dim", 0), "each": given.get("bytes_per_value", 2),
        "positions": positions, "layers": layers, "sliding": sliding, "window": window, "heads": heads,
    }  # fmt: skip


def _values(c: dict[str, int]) -> int:
    return 2 * c["groups"] * c["d"] or c["rank"] + c["rope"]


def cache_query_heads(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return c["seen"] * (2 * c["heads"] * c["d"] if attention != "mla" else _values(c)) * c["each"]


def cache_keys_only(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return c["seen"] * (c["groups"] * c["d"] or _values(c)) * c["each"]


def cache_latent_twice(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return c["seen"] * (2 * (c["rank"] + c["rope"]) if attention == "mla" else _values(c)) * c["each"]


def cache_latent_only_twice(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return c["seen"] * (2 * c["rank"] + c["rope"] if attention == "mla" else _values(c)) * c["each"]


def cache_rope_forgotten(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return c["seen"] * (c["rank"] if attention == "mla" else _values(c)) * c["each"]


def cache_rope_each_head(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return c["seen"] * (c["rank"] + c["heads"] * c["rope"] if attention == "mla" else _values(c)) * c["each"]


def cache_latent_each_head(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return c["seen"] * _values(c) * (c["heads"] if attention == "mla" else 1) * c["each"]


def cache_mla_expanded(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return c["seen"] * (2 * c["heads"] * c["d"] if attention == "mla" else _values(c)) * c["each"]


def cache_mqa_grouped(attention: str, *args: int, **given: int) -> int:
    return right.cache_bytes("gqa" if attention == "mqa" else attention, *args, **given)


def cache_window_ignored(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return c["layers"] * c["positions"] * _values(c) * c["each"]


def cache_window_always_full(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return ((c["layers"] - c["sliding"]) * c["positions"] + c["sliding"] * c["window"]) * _values(c) * c["each"]


def cache_window_everywhere(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    seen = min(c["positions"], c["window"]) if c["sliding"] else c["positions"]
    return c["layers"] * seen * _values(c) * c["each"]


def cache_window_layers_dropped(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return (c["layers"] - c["sliding"]) * c["positions"] * _values(c) * c["each"]


def cache_two_bytes(attention: str, *args: int, **given: int) -> int:
    return right.cache_bytes(attention, *args, **{**given, "bytes_per_value": 2})


def cache_values_counted(attention: str, *args: int, **given: int) -> int:
    return right.cache_bytes(attention, *args, **{**given, "bytes_per_value": 1})


def cache_one_layer(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return c["positions"] * _values(c) * c["each"]


def cache_one_position(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return c["layers"] * _values(c) * c["each"]


# -------------------------------------------------------------------------------------------------------------- mask


def _grid(real_BK: Tensor, num_queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of queries [S, 1] and keys [K], and what is real [B, 1, K]."""
    key = torch.arange(real_BK.shape[1])
    return key[len(key) - num_queries :, None], key, real_BK[:, None]


def _seen(query: Tensor, key: Tensor, window: int) -> Tensor:
    seen = key <= query
    return seen & (key > query - window) if window else seen


def mask_upside_down(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    return ~right.mask(real_BK, num_queries, window)


def mask_empty_rows(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    query, key, real = _grid(real_BK, num_queries)
    return (_seen(query, key, window) & real)[:, None]


def mask_from_the_corner(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    query, key, real = _grid(real_BK, num_queries)
    query = query - query.min()
    return ((_seen(query, key, window) & real) | (key == query))[:, None]


def mask_eye_in_the_corner(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    query, key, real = _grid(real_BK, num_queries)
    return ((_seen(query, key, window) & real) | (key == query - query.min()))[:, None]


def mask_rows_padded(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    query, key, _ = _grid(real_BK, num_queries)
    rows = real_BK[:, len(key) - num_queries :, None]
    return ((_seen(query, key, window) & rows) | (key == query))[:, None]


def mask_not_itself(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    query, key, real = _grid(real_BK, num_queries)
    return (_seen(query, key, window) & (key < query) & real)[:, None]


def mask_not_causal(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    query, key, real = _grid(real_BK, num_queries)
    seen = key > query - window if window else key >= 0
    return ((seen & real) | (key == query))[:, None]


def mask_window_wide(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    return right.mask(real_BK, num_queries, window + 1 if window else 0)


def mask_window_narrow(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    query, key, real = _grid(real_BK, num_queries)
    seen = (key <= query) & ((key > query - window + 1) if window else True)
    return ((seen & real) | (key == query))[:, None]


def mask_window_ignored(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    return right.mask(real_BK, num_queries)


def mask_window_of_nothing(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    query, key, real = _grid(real_BK, num_queries)
    return (((key <= query) & (key > query - window) & real) | (key == query))[:, None]


def mask_padding_ignored(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    return right.mask(torch.ones_like(real_BK), num_queries, window)


def mask_open_rows(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    bare = mask_empty_rows(real_BK, num_queries, window)
    return bare | ~bare.any(dim=-1, keepdim=True)


def mask_padding_sees_padding(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    query, key, real = _grid(real_BK, num_queries)
    rows = real_BK[:, len(key) - num_queries :, None]
    return (_seen(query, key, window) & (real | ~rows))[:, None]


def mask_additive(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    seen = right.mask(real_BK, num_queries, window)
    return torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))


def mask_without_heads(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    return right.mask(real_BK, num_queries, window)[:, 0]


def mask_transposed(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    return right.mask(real_BK, num_queries, window).mT
