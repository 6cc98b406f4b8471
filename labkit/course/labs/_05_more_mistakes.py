"""Lab 05: more mistakes as a learner's function makes them: tables, parts and masks that are put together wrongly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.course.judge import Failure
from labkit.course.labs import _05_cases as right
from labkit.course.labs._05_latent_mistakes import Triple, _absorb, _mla
from labkit.course.labs._05_mistakes import _count, _frequencies, _grid, _seen, _turn, _values

# -------------------------------------------------------------------------------------------------------------- rope


def rope_coarse(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    return right.rope(x, positions.bfloat16(), theta, interleaved)


def rope_start_only(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    return right.rope(x, positions[:, :1] + torch.arange(x.shape[2]), theta, interleaved)


def rope_without_heads(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    """Tables [B, S, d/2] meet [B, H, S, d/2] as they are: their rows lie along the heads."""
    return _turn(x, (positions[..., None] * _frequencies(x.shape[-1], theta))[None], interleaved)


def rope_double_exponent(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    return _turn(x, positions[..., None] * _frequencies(x.shape[-1], theta) ** 2, interleaved)


def _pairs(x: Tensor, positions: Tensor, theta: float, interleaved: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    angles = (positions[..., None] * _frequencies(x.shape[-1], theta))[:, None]
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    return first, second, angles.cos(), angles.sin()


def _back(first: Tensor, second: Tensor, interleaved: bool) -> Tensor:
    return torch.stack([first, second], dim=-1).flatten(-2) if interleaved else torch.cat([first, second], dim=-1)


def rope_no_minus(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    a, b, cos, sin = _pairs(x, positions, theta, interleaved)
    return _back(a * cos + b * sin, b * cos + a * sin, interleaved)


def rope_turned_first(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    """The second member reads the first one after it has turned."""
    a, b, cos, sin = _pairs(x, positions, theta, interleaved)
    a = a * cos - b * sin
    return _back(a, b * cos + a * sin, interleaved)


def rope_exchanged(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    a, b, sin, cos = _pairs(x, positions, theta, interleaved)
    return _back(a * cos - b * sin, b * cos + a * sin, interleaved)


def rope_woven(x: Tensor, positions: Tensor, theta: float = 10_000.0, interleaved: bool = False) -> Tensor:
    a, b, cos, sin = _pairs(x, positions, theta, interleaved)
    return _back(a * cos - b * sin, b * cos + a * sin, True)


# ------------------------------------------------------------------------------------------------------- cache_bytes


def cache_mha_grouped(attention: str, *args: int, **given: int) -> int:
    return right.cache_bytes("gqa" if attention == "mha" else attention, *args, **given)


def cache_gqa_single(attention: str, *args: int, **given: int) -> int:
    return right.cache_bytes("mqa" if attention == "gqa" else attention, *args, **given)


def cache_queries_per_group(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    values = 2 * (c["heads"] // c["groups"]) * c["d"] if attention == "gqa" else _values(c)
    return c["seen"] * values * c["each"]


def cache_with_queries(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return c["seen"] * (_values(c) + (0 if attention == "mla" else c["heads"] * c["d"])) * c["each"]


def cache_no_width(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return c["seen"] * (_values(c) if attention == "mla" else 2 * c["groups"]) * c["each"]


def cache_window_added(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    return (c["seen"] + c["sliding"] * c["positions"]) * _values(c) * c["each"]


def cache_window_swapped(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    kept = min(c["positions"], c["window"]) if c["sliding"] else c["positions"]
    return (c["sliding"] * c["positions"] + (c["layers"] - c["sliding"]) * kept) * _values(c) * c["each"]


def cache_window_larger(attention: str, *args: int, **given: int) -> int:
    c = _count(attention, *args, **given)
    kept = c["sliding"] * max(c["positions"], c["window"])
    return ((c["layers"] - c["sliding"]) * c["positions"] + kept) * _values(c) * c["each"]


# -------------------------------------------------------------------------------------------------------------- mask


def mask_one_ahead(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    query, key, real = _grid(real_BK, num_queries)
    seen = (key <= query + 1) & (key > query - window) if window else key <= query + 1
    return ((seen & real) | (key == query))[:, None]


def mask_other_triangle(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    query, key, real = _grid(real_BK, num_queries)
    seen = (key >= query) & (key < query + window) if window else key >= query
    return ((seen & real) | (key == query))[:, None]


def mask_both_sides(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    query, key, real = _grid(real_BK, num_queries)
    seen = (key - query).abs() < window if window else key <= query
    return ((seen & real) | (key == query))[:, None]


def mask_itself_if_empty(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    query, key, real = _grid(real_BK, num_queries)
    seen = _seen(query, key, window) & real
    return (seen | (~seen.any(-1, keepdim=True) & (key == query)))[:, None]


def mask_rows_and_columns(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    query, key, real = _grid(real_BK, num_queries)
    rows = real_BK[:, len(key) - num_queries :, None]
    return ((_seen(query, key, window) & real & rows) | (key == query))[:, None]


def mask_first_row(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    return right.mask(real_BK[:1].expand_as(real_BK), num_queries, window)


def mask_left_only(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    return right.mask(real_BK.cummax(dim=1).values, num_queries, window)


def mask_by_length(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    lengths = real_BK.sum(1, keepdim=True)
    return right.mask(torch.arange(real_BK.shape[1]) < lengths, num_queries, window)


def mask_either(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    query, key, real = _grid(real_BK, num_queries)
    return (_seen(query, key, window) | real)[:, None]


def mask_square(real_BK: Tensor, num_queries: int, window: int = 0) -> Tensor:
    return right.mask(real_BK, real_BK.shape[1], window)


def a_table_of_another_size(failure: Failure) -> bool:
    """With more keys than queries, and only there, sizes do not meet."""
    real_BK, S = failure.case.args[:2]
    return real_BK.shape[1] > S and failure.outcome.status == "error" and "must match the size" in failure.outcome.error


# --------------------------------------------------------------------------------------------------------------- mla


def _viewed(x: Tensor, query_w: Tensor, down: Tensor, norm: Tensor, up: Tensor, positions: Tensor, kv: bool) -> Triple:
    """[B, S, H·d] read as [B, H, S, d] without a transpose."""
    _, latent, key_r = right.mla(x, query_w, down, norm, up, positions)
    (B, S, _), H, n = x.shape, len(query_w), query_w.shape[1] - key_r.shape[-1]
    query = (x @ query_w.flatten(0, 1).T).reshape(B, H, S, -1)
    expanded = (latent @ up.flatten(0, 1).T).reshape(B, H, S, -1) if kv else latent[:, None] @ up.mT
    query = torch.cat([query[..., :n], right.rope(query[..., n:], positions, interleaved=True)], dim=-1)
    key = torch.cat([expanded[..., :n], key_r[:, None].expand(-1, H, -1, -1)], dim=-1)
    return F.scaled_dot_product_attention(query, key, expanded[..., n:], is_causal=True), latent, key_r


def mla_heads_by_view(*args: Tensor) -> Triple:
    return _viewed(*args, kv=True)


def mla_query_by_view(*args: Tensor) -> Triple:
    return _viewed(*args, kv=False)


def mla_expanded_raw(*args: Tensor) -> Triple:
    return _mla(*args, normed=lambda latent, norm: latent)[0], *right.mla(*args)[1:]


def mla_unit_length(*args: Tensor) -> Triple:
    return _mla(*args, normed=lambda latent, norm: F.normalize(latent, dim=-1) * norm)


def mla_rotary_rows_first(x: Tensor, query_w: Tensor, down: Tensor, *rest: Tensor) -> Triple:
    return right.mla(x, query_w, down.roll(len(rest[0]), 0), *rest)


def mla_scale_of_the_rank(*args: Tensor) -> Triple:
    return _mla(*args, scale=len(args[3]) ** -0.5)


def mla_cache_exchanged(*args: Tensor) -> Triple:
    y, latent, key_r = right.mla(*args)
    return y, key_r, latent


def mla_heads_joined(*args: Tensor) -> Triple:
    y, latent, key_r = right.mla(*args)
    return y.transpose(1, 2).flatten(2), latent, key_r


def _scored(x: Tensor, query_w: Tensor, down: Tensor, norm: Tensor, up: Tensor, positions: Tensor, how: str) -> Triple:
    """Written out, with one thing wrong between the parts and the shares."""
    _, latent, key_r = right.mla(x, query_w, down, norm, up, positions)
    r, S = key_r.shape[-1], x.shape[1]
    n = query_w.shape[1] - r
    query = torch.einsum("bsD,hdD->bhsd", x, query_w)
    query_r, expanded = right.rope(query[..., n:], positions, interleaved=True), latent[:, None] @ up.mT
    query, key_r4 = query[..., :n], key_r[:, None].expand(-1, len(query_w), -1, -1)
    if how == "crossed":
        crossed = torch.cat([query, query_r], dim=-1) @ torch.cat([key_r4, expanded[..., :n]], dim=-1).mT
        scores = crossed * (n + r) ** -0.5
    elif how == "apart":
        scores = query @ expanded[..., :n].mT * n**-0.5 + query_r @ key_r4.mT * r**-0.5
    else:
        scores = (query @ expanded[..., :n].mT + query_r @ key_r4.mT) * (n + r) ** -0.5
    hidden = ~torch.ones(S, S, dtype=torch.bool).tril()
    scores = scores.masked_fill(hidden, 0.0 if how == "zeros" else float("-inf"))
    return scores.softmax(-1) @ expanded[..., n:], latent, key_r


def mla_crossed(*args: Tensor) -> Triple:
    return _scored(*args, how="crossed")


def mla_scaled_apart(*args: Tensor) -> Triple:
    return _scored(*args, how="apart")


def mla_mask_of_zeros(*args: Tensor) -> Triple:
    return _scored(*args, how="zeros")


# ------------------------------------------------------------------------------------------------------------ absorb


def _parts(query: Tensor, latent: Tensor, rotary: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """The folded query, the two parts of the scores, and n."""
    n = query.shape[-1] - rotary.shape[-1]
    folded = torch.einsum("bhn,hnR->bhR", query[..., :n], up[:, :n])
    return folded, folded @ latent.mT, query[..., n:] @ rotary.mT, n


def _finish(folded: Tensor, scores: Tensor, latent: Tensor, up_value: Tensor, hidden: Tensor) -> Triple:
    read = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ latent
    return torch.einsum("bhR,hvR->bhv", read, up_value), folded, read


def absorb_half_scaled(query, latent, rotary, up, seen) -> Triple:
    """Only the content part is scaled."""
    folded, content, turned, n = _parts(query, latent, rotary, up)
    return _finish(folded, content * query.shape[-1] ** -0.5 + turned, latent, up[:, n:], ~seen[:, None])


def absorb_other_half_scaled(query, latent, rotary, up, seen) -> Triple:
    """Only the rotary part is scaled."""
    folded, content, turned, n = _parts(query, latent, rotary, up)
    return _finish(folded, content + turned * query.shape[-1] ** -0.5, latent, up[:, n:], ~seen[:, None])


def absorb_scaled_apart(query, latent, rotary, up, seen) -> Triple:
    folded, content, turned, n = _parts(query, latent, rotary, up)
    scores = content * n**-0.5 + turned * rotary.shape[-1] ** -0.5
    return _finish(folded, scores, latent, up[:, n:], ~seen[:, None])


def absorb_mask_without_heads(query, latent, rotary, up, seen) -> Triple:
    folded, content, turned, n = _parts(query, latent, rotary, up)
    return _finish(folded, (content + turned) * query.shape[-1] ** -0.5, latent, up[:, n:], ~seen)


def absorb_cache_zeroed(query, latent, rotary, up, seen) -> Triple:
    return _absorb(query, latent * seen[..., None], rotary * seen[..., None], up, seen, masked=False)


def absorb_exchanged(*args: Tensor) -> Triple:
    y, folded, read = right.absorb(*args)
    return y, read, folded


def absorb_read_with_rotary(query, latent, rotary, up, seen) -> Triple:
    folded, content, turned, n = _parts(query, latent, rotary, up)
    scores = ((content + turned) * query.shape[-1] ** -0.5).masked_fill(~seen[:, None], float("-inf"))
    both = scores.softmax(-1) @ torch.cat([latent, rotary], dim=-1)
    return torch.einsum("bhR,hvR->bhv", both[..., : latent.shape[-1]], up[:, n:]), folded, both
